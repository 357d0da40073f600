// The engine as a C++ program meets it: what it allocates, which bytes it touches, which threads may call it, and its errors.
// What the images look like is tested in Python, against PyTorch.
#include <dirent.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "gancomp/engine.h"
#include "gancomp/ops.h"
#include "small_files.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;  // the sanitizers' own allocator is in the place of the one that counts
#else
constexpr bool kSanitized = false;

namespace {

std::atomic<bool> counting{false};
std::atomic<int> allocations{0};

void count() {
  if (counting.load(std::memory_order_relaxed)) ++allocations;
}

}  // namespace

// Every allocation of the process passes here, those of libgancomp included: what the program defines comes first.
extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* memory, size_t size);
void* __libc_memalign(size_t alignment, size_t size);

void* malloc(size_t size) {
  count();
  return __libc_malloc(size);
}
void* calloc(size_t number, size_t size) {
  count();
  return __libc_calloc(number, size);
}
void* realloc(void* memory, size_t size) {
  count();
  return __libc_realloc(memory, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  count();
  return __libc_memalign(alignment, size);
}
void* memalign(size_t alignment, size_t size) {
  count();
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** memory, size_t alignment, size_t size) {
  count();
  *memory = __libc_memalign(alignment, size);
  return *memory == nullptr ? ENOMEM : 0;
}
}
#endif

namespace {

using gancomp::Engine;
using gancomp::EngineError;
using gancomp::EngineOptions;
using gancomp::Model;
using Code = EngineError::Code;

int allocations_of(const std::function<void()>& call) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  call();
  return 0;
#else
  allocations = 0;
  counting = true;
  call();
  counting = false;
  return allocations;
#endif
}

int threads_of_process() {
  DIR* folder = opendir("/proc/self/task");
  if (folder == nullptr) return 0;
  int count = 0;
  while (const dirent* entry = readdir(folder)) count += entry->d_name[0] != '.';
  closedir(folder);
  return count;
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const char* const* name = gancomp::built_isas(); *name != nullptr; ++name) {
    if (gancomp::cpu_kernels_for(*name) != nullptr) names.emplace_back(*name);
  }
  return names;
}

EngineOptions with_threads(int threads) {
  EngineOptions options;
  options.threads = threads;
  return options;
}

std::shared_ptr<const Model> parse(const small_files::File& file, const std::string& isa = "",
                                   gancomp::Precision precision = gancomp::Precision::f32) {
  const std::string bytes = file.bytes();
  EngineOptions options;
  options.isa = isa.empty() ? nullptr : isa.c_str();
  options.precision = precision;
  return Model::parse(bytes.data(), bytes.size(), options);
}

// Networks that have every kind of step between them.
std::vector<std::pair<std::string, small_files::File>> networks() {
  std::vector<std::pair<std::string, small_files::File>> result;
  small_files::Json separable = small_files::resnet_config();
  separable["separable"] = true;
  small_files::Json wide = small_files::resnet_config();
  wide["stream"] = 36, wide["hidden"] = {40, 33}, wide["out_channels"] = 6, wide["in_channels"] = 7;
  result.emplace_back("dense", small_files::resnet_file());
  result.emplace_back("separable", small_files::resnet_file(separable));
  result.emplace_back("wide", small_files::resnet_file(wide));
  result.emplace_back("unet", small_files::unet_file());
  small_files::Json dense = small_files::spade_config();
  dense["separable"] = false, dense["norm"] = "instance", dense["stream"] = 33, dense["inner"] = {40, 2, 33};
  dense["instance_edges"] = false, dense["out_channels"] = 5;
  small_files::Json wide_embedding = small_files::spade_config();
  wide_embedding["embed"] = {17, 2, 33, 1, 20, 1, 18}, wide_embedding["up"] = {34, 33, 17, 20};
  result.emplace_back("spade", small_files::spade_file());
  result.emplace_back("dense spade", small_files::spade_file(dense));
  result.emplace_back("wide spade", small_files::spade_file(wide_embedding));
  return result;
}

