// What the tests of kernels share: tensors between fences, tolerances from data, executors, a count of allocations.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "gancomp/ops.h"

// The tests of other files, on the kernels of one instruction set.
void test_separable_resblocks(const gancomp::CpuKernels& kernels);
void test_spade_modulations(const gancomp::CpuKernels& kernels);
void test_winograd_convs(const gancomp::CpuKernels& kernels);

inline std::atomic<int64_t> allocations{0};  // counted by operator new in test_kernels.cpp

using gancomp::ConstImages;
using gancomp::CpuKernels;
using gancomp::Executor;
using gancomp::Images;

// A NaN of its own, so that a fence is told from NaN that arithmetic or the poison below makes.
constexpr uint32_t kFence = 0x7fc0beef;
constexpr int64_t kGuard = 64;
const float kPoison = std::numeric_limits<float>::quiet_NaN();

inline float fence() {
  float value;
  std::memcpy(&value, &kFence, sizeof(value));
  return value;
}

inline bool is_fence(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits == kFence;
}

// [N, C, H, W] as the first channels of a wider tensor, fences round it and in its inactive channels. A vector of C numbers
// per image is the case H = W = 1.
struct Planes {
  int64_t n, c, h, w, wide, offset;
  std::vector<float> memory;

  Planes(int64_t n, int64_t c, int64_t h, int64_t w, int64_t spare, int64_t misaligned, float value)
      : n(n),
        c(c),
        h(h),
        w(w),
        wide(c + spare),
        offset(kGuard + misaligned),
        memory(2 * kGuard + misaligned + n * wide * h * w, fence()) {
    each([&](int64_t, float& element) { element = value; });
  }

  template <typename T>
  gancomp::PlanarView<T> as() {
    return {memory.data() + offset, n, c, h, w, wide * h * w, h * w};
  }
  ConstImages view() { return as<const float>(); }
  Images writable() { return as<float>(); }
  float* data() { return memory.data() + offset; }
  int64_t size() const { return n * c * h * w; }

  // Calls function(dense index, element) for the active elements.
  template <typename Function>
  void each(Function&& function) {
    int64_t index = 0;
    for (int64_t image = 0; image < n; ++image) {
      float* begin = data() + image * wide * h * w;
      for (int64_t i = 0; i < c * h * w; ++i) function(index++, begin[i]);
    }
  }

  std::vector<float> dense() {
    std::vector<float> values(static_cast<size_t>(size()));
    each([&](int64_t i, float& element) { values[static_cast<size_t>(i)] = element; });
    return values;
  }

  void check_fences(const char* name) {
    int64_t intact = 0;
    for (float value : memory) intact += is_fence(value);
    CHECK(intact == static_cast<int64_t>(memory.size()) - size(), "%s: %lld elements round it were written to", name,
          static_cast<long long>(static_cast<int64_t>(memory.size()) - size() - intact));
  }
};

inline Planes random_planes(int64_t n, int64_t c, int64_t h, int64_t w, int64_t spare, int64_t misaligned, uint32_t seed,
                            float mean = 0) {
  Planes planes(n, c, h, w, spare, misaligned, 0.0f);
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(mean, 1.0f);
  planes.each([&](int64_t, float& element) { element = normal(engine); });
  return planes;
}

inline void check_accurate(const std::vector<float>& actual, const std::vector<float>& naive, const std::vector<double>& exact,
                           const char* name) {
  double error = 0, naive_error = 0, largest = 0;
  bool finite = true;
  for (size_t i = 0; i < exact.size(); ++i) {
    finite = finite && std::isfinite(actual[i]);
    error = std::max(error, std::abs(static_cast<double>(actual[i]) - exact[i]));
    naive_error = std::max(naive_error, std::abs(static_cast<double>(naive[i]) - exact[i]));
    largest = std::max(largest, std::abs(exact[i]));
  }
  const double allowed = 2 * naive_error + static_cast<double>(std::numeric_limits<float>::epsilon()) * largest;
  CHECK(finite, "%s holds a NaN or an infinity", name);
  CHECK(error <= allowed, "%s: error %.3g, allowed %.3g", name, error, allowed);
}

// --- executors --------------------------------------------------------------------------------------------------------

// Splits the range over three threads; every piece runs in another thread than the caller's.
inline void run_on_threads(void*, int64_t count, Executor::Task task, void* argument) {
  std::vector<std::thread> threads;
  for (int64_t part = 0; part < 3; ++part) {
    threads.emplace_back([=] { task(argument, count * part / 3, count * (part + 1) / 3); });
  }
  for (std::thread& thread : threads) thread.join();
}

inline const Executor one_thread{};
inline const Executor three_threads{run_on_threads, nullptr};

// Runs `function` and fails where it allocates; for the executor that does not.
template <typename Function>
void without_allocation(Function&& function) {
  const int64_t before = allocations;
  function();
  CHECK(allocations == before, "%lld allocations", static_cast<long long>(allocations - before));
}

struct Shape {
  int64_t n, c, h, w;
};

inline std::string describe(const CpuKernels& kernels, const char* op, const Shape& s, const std::string& variant) {
  return std::string(kernels.isa) + " " + op + " [" + std::to_string(s.n) + ", " + std::to_string(s.c) + ", " +
         std::to_string(s.h) + ", " + std::to_string(s.w) + "] " + variant;
}

inline int64_t reflected(int64_t i, int64_t size) { return i < 0 ? -i : i >= size ? 2 * size - 2 - i : i; }
