// CUDA's language for a C++ compiler, as far as csrc/cuda uses it: with GANCOMP_EMULATION the kernels are functions that run on
// the CPU, a fiber per thread of a block. For tests of what kernels compute, where there is no GPU.
//
// Strict where a GPU is not: shared memory begins as NaN in every block and ends at a fence; the first or the last warps run as
// far ahead of the others as barriers allow, or all evenly, as a test chooses, so that a missing barrier shows; a barrier that
// not all threads of a block (a warp) reach is an error, and so is an access beyond the memory a test has fenced
// (emulation.cpp).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define GANCOMP_SHARED(name) unsigned char* name = emulation::shared_memory()

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned width = 1, unsigned height = 1, unsigned depth = 1) : x(width), y(height), z(depth) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

// --- numbers of 16 bits, rounded to nearest, ties to even ------------------------------------------------------------

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float __bfloat162float(__nv_bfloat16 value) { return __uint_as_float(static_cast<uint32_t>(value.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const uint32_t bits = __float_as_uint(value);
  if (std::isnan(value)) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  const float magnitude = exponent == 31  ? (fraction == 0 ? INFINITY : NAN)
                          : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                          : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  return value.bits & 0x8000 ? -magnitude : magnitude;
}
inline __half __float2half_rn(float value) {
  const uint16_t sign = static_cast<uint16_t>(__float_as_uint(value) >> 16 & 0x8000);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return {0x7fff};
  if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (magnitude < std::ldexp(1.0f, -14)) {
    return {static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(magnitude, 24))))};
  }
  const int exponent = std::ilogb(magnitude);
  // A fraction that is rounded up to 1024 goes over into the exponent.
  const int fraction = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent))) - 1024;
  return {static_cast<uint16_t>(sign | ((exponent + 15) * 1024 + fraction))};
}

template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}

// --- the thread that runs now ----------------------------------------------------------------------------------------

namespace emulation {

extern dim3 thread_index, block_index, block_size, grid_size;

unsigned char* shared_memory();

// Runs every thread of every block; null, or what went wrong.
const char* launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);

void wait_for_block();

// What all lanes of the warp gave, in their order: `words` each.
const uint32_t* exchange(int kind, const uint32_t* given, int words);
void release_exchange();

inline uint32_t round_to_tf32(float value) {
  const uint32_t bits = __float_as_uint(value);
  return std::isfinite(value) ? (bits + 0x1000u) & ~0x1fffu : bits;  // to nearest, ties away from zero
}

template <int kPerWord, typename Unpack>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Unpack& unpack) {
  const uint32_t given[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const uint32_t* all = exchange(1, given, 6);
  const int lane = static_cast<int>(thread_index.x % 32), group = lane / 4, quad = lane % 4;
  for (int out = 0; out < 4; ++out) {
    const int row = group + out / 2 * 8, column = 2 * quad + out % 2;
    float total = d[out];
    for (int word = 0; word < 8; ++word) {
      const uint32_t left = all[(row % 8 * 4 + word % 4) * 6 + row / 8 + word / 4 * 2];
      const uint32_t right = all[(column * 4 + word % 4) * 6 + 4 + word / 4];
      for (int k = 0; k < kPerWord; ++k) total += unpack(left, k) * unpack(right, k);
    }
    d[out] = total;
  }
  release_exchange();
}

}  // namespace emulation

#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define blockDim emulation::block_size
#define gridDim emulation::grid_size

inline void __syncthreads() { emulation::wait_for_block(); }

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  const uint32_t given = __float_as_uint(value);
  const float other = __uint_as_float(emulation::exchange(0, &given, 1)[(threadIdx.x % 32) ^ static_cast<unsigned>(mask)]);
  emulation::release_exchange();
  return other;
}