// Images between fences, at an address that nothing is aligned to.
template <typename Value>
struct Buffer {
  static constexpr size_t kGuard = 67;
  std::vector<Value> memory;
  size_t size;

  Buffer(size_t count, Value fence) : memory(count + 2 * kGuard, fence), size(count) {}
  Value* data() { return memory.data() + kGuard; }
  bool fenced(Value fence) const {
    const auto same = [&](const Value& value) { return std::memcmp(&value, &fence, sizeof(Value)) == 0; };
    return std::all_of(memory.begin(), memory.begin() + kGuard, same) && std::all_of(memory.end() - kGuard, memory.end(), same);
  }
};

Buffer<float> planes(int64_t n, int channels, int64_t height, int64_t width, int seed) {
  Buffer<float> result(static_cast<size_t>(n * channels * height * width), NAN);
  uint32_t state = static_cast<uint32_t>(seed) * 2654435761u + 1u;
  for (size_t i = 0; i < result.size; ++i) {
    state = state * 1664525u + 1013904223u;
    result.data()[i] = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
  return result;
}

Buffer<uint8_t> pixels(int64_t n, int channels, int64_t height, int64_t width, int seed) {
  Buffer<uint8_t> result(static_cast<size_t>(n * channels * height * width), 0xAB);
  uint32_t state = static_cast<uint32_t>(seed) + 1u;
  for (size_t i = 0; i < result.size; ++i) {
    state = state * 1664525u + 1013904223u;
    result.data()[i] = static_cast<uint8_t>(state >> 24);
  }
  return result;
}

// Labels and edges.
Buffer<int32_t> labels(const Model& model, int64_t n, int64_t height, int64_t width, int seed) {
  const int64_t plane = height * width, maps = 1 + model.edges();
  Buffer<int32_t> result(static_cast<size_t>(n * maps * plane), -1);
  const Buffer<uint8_t> random = pixels(n, static_cast<int>(maps), height, width, seed);
  for (size_t i = 0; i < result.size; ++i) {
    const bool edge = static_cast<int64_t>(i) / plane % maps == 1;
    const int value = random.memory[Buffer<uint8_t>::kGuard + i];
    result.data()[i] = edge ? value / 200 : value % model.classes();
  }
  return result;
}

// What the network takes: images, or the one-hot images of label maps.
Buffer<float> floats(const Model& model, int64_t n, int64_t height, int64_t width, int seed) {
  Buffer<float> result = planes(n, model.in_channels(), height, width, seed);
  if (model.classes() == 0) return result;
  const int64_t plane = height * width;
  Buffer<int32_t> maps = labels(model, n, height, width, seed);
  std::fill(result.data(), result.data() + result.size, 0.0f);
  for (int64_t i = 0; i < n * plane; ++i) {
    const int32_t* const from = maps.data() + i / plane * (1 + model.edges()) * plane + i % plane;
    float* const to = result.data() + i / plane * model.in_channels() * plane + i % plane;
    to[*from * plane] = 1.0f;
    if (model.edges()) to[model.classes() * plane] = static_cast<float>(from[plane]);
  }
  return result;
}

std::vector<float> run(Engine& engine, int64_t n, int64_t height, int64_t width, int seed) {
  Buffer<float> x = floats(engine.model(), n, height, width, seed);
  Buffer<float> y(static_cast<size_t>(n * engine.model().out_channels() * height * width), NAN);
  engine.run(x.data(), y.data(), n, height, width);
  return {y.data(), y.data() + y.size};
}

void test_memory() {
  for (const std::string& isa : isas()) {
    for (const auto& [name, file] : networks()) {
      where = name + ", " + isa;
      const std::shared_ptr<const Model> model = parse(file, isa);
      CHECK(model->isa() == isa, "%s", model->isa());
      std::vector<float> first;
      for (int threads = 1; threads <= 3; ++threads) {
        where = name + ", " + isa + ", " + std::to_string(threads) + " threads";
        Engine engine(model, with_threads(threads));
        const int before = threads_of_process();
        const int64_t n = 2, height = 33, width = 37;
        Buffer<float> x = floats(*model, n, height, width, 1);
        Buffer<int32_t> l = labels(*model, model->classes() > 0 ? n : 0, height, width, 1);
        const std::vector<float> kept = x.memory;
        Buffer<float> y(static_cast<size_t>(n * model->out_channels() * height * width), NAN);
        Buffer<uint8_t> u = pixels(n, model->in_channels(), height, width, 1);
        Buffer<uint8_t> v(y.size, 0xAB);
        engine.run(x.data(), y.data(), n, height, width);
        if (!kSanitized) {
          CHECK(allocations_of([] { std::free(std::malloc(1)); }) == 1, "the counter does not count");
          CHECK(allocations_of([] { std::free(std::aligned_alloc(64, 64)); }) == 1, "nor aligned memory");
        }
        std::fill(y.data(), y.data() + y.size, NAN);
        const int count = allocations_of([&] {
          engine.run(x.data(), y.data(), n, height, width);
          if (model->classes() > 0) {
            engine.run_labels(l.data(), v.data(), n, height, width);
            engine.run_labels(l.data(), y.data(), n, height, width);
          } else {
            engine.run(u.data(), v.data(), n, height, width);
          }
          engine.run(x.data(), y.data(), 1, height, width);
        });
        CHECK(count == 0, "%d allocations in the runs after the first", count);
        engine.run(x.data(), y.data(), n, height, width);
        CHECK(threads_of_process() == before, "threads were started or ended: %d, %d", before, threads_of_process());
        CHECK(std::all_of(y.data(), y.data() + y.size, [](float value) { return std::fabs(value) <= 1; }), "outputs left out");
        CHECK(y.fenced(NAN) && v.fenced(0xAB), "written beside the output");
        CHECK(std::memcmp(kept.data(), x.memory.data(), kept.size() * sizeof(float)) == 0, "the input has changed");
        if (threads == 1) first.assign(y.data(), y.data() + y.size);
        CHECK(std::memcmp(first.data(), y.data(), y.size * sizeof(float)) == 0, "other bits than with one thread");
        if (model->classes() > 0) {
          std::fill(y.data(), y.data() + y.size, NAN);
          engine.run_labels(l.data(), y.data(), n, height, width);
          CHECK(std::memcmp(first.data(), y.data(), y.size * sizeof(float)) == 0, "other bits than of the one-hot image");
          CHECK(y.fenced(NAN), "written beside the output");
        }
        Buffer<float> other = floats(*model, 1, 64, 16, 1);
        const int planned = allocations_of([&] { engine.run(other.data(), y.data(), 1, 64, 16); });
        CHECK(planned > 0 || kSanitized, "the library's allocations are not counted");
        engine.run(x.data(), y.data(), n, height, width);
        CHECK(std::memcmp(first.data(), y.data(), y.size * sizeof(float)) == 0, "other bits after another size");
      }
    }
  }
}

void test_ownership() {
  where = "ownership";
  std::vector<float> expected;
  Engine* late = nullptr;
  {
    std::shared_ptr<const Model> model = parse(small_files::resnet_file());  // the bytes are gone already
    const std::weak_ptr<const Model> weak = model;
    Engine a(model, with_threads(2)), b(model, with_threads(1));
    expected = run(a, 1, 20, 24, 5);
    CHECK(run(b, 1, 20, 24, 5) == expected, "an engine of the same model");
    Engine moved = std::move(a);
    CHECK(run(moved, 1, 20, 24, 5) == expected && moved.threads() == 2, "a moved engine");
    b = std::move(moved);
    CHECK(run(b, 1, 20, 24, 5) == expected && b.threads() == 2, "an engine that another was moved into");
    late = new Engine(std::move(b));
    model.reset();
    CHECK(!weak.expired(), "the engine keeps its model");
  }
  CHECK(run(*late, 1, 20, 24, 5) == expected, "the model outlives who made it");
  delete late;
}

// For ThreadSanitizer: every way in which threads may meet.
void test_threads() {
  where = "threads";
  const std::shared_ptr<const Model> model = parse(small_files::resnet_file());
  Engine shared(model, with_threads(2));
  std::vector<std::vector<float>> expected;
  for (int i = 0; i < 4; ++i) expected.push_back(run(shared, 1 + i % 2, 16 + i, 18, i));
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&, i] {
      for (int round = 0; round < 12; ++round) {
        wrong += run(shared, 1 + i % 2, 16 + i, 18, i) != expected[i];  // sizes change from call to call
        Engine own(model, with_threads(1 + i % 2));
        wrong += run(own, 1 + i % 2, 16 + i, 18, i) != expected[i];
      }
    });
  }
  callers.emplace_back([&] {
    for (int round = 0; round < 50; ++round) {
      shared.set_profiling(round % 2 == 0);
      for (size_t step = 0; step < shared.step_count(); ++step) wrong += !(shared.step(step).ms >= 0);
      wrong += shared.workspace(64, 64) == 0 || model->macs(64, 64) <= 0;
    }
  });
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0, "%d results differ", wrong.load());
}

