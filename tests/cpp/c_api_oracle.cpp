#include "c_api_oracle.h"

#include "gancomp/engine.h"
#include "small_files.h"

namespace {

const small_files::File& file() {
  static const small_files::File result = small_files::resnet_file();
  return result;
}

gancomp::Engine& engine() {
  static gancomp::Engine result = [] {
    const std::string bytes = file().bytes();
    gancomp::EngineOptions options;
    options.threads = 1;
    return gancomp::Engine(gancomp::Model::parse(bytes.data(), bytes.size()), options);
  }();
  return result;
}

}  // namespace

const void* oracle_file(size_t* size) {
  static const std::string bytes = file().bytes();
  *size = bytes.size();
  return bytes.data();
}

// The file has nothing but float32 parameters.
int64_t oracle_parameters() { return static_cast<int64_t>(file().data.size() / sizeof(float)); }

// By the paper's rule: outputs times inputs times kernel area, for a transposed convolution by its input's size.
int64_t oracle_macs(int64_t height, int64_t width) {
  const int64_t full = height * width, half = full / 4, quarter = full / 16;
  const int64_t blocks = 9 * (4 * 5 + 5 * 4 + 4 * 2 + 2 * 4) * quarter;
  return 49 * 2 * 2 * full + 9 * 2 * 3 * half + 9 * 3 * 4 * quarter + blocks + 9 * 4 * 3 * quarter + 9 * 3 * 2 * half +
         49 * 2 * 1 * full;
}

void oracle_run_f32(const float* x, float* y, int64_t n, int64_t height, int64_t width) {
  engine().run(x, y, n, height, width);
}

void oracle_run_u8(const uint8_t* x, uint8_t* y, int64_t n, int64_t height, int64_t width) {
  engine().run(x, y, n, height, width);
}
