// The C++ interface of the inference engine: a compressed generator from file to images, without torch and without Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "gancomp/export.h"

namespace gancomp {

// Every failure of this interface. `code` is stable, the message is for people and names what is wrong.
class GANCOMP_API EngineError : public std::runtime_error {
 public:
  enum class Code {
    invalid_argument = 1,  // a size, pointer or option
    file = 2,              // missing, unreadable
    format = 3,            // not a .safetensors file of a generator, damaged, or hostile
    unsupported = 4,       // a well-formed file of a network that the engine does not run
    memory = 5,            // the system has not enough
  };

  EngineError(Code code, const std::string& message) : std::runtime_error(message), code_(code) {}
  Code code() const { return code_; }

 private:
  Code code_;
};

// Arithmetic of the convolutions. Lower precision is never chosen for the user: it changes the images.
enum class Precision {
  f32,
  int8,  // 8-bit weights and activations where that is faster and harmless, f32 elsewhere; needs VNNI
};

struct EngineOptions {
  int threads = 0;                       // 0: GANCOMP_NUM_THREADS, or else one per core of the process
  Precision precision = Precision::f32;  // of a model
  const char* isa = nullptr;             // instruction set by name; null: the best of this processor, or GANCOMP_ISA
};

// The weights of a generator, ready to run; immutable, and shared by any number of engines.
class GANCOMP_API Model {
 public:
  // Reads a .safetensors file that gancomp wrote. Throws EngineError.
  static std::shared_ptr<const Model> load(const std::string& path, const EngineOptions& options = {});
  // The same from memory; the bytes may go away afterwards.
  static std::shared_ptr<const Model> parse(const void* data, size_t size, const EngineOptions& options = {});

  virtual ~Model() = default;
  virtual int in_channels() const = 0;
  virtual int out_channels() const = 0;
  virtual int classes() const = 0;         // of the label maps that it takes; 0: it takes images
  virtual bool edges() const = 0;          // whether the label maps have an edge channel
  virtual int64_t parameters() const = 0;  // scalars in the file's weights
  virtual int64_t macs(int64_t height,
                       int64_t width) const = 0;  // multiply-accumulates of one image, as the network defines them
  virtual Precision precision() const = 0;
  virtual const char* isa() const = 0;  // whose kernels run
};

// Runs a model. An engine has threads and memory of its own and serves one call at a time: calls from several threads wait for
// each other. For calls at once make an engine per caller; they share the model. A process that was forked off while no call
// ran may use the engines of its parent.
//
// Images are [N, C, H, W] float32 in [-1, 1], or [N, H, W, C] uint8. Height and width may be any from 16 up to 16384; where the
// network needs multiples of some number the image is padded by reflection below and on the right, and the output is cut back.
// A network of label maps (Model::classes() is not 0) takes their one-hot images as float32 (every number 0 or 1, one class at
// every pixel, edges last), or the labels themselves through run_labels().
// The first call of a size plans and allocates memory; later ones of that size allocate nothing.
class GANCOMP_API Engine {
 public:
  explicit Engine(std::shared_ptr<const Model> model, const EngineOptions& options = {});
  ~Engine();
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;

  const Model& model() const;
  int threads() const;

  // x: N * in_channels * H * W floats; y: N * out_channels * H * W floats; the two must not overlap. Throws EngineError.
  void run(const float* x, float* y, int64_t n, int64_t height, int64_t width);
  // x: N * H * W * in_channels bytes, v -> v / 127.5 - 1; y: N * H * W * out_channels bytes, v -> trunc((v + 1) / 2 * 255).
  void run(const uint8_t* x, uint8_t* y, int64_t n, int64_t height, int64_t width);

  // x: N * (1 + edges) * H * W numbers, [N, 1 + edges, H, W]: labels from 0 to classes - 1, and edges (0 or not 0); y as above.
  void run_labels(const int32_t* x, float* y, int64_t n, int64_t height, int64_t width);
  void run_labels(const int32_t* x, uint8_t* y, int64_t n, int64_t height, int64_t width);

  // Bytes that activations of this size need.
  size_t workspace(int64_t height, int64_t width) const;

  // Milliseconds of every step of the last run, when profiling is on.
  struct StepTime {
    std::string name;  // e.g. "conv 7x7 3->16"
    double ms = 0;
    int64_t macs = 0;   // multiply-accumulates really done
    int64_t bytes = 0;  // activations and weights read and written once each
  };
  void set_profiling(bool on);
  size_t step_count() const;
  StepTime step(size_t index) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gancomp