void test_fork() {
  where = "fork";
  if (kSanitized) return;  // ThreadSanitizer takes no new threads after a fork
  Engine engine(parse(small_files::resnet_file()), with_threads(3));
  const std::vector<float> expected = run(engine, 1, 40, 24, 3);
  const pid_t child = fork();
  if (child == 0) {
    Engine used = std::move(engine);
    const bool same = run(used, 1, 40, 24, 3) == expected && run(used, 1, 40, 24, 3) == expected;
    _exit(same ? 0 : 1);
  }
  const pid_t idle = fork();
  if (idle == 0) {
    {
      Engine gone = std::move(engine);
    }
    _exit(0);
  }
  for (const pid_t process : {child, idle}) {
    int status = -1;
    waitpid(process, &status, 0);
    CHECK(status == 0, "a child ended with %d", status);
  }
  CHECK(run(engine, 1, 40, 24, 3) == expected, "the parent");
}

void expect(Code code, const std::string& text, const std::function<void()>& call) {
  try {
    call();
    CHECK(false, "no error; expected '%s'", text.c_str());
  } catch (const EngineError& error) {
    CHECK(error.code() == code, "code %d: %s", static_cast<int>(error.code()), error.what());
    CHECK(std::string(error.what()).find(text) != std::string::npos, "'%s', expected '%s'", error.what(), text.c_str());
  }
}

