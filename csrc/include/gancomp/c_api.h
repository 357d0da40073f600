// The C interface of the inference engine, for C99 and everything that can call C. gancomp/engine.h is the same for C++.
//
//   gancomp_model* model = NULL;
//   gancomp_engine* engine = NULL;
//   if (gancomp_model_load("student.safetensors", NULL, &model) != GANCOMP_OK ||
//       gancomp_engine_create(model, NULL, &engine) != GANCOMP_OK ||
//       gancomp_engine_run_u8(engine, image, result, 1, 256, 256) != GANCOMP_OK) {
//     fprintf(stderr, "%s\n", gancomp_error_message());
//   }
//   gancomp_engine_free(engine);
//   gancomp_model_free(model);
//
// Functions that can fail return a status and leave their results untouched where it is not GANCOMP_OK. No exception leaves
// them. Different handles may be used by different threads at once; one engine may too, and serves one call after the other.
#ifndef GANCOMP_C_API_H
#define GANCOMP_C_API_H

#include <stddef.h>
#include <stdint.h>

#include "gancomp/export.h"

#ifdef __cplusplus
extern "C" {
#endif

// Version of this interface. It grows when a function or a structure changes in a way that old callers would notice; functions
// may be added without.
#define GANCOMP_ABI_VERSION 1

typedef enum gancomp_status {
  GANCOMP_OK = 0,
  GANCOMP_INVALID_ARGUMENT = 1,  // a size, pointer or option
  GANCOMP_FILE = 2,              // missing, unreadable
  GANCOMP_FORMAT = 3,            // not a .safetensors file of a generator, damaged, or hostile
  GANCOMP_UNSUPPORTED = 4,       // a well-formed file of a network that the engine does not run
  GANCOMP_MEMORY = 5,            // the system has not enough
  GANCOMP_INTERNAL = 6           // a defect of the library
} gancomp_status;

// Arithmetic of the convolutions. Lower precision is never chosen for the caller: it changes the images.
typedef enum gancomp_precision {
  GANCOMP_F32 = 0,
  GANCOMP_INT8 = 1  // 8-bit weights and activations where that is faster and harmless, f32 elsewhere; needs VNNI
} gancomp_precision;

// The weights of a generator, ready to run; shared by any number of engines.
typedef struct gancomp_model gancomp_model;
// Runs a model with threads and memory of its own.
typedef struct gancomp_engine gancomp_engine;

// Begin with GANCOMP_OPTIONS_INIT: `gancomp_options options = GANCOMP_OPTIONS_INIT;`
typedef struct gancomp_options {
  size_t size;        // of this structure, so that later versions can add to it
  int32_t threads;    // of an engine; 0: GANCOMP_NUM_THREADS, or else one per core of the process
  int32_t precision;  // of a model: a gancomp_precision
  const char* isa;    // instruction set of a model by name, e.g. "avx2"; NULL: the best of this processor, or GANCOMP_ISA
} gancomp_options;

#define GANCOMP_OPTIONS_INIT {sizeof(gancomp_options), 0, GANCOMP_F32, NULL}

// What one step of a network took.
typedef struct gancomp_step {
  char name[96];  // e.g. "conv 7x7 3->16"; longer names are cut
  double ms;      // milliseconds in the last run, with profiling on
  int64_t macs;   // multiply-accumulates really done
  int64_t bytes;  // activations and weights read and written once each
} gancomp_step;

// GANCOMP_ABI_VERSION of the library, to be compared with that of the header.
GANCOMP_API int32_t gancomp_abi_version(void);

// Version of the library, e.g. "0.1.0".
GANCOMP_API const char* gancomp_version(void);

// What went wrong in this thread's last call that failed, in one line that names the cause; "" before the first one. The text
// is valid until the next failure in this thread.
GANCOMP_API const char* gancomp_error_message(void);

// Reads a .safetensors file that gancomp wrote. `options` may be NULL. The caller frees *model.
GANCOMP_API gancomp_status gancomp_model_load(const char* path, const gancomp_options* options, gancomp_model** model);

// The same from the `size` bytes of such a file in memory, which may go away afterwards.
GANCOMP_API gancomp_status gancomp_model_parse(const void* data, size_t size, const gancomp_options* options,
                                               gancomp_model** model);

// Frees the handle; NULL is fine. Engines that use the model go on.
GANCOMP_API void gancomp_model_free(gancomp_model* model);

// Channels of the input image; 0 for NULL.
GANCOMP_API int32_t gancomp_model_in_channels(const gancomp_model* model);

// Channels of the output image; 0 for NULL.
GANCOMP_API int32_t gancomp_model_out_channels(const gancomp_model* model);

// Classes of the label maps that the network takes; 0 for one that takes images, and for NULL.
GANCOMP_API int32_t gancomp_model_classes(const gancomp_model* model);

// 1 where the label maps have an edge channel, else 0; 0 for NULL.
GANCOMP_API int32_t gancomp_model_edges(const gancomp_model* model);

// Scalars in all trained tensors of the file; 0 for NULL.
GANCOMP_API int64_t gancomp_model_parameters(const gancomp_model* model);

// Instruction set of the kernels that run the model, e.g. "avx512"; NULL for NULL.
GANCOMP_API const char* gancomp_model_isa(const gancomp_model* model);

// Arithmetic of the model's convolutions; GANCOMP_F32 for NULL.
GANCOMP_API gancomp_precision gancomp_model_precision(const gancomp_model* model);

// Multiply-accumulates that the network defines for one image of this size.
GANCOMP_API gancomp_status gancomp_model_macs(const gancomp_model* model, int64_t height, int64_t width, int64_t* macs);

// Makes an engine with its threads. `options` may be NULL. The caller frees *engine.
GANCOMP_API gancomp_status gancomp_engine_create(const gancomp_model* model, const gancomp_options* options,
                                                 gancomp_engine** engine);

// Stops the engine's threads and frees it; NULL is fine. No call may be running.
GANCOMP_API void gancomp_engine_free(gancomp_engine* engine);

// Threads that run an image, the caller's included; 0 for NULL.
GANCOMP_API int32_t gancomp_engine_threads(const gancomp_engine* engine);

// Bytes of memory that an engine needs to run images of this size, beside the model's.
GANCOMP_API gancomp_status gancomp_engine_workspace(const gancomp_engine* engine, int64_t height, int64_t width, size_t* bytes);

// Runs `n` images. x: n * in_channels * height * width floats in [-1, 1], y: n * out_channels * height * width floats, both
// [N, C, H, W] and not overlapping. Height and width may be any from 16 to 16384: where the network needs multiples of some
// number the image is padded by reflection below and on the right, and the output is cut back. The first run of a size
// allocates memory, later ones of that size allocate nothing.
GANCOMP_API gancomp_status gancomp_engine_run_f32(gancomp_engine* engine, const float* x, float* y, int64_t n, int64_t height,
                                                  int64_t width);

// The same for images of bytes, [N, H, W, C]: v / 127.5 - 1 goes in, trunc((v + 1) / 2 * 255) comes out.
GANCOMP_API gancomp_status gancomp_engine_run_u8(gancomp_engine* engine, const uint8_t* x, uint8_t* y, int64_t n,
                                                 int64_t height, int64_t width);

// Runs a network of label maps on `n` of them. x: labels from 0 to gancomp_model_classes() - 1, and with gancomp_model_edges()
// as many edges (0 or not 0) behind the labels of every map: [N, 1, H, W] or [N, 2, H, W]. y: as of gancomp_engine_run_f32,
// which takes the one-hot images of label maps instead: in_channels planes of zeros and ones, the edges last.
GANCOMP_API gancomp_status gancomp_engine_run_labels_f32(gancomp_engine* engine, const int32_t* x, float* y, int64_t n,
                                                         int64_t height, int64_t width);

// The same into images of bytes, as of gancomp_engine_run_u8.
GANCOMP_API gancomp_status gancomp_engine_run_labels_u8(gancomp_engine* engine, const int32_t* x, uint8_t* y, int64_t n,
                                                        int64_t height, int64_t width);

// Whether the next runs take the time of every step (0: no, as at first).
GANCOMP_API gancomp_status gancomp_engine_set_profiling(gancomp_engine* engine, int on);

// Number of steps of a run; 0 for NULL.
GANCOMP_API size_t gancomp_engine_step_count(const gancomp_engine* engine);

// What step `index` took.
GANCOMP_API gancomp_status gancomp_engine_step(const gancomp_engine* engine, size_t index, gancomp_step* step);

#ifdef __cplusplus
}
#endif

#endif
