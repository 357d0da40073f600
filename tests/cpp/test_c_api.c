// The C interface: as C99, with its own results, errors and ownership; its images equal those of the C++ interface.
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "c_api_oracle.h"
#include "gancomp/c_api.h"

#define HEIGHT 24
#define WIDTH 20
#define IMAGES 2
#define PIXELS (HEIGHT * WIDTH)

static int checks = 0, failures = 0;

#define CHECK(condition)                                                                            \
  do {                                                                                              \
    ++checks;                                                                                       \
    if (!(condition)) {                                                                             \
      ++failures;                                                                                   \
      printf("FAIL line %d: %s (last error: %s)\n", __LINE__, #condition, gancomp_error_message()); \
    }                                                                                               \
  } while (0)

// The call fails with this status, and its message has this part.
#define CHECK_FAILS(call, status, part)                     \
  do {                                                      \
    CHECK((call) == (status));                              \
    CHECK(strstr(gancomp_error_message(), (part)) != NULL); \
  } while (0)

static gancomp_model* load(void) {
  size_t size = 0;
  const void* file = oracle_file(&size);
  gancomp_model* model = NULL;
  CHECK(gancomp_model_parse(file, size, NULL, &model) == GANCOMP_OK);
  return model;
}

static gancomp_engine* make_engine(const gancomp_model* model, int threads) {
  gancomp_options options = GANCOMP_OPTIONS_INIT;
  gancomp_engine* engine = NULL;
  options.threads = threads;
  CHECK(gancomp_engine_create(model, &options, &engine) == GANCOMP_OK);
  return engine;
}

static void test_versions(void) {
  CHECK(gancomp_abi_version() == GANCOMP_ABI_VERSION);
  CHECK(strcmp(gancomp_version(), GANCOMP_VERSION) == 0);
}

static void test_model(void) {
  gancomp_model* model = load();
  gancomp_options options = GANCOMP_OPTIONS_INIT;
  gancomp_model* other = NULL;
  int64_t macs = 0;
  CHECK(gancomp_model_in_channels(model) == 2);
  CHECK(gancomp_model_out_channels(model) == 1);
  CHECK(gancomp_model_parameters(model) == oracle_parameters());
  CHECK(gancomp_model_macs(model, 64, 32, &macs) == GANCOMP_OK && macs == oracle_macs(64, 32));
  CHECK(strlen(gancomp_model_isa(model)) > 0);
  CHECK(gancomp_model_precision(model) == GANCOMP_F32);
  options.isa = "portable";
  {
    size_t size = 0;
    const void* file = oracle_file(&size);
    CHECK(gancomp_model_parse(file, size, &options, &other) == GANCOMP_OK);
    CHECK(strcmp(gancomp_model_isa(other), "portable") == 0);
    gancomp_model_free(other);
    other = NULL;
    options.isa = NULL;
    options.precision = GANCOMP_INT8;
    // Only some processors can.
    if (gancomp_model_parse(file, size, &options, &other) == GANCOMP_OK) {
      CHECK(gancomp_model_precision(other) == GANCOMP_INT8);
    } else {
      CHECK(strstr(gancomp_error_message(), "int8") != NULL);
    }
    options.precision = 2;
    CHECK_FAILS(gancomp_model_parse(file, size, &options, &other), GANCOMP_INVALID_ARGUMENT, "precision is 2");
  }
  gancomp_model_free(other);
  gancomp_model_free(model);
}

static void test_model_errors(void) {
  size_t size = 0;
  const void* file = oracle_file(&size);
  gancomp_model* const untouched = (gancomp_model*)&size;
  gancomp_model* model = untouched;
  gancomp_options options = GANCOMP_OPTIONS_INIT;
  char path[] = "/tmp/gancomp_c_api_XXXXXX";
  FILE* stream = fdopen(mkstemp(path), "wb");
  CHECK(fwrite(file, 1, size, stream) == size);
  fclose(stream);

  CHECK_FAILS(gancomp_model_load("/no/such.safetensors", NULL, &model), GANCOMP_FILE, "/no/such.safetensors: no such file");
  CHECK_FAILS(gancomp_model_load("/", NULL, &model), GANCOMP_FILE, "/: not a file");
  CHECK_FAILS(gancomp_model_load(NULL, NULL, &model), GANCOMP_INVALID_ARGUMENT, "path: expected a pointer");
  CHECK_FAILS(gancomp_model_load(path, NULL, NULL), GANCOMP_INVALID_ARGUMENT, "model: expected a pointer");
  CHECK_FAILS(gancomp_model_parse(NULL, 8, NULL, &model), GANCOMP_INVALID_ARGUMENT, "data: expected a pointer");
  CHECK_FAILS(gancomp_model_parse("", 0, NULL, &model), GANCOMP_FORMAT, "has 0 bytes");
  CHECK_FAILS(gancomp_model_parse(file, size - 1, NULL, &model), GANCOMP_FORMAT, "tensor");
  options.isa = "sse9";
  CHECK_FAILS(gancomp_model_load(path, &options, &model), GANCOMP_INVALID_ARGUMENT, "isa='sse9'");
  options.size -= 1;
  CHECK_FAILS(gancomp_model_load(path, &options, &model), GANCOMP_INVALID_ARGUMENT, "GANCOMP_OPTIONS_INIT");
  CHECK(model == untouched);

  CHECK(gancomp_model_load(path, NULL, &model) == GANCOMP_OK);
  remove(path);
  CHECK_FAILS(gancomp_model_macs(model, 64, 64, NULL), GANCOMP_INVALID_ARGUMENT, "macs: expected a pointer");
  gancomp_model_free(model);

  CHECK_FAILS(gancomp_model_macs(NULL, 64, 64, NULL), GANCOMP_INVALID_ARGUMENT, "model: expected a pointer");
  CHECK(gancomp_model_in_channels(NULL) == 0 && gancomp_model_out_channels(NULL) == 0);
  CHECK(gancomp_model_parameters(NULL) == 0 && gancomp_model_isa(NULL) == NULL);
  CHECK(gancomp_model_precision(NULL) == GANCOMP_F32);
  gancomp_model_free(NULL);
}

static void test_runs(void) {
  static float x[IMAGES * 2 * PIXELS], y[IMAGES * PIXELS + 1], expected[IMAGES * PIXELS];
  static uint8_t xb[IMAGES * PIXELS * 2], yb[IMAGES * PIXELS + 1], expected_b[IMAGES * PIXELS];
  gancomp_model* model = load();
  gancomp_engine* engine = make_engine(model, 1);
  gancomp_engine* pair = make_engine(model, 2);
  size_t bytes = 0;
  size_t i;
  gancomp_model_free(model);  // the engine keeps what it needs
  CHECK(gancomp_engine_threads(engine) == 1 && gancomp_engine_threads(pair) == 2);
  gancomp_engine_free(pair);
  CHECK(gancomp_engine_workspace(engine, HEIGHT, WIDTH, &bytes) == GANCOMP_OK && bytes > 0);
  for (i = 0; i < sizeof(x) / sizeof(x[0]); ++i) x[i] = (float)(i * 37 % 101) / 50.5f - 1.0f;
  for (i = 0; i < sizeof(xb); ++i) xb[i] = (uint8_t)(i * 57 % 256);
  oracle_run_f32(x, expected, IMAGES, HEIGHT, WIDTH);
  oracle_run_u8(xb, expected_b, IMAGES, HEIGHT, WIDTH);
  y[IMAGES * PIXELS] = 7;
  yb[IMAGES * PIXELS] = 7;
  CHECK(gancomp_engine_run_f32(engine, x, y, IMAGES, HEIGHT, WIDTH) == GANCOMP_OK);
  CHECK(gancomp_engine_run_u8(engine, xb, yb, IMAGES, HEIGHT, WIDTH) == GANCOMP_OK);
  CHECK(memcmp(y, expected, sizeof(expected)) == 0);
  CHECK(memcmp(yb, expected_b, sizeof(expected_b)) == 0);
  CHECK(y[IMAGES * PIXELS] == 7 && yb[IMAGES * PIXELS] == 7);
  // A picture, and another one for the second image.
  CHECK(memcmp(y, y + 1, sizeof(float) * (PIXELS - 1)) != 0 && memcmp(y, y + PIXELS, sizeof(float) * PIXELS) != 0);
  gancomp_engine_free(engine);
}

static void test_profiling(void) {
  static float x[2 * PIXELS], y[PIXELS];
  gancomp_model* model = load();
  gancomp_engine* engine = make_engine(model, 1);
  const size_t count = gancomp_engine_step_count(engine);
  gancomp_step step;
  double total = 0;
  int64_t macs = 0;
  size_t i;
  CHECK(count > 0);
  CHECK(gancomp_engine_set_profiling(engine, 1) == GANCOMP_OK);
  CHECK(gancomp_engine_run_f32(engine, x, y, 1, HEIGHT, WIDTH) == GANCOMP_OK);
  for (i = 0; i < count; ++i) {
    CHECK(gancomp_engine_step(engine, i, &step) == GANCOMP_OK);
    CHECK(strlen(step.name) > 0 && step.ms >= 0 && step.macs >= 0 && step.bytes > 0);
    total += step.ms;
    macs += step.macs;
  }
  CHECK(total > 0 && macs > 0);
  CHECK_FAILS(gancomp_engine_step(engine, count, &step), GANCOMP_INVALID_ARGUMENT, "index=");
  CHECK_FAILS(gancomp_engine_step(engine, 0, NULL), GANCOMP_INVALID_ARGUMENT, "step: expected a pointer");
  gancomp_engine_free(engine);
  gancomp_model_free(model);
}

static void test_engine_errors(void) {
  static float x[2 * PIXELS], y[PIXELS];
  static uint8_t b[2 * PIXELS];
  gancomp_model* model = load();
  gancomp_engine* engine = NULL;
  gancomp_options options = GANCOMP_OPTIONS_INIT;
  gancomp_step step;
  size_t bytes = 0;
  options.threads = -1;
  CHECK_FAILS(gancomp_engine_create(model, &options, &engine), GANCOMP_INVALID_ARGUMENT, "threads=-1");
  options.threads = 1000000;
  CHECK_FAILS(gancomp_engine_create(model, &options, &engine), GANCOMP_INVALID_ARGUMENT, "threads=1000000");
  CHECK_FAILS(gancomp_engine_create(NULL, NULL, &engine), GANCOMP_INVALID_ARGUMENT, "model: expected a pointer");
  CHECK_FAILS(gancomp_engine_create(model, NULL, NULL), GANCOMP_INVALID_ARGUMENT, "engine: expected a pointer");
  CHECK(engine == NULL);
  engine = make_engine(model, 1);
  CHECK_FAILS(gancomp_engine_run_f32(engine, NULL, y, 1, HEIGHT, WIDTH), GANCOMP_INVALID_ARGUMENT, "x");
  CHECK_FAILS(gancomp_engine_run_f32(engine, x, NULL, 1, HEIGHT, WIDTH), GANCOMP_INVALID_ARGUMENT, "y");
  CHECK_FAILS(gancomp_engine_run_u8(engine, b, NULL, 1, HEIGHT, WIDTH), GANCOMP_INVALID_ARGUMENT, "y");
  CHECK_FAILS(gancomp_engine_run_f32(engine, x, y, 0, HEIGHT, WIDTH), GANCOMP_INVALID_ARGUMENT, "n=0");
  CHECK_FAILS(gancomp_engine_run_f32(engine, x, y, 1, 15, WIDTH), GANCOMP_INVALID_ARGUMENT, "15");
  CHECK_FAILS(gancomp_engine_run_f32(engine, x, y, 1, HEIGHT, 16385), GANCOMP_INVALID_ARGUMENT, "16385");
  CHECK_FAILS(gancomp_engine_run_f32(engine, x, y, 1, -HEIGHT, WIDTH), GANCOMP_INVALID_ARGUMENT, "-24");
  CHECK_FAILS(gancomp_engine_workspace(engine, 1, 1, &bytes), GANCOMP_INVALID_ARGUMENT, "1");
  CHECK_FAILS(gancomp_engine_workspace(engine, HEIGHT, WIDTH, NULL), GANCOMP_INVALID_ARGUMENT, "bytes: expected a pointer");
  // A failed run does no harm to the next.
  CHECK(gancomp_engine_run_f32(engine, x, y, 1, HEIGHT, WIDTH) == GANCOMP_OK);
  CHECK_FAILS(gancomp_engine_run_f32(NULL, x, y, 1, HEIGHT, WIDTH), GANCOMP_INVALID_ARGUMENT, "engine: expected a pointer");
  CHECK_FAILS(gancomp_engine_run_u8(NULL, b, b, 1, HEIGHT, WIDTH), GANCOMP_INVALID_ARGUMENT, "engine: expected a pointer");
  CHECK_FAILS(gancomp_engine_set_profiling(NULL, 1), GANCOMP_INVALID_ARGUMENT, "engine: expected a pointer");
  CHECK_FAILS(gancomp_engine_step(NULL, 0, &step), GANCOMP_INVALID_ARGUMENT, "engine: expected a pointer");
  CHECK(gancomp_engine_threads(NULL) == 0 && gancomp_engine_step_count(NULL) == 0);
  gancomp_engine_free(NULL);
  gancomp_engine_free(engine);
  gancomp_model_free(model);
}

static void* message_of_thread(void* message) {
  strcpy((char*)message, gancomp_error_message());
  gancomp_model_load("/of/the/thread", NULL, NULL);
  return NULL;
}

static void test_message_per_thread(void) {
  char message[1024] = "unset";
  pthread_t thread;
  gancomp_model* model = NULL;
  CHECK_FAILS(gancomp_model_load("/of/the/test", NULL, &model), GANCOMP_FILE, "/of/the/test");
  CHECK(pthread_create(&thread, NULL, message_of_thread, message) == 0);
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK(strcmp(message, "") == 0);
  CHECK(strstr(gancomp_error_message(), "/of/the/test") != NULL);
}

// Sanitizers reserve more address space than any limit allows.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
static void test_memory(void) {
  static float x[2 * PIXELS], y[PIXELS];
  gancomp_model* model = load();
  gancomp_engine* engine = make_engine(model, 1);
  struct rlimit old, limited;
  CHECK(getrlimit(RLIMIT_AS, &old) == 0);
  limited = old;
  limited.rlim_cur = (rlim_t)1 << 30;
  CHECK(setrlimit(RLIMIT_AS, &limited) == 0);
  // Fails before it reads a pixel.
  CHECK_FAILS(gancomp_engine_run_f32(engine, x, y, 1, 16384, 16384), GANCOMP_MEMORY, "not enough memory");
  CHECK(setrlimit(RLIMIT_AS, &old) == 0);
  CHECK(gancomp_engine_run_f32(engine, x, y, 1, HEIGHT, WIDTH) == GANCOMP_OK);
  gancomp_engine_free(engine);
  gancomp_model_free(model);
}
#endif

int main(void) {
  CHECK(strcmp(gancomp_error_message(), "") == 0);
  test_versions();
  test_model();
  test_model_errors();
  test_runs();
  test_profiling();
  test_engine_errors();
  test_message_per_thread();
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  test_memory();
#endif
  printf("%d checks, %d failed\n", checks, failures);
  return failures != 0;
}