void test_errors() {
  where = "errors";
  const std::shared_ptr<const Model> model = parse(small_files::resnet_file());
  Engine engine(model, with_threads(2));
  const std::vector<float> before = run(engine, 1, 16, 16, 1);
  std::vector<float> x(4 * 32 * 32), y(4 * 32 * 32);
  const auto runs = [&](const float* from, float* to, int64_t n, int64_t height, int64_t width) {
    return [&engine, from, to, n, height, width] { engine.run(from, to, n, height, width); };
  };
  expect(Code::invalid_argument, "n=0: expected at least 1", runs(x.data(), y.data(), 0, 16, 16));
  expect(Code::invalid_argument, "n=-3", runs(x.data(), y.data(), -3, 16, 16));
  expect(Code::invalid_argument, "got null", runs(nullptr, y.data(), 1, 16, 16));
  expect(Code::invalid_argument, "got null", runs(x.data(), nullptr, 1, 16, 16));
  expect(Code::invalid_argument, "got null", [&] { engine.run(static_cast<const uint8_t*>(nullptr), nullptr, 1, 16, 16); });
  for (const int64_t side : {int64_t{15}, int64_t{0}, int64_t{-16}, int64_t{16385}, INT64_MAX, INT64_MIN}) {
    expect(Code::invalid_argument, "height=" + std::to_string(side) + ": expected 16 to 16384",
           runs(x.data(), y.data(), 1, side, 16));
    expect(Code::invalid_argument, "width=" + std::to_string(side), [&] { engine.workspace(16, side); });
    expect(Code::invalid_argument, "width=" + std::to_string(side), [&] { model->macs(16, side); });
  }
  expect(Code::invalid_argument, "expected below", [&] { engine.step(engine.step_count()); });
  for (const int threads : {-1, 257}) {
    expect(Code::invalid_argument, "threads=" + std::to_string(threads), [&] { Engine(model, with_threads(threads)); });
  }
  expect(Code::invalid_argument, "model: null", [] { Engine(nullptr); });
  expect(Code::invalid_argument, "isa='mmx': this build on this processor has",
         [] { parse(small_files::resnet_file(), "mmx"); });
  expect(Code::invalid_argument, "precision=int8: needs 8-bit dot products",
         [] { parse(small_files::resnet_file(), "portable", gancomp::Precision::int8); });
  Engine labelled(parse(small_files::spade_file()), with_threads(2));
  std::vector<int32_t> maps(2 * 32 * 32, 2);
  const auto of_labels = [&] { labelled.run_labels(maps.data(), y.data(), 1, 32, 32); };
  of_labels();
  for (const int32_t wrong : {3, -1, INT32_MAX, INT32_MIN}) {
    maps[777] = wrong;
    expect(Code::invalid_argument, "x: has labels that the network does not know; expected 0 to 2", of_labels);
  }
  std::fill(x.begin(), x.end(), 1.0f);
  expect(Code::invalid_argument, "x: expected the one-hot image", [&] { labelled.run(x.data(), y.data(), 1, 32, 32); });
  const std::vector<uint8_t> bytes(4 * 32 * 32);
  std::vector<uint8_t> photo(4 * 32 * 32);
  expect(Code::invalid_argument, "x: expected a label map", [&] { labelled.run(bytes.data(), photo.data(), 1, 32, 32); });
  expect(Code::invalid_argument, "takes no label maps", [&] { engine.run_labels(maps.data(), y.data(), 1, 16, 16); });
  expect(Code::invalid_argument, "got null", [&] { labelled.run_labels(nullptr, y.data(), 1, 32, 32); });
  expect(Code::file, "nowhere.safetensors", [] { Model::load("/nowhere.safetensors"); });
  expect(Code::format, "model", [] { Model::parse("", 0); });
  CHECK(run(engine, 1, 16, 16, 1) == before, "the engine goes on after errors");
}

// In a process of its own that may take 1 GB.
void test_too_little_memory() {
  where = "memory";
  if (kSanitized) return;  // their shadow memory is larger than any limit
  const pid_t child = fork();
  if (child == 0) {
    Engine engine(parse(small_files::unet_file()), with_threads(1));
    const std::vector<float> before = run(engine, 1, 32, 32, 2);
    std::vector<uint8_t> x(2 * 8192 * 8192), y(3 * 8192 * 8192);
    const rlimit limit{1u << 30, 1u << 30};
    setrlimit(RLIMIT_AS, &limit);
    if (engine.workspace(8192, 8192) > limit.rlim_cur) {
      expect(Code::memory, "not enough memory for images of 8192x8192", [&] { engine.run(x.data(), y.data(), 1, 8192, 8192); });
    } else {
      CHECK(false, "the image is too small for this test");
    }
    CHECK(run(engine, 1, 32, 32, 2) == before, "the engine goes on after it");
    std::fflush(stdout);
    _exit(failures);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(status == 0, "the child ended with %d", status);
}

}  // namespace

int main() {
  test_memory();
  test_ownership();
  test_threads();
  test_fork();
  test_errors();
  test_too_little_memory();
  return report();
}
