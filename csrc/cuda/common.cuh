// What every CUDA source shares: number types, loads and stores of pixels, sums over a block, launches.
//
// Sources of this folder include CUDA's headers alone and hold their state in arguments and shared memory. With
// GANCOMP_EMULATION they are plain C++ (tests/cuda/emulation.h), which is how they are tested without a GPU.
#pragma once

#ifdef GANCOMP_EMULATION
#include "emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// The block's dynamic shared memory: the only kind in use, since its size is then in one place, the launch.
#define GANCOMP_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "gancomp/cuda_ops.h"

namespace gancomp::cuda {

using Half = __half;
using Bfloat16 = __nv_bfloat16;

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(Half value) { return __half2float(value); }
__device__ inline float to_float(Bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ inline T from_float(float value) {
  if constexpr (std::is_same_v<T, Half>) {
    return __float2half_rn(value);
  } else if constexpr (std::is_same_v<T, Bfloat16>) {
    return __float2bfloat16_rn(value);
  } else {
    return value;
  }
}

// A parameter is float32 (a master weight) or has the type of the image; the branch is the same in all threads.
template <typename T>
__device__ inline float read_parameter(const Parameter& parameter, int64_t index) {
  return parameter.is_float32 ? static_cast<const float*>(parameter.data)[index]
                              : to_float(static_cast<const T*>(parameter.data)[index]);
}

template <typename T>
__device__ inline void write_gradient(const Gradient& gradient, int64_t index, float value) {
  if (gradient.is_float32) {
    static_cast<float*>(gradient.data)[index] = value;
  } else {
    static_cast<T*>(gradient.data)[index] = from_float<T>(value);
  }
}

// How many channels are in use: a number the host knew, or one in device memory, so that a captured graph can be replayed
// with another.
__device__ inline int active(const Channels& channels) {
  return channels.device == nullptr ? channels.most : min(*channels.device, channels.most);
}

// Index of a position in [-pad, size + pad) after reflection at the borders, pad < size.
__device__ inline int reflect(int i, int size) {
  i = i < 0 ? -i : i;
  return i < size ? i : 2 * (size - 1) - i;
}

template <typename T>
__device__ inline const T* plane_of(const ConstPlanes& planes, int64_t n, int64_t c) {
  return static_cast<const T*>(planes.data) + n * planes.stride_n + c * planes.stride_c;
}

template <typename T>
__device__ inline T* plane_of(const Planes& planes, int64_t n, int64_t c) {
  return static_cast<T*>(planes.data) + n * planes.stride_n + c * planes.stride_c;
}

// kVec consecutive pixels: 16 bytes at once, or one.
template <typename T>
constexpr int kVector = 16 / sizeof(T);

template <int kVec, typename T>
__device__ inline void load(const T* from, float (&values)[kVec]) {
  if constexpr (kVec == 1) {
    values[0] = to_float(*from);
  } else {
    static_assert(kVec == kVector<T>);
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    T elements[kVec];
    memcpy(elements, &bits, sizeof(bits));
#pragma unroll
    for (int j = 0; j < kVec; ++j) values[j] = to_float(elements[j]);
  }
}

template <int kVec, typename T>
__device__ inline void store(T* to, const float (&values)[kVec]) {
  if constexpr (kVec == 1) {
    *to = from_float<T>(values[0]);
  } else {
    static_assert(kVec == kVector<T>);
    T elements[kVec];
#pragma unroll
    for (int j = 0; j < kVec; ++j) elements[j] = from_float<T>(values[j]);
    uint4 bits;
    memcpy(&bits, elements, sizeof(bits));
    *reinterpret_cast<uint4*>(to) = bits;
  }
}

// Adds up kCount numbers of all threads of a block; every thread gets the sums. In a fixed order, so that two runs agree to the
// bit. `scratch` holds kCount * 32 floats of shared memory; it may be used again at once.
template <int kCount>
__device__ inline void block_sum(float (&values)[kCount], float* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    for (int offset = 16; offset > 0; offset /= 2) values[k] += __shfl_xor_sync(0xffffffffu, values[k], offset);
  }
  __syncthreads();  // the scratch may still be read
  if (lane == 0) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) scratch[k * 32 + warp] = values[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    float total = 0;
    for (int w = 0; w < warps; ++w) total += scratch[k * 32 + w];
    values[k] = total;
  }
}

// Statistics of a plane: the mean is guess + lost, where `lost` is what float32 cannot hold of it.
struct Moments {
  float guess, lost, variance, rstd;

  __device__ double mean() const { return static_cast<double>(guess) + static_cast<double>(lost); }
  __device__ float normalised(float value) const { return (value - guess - lost) * rstd; }
};

// The split of the mean is a function of its value: what is computed with statistics in the forward pass and with those kept
// for the backward pass agrees to the bit.
__device__ inline Moments known_moments(double mean, float rstd) {
  const float guess = static_cast<float>(mean);
  return {guess, static_cast<float>(mean - static_cast<double>(guess)), 0.0f, rstd};
}

__device__ inline Moments moments_of(double mean, float variance, float eps) {
  Moments m = known_moments(mean, 1.0f / sqrtf(variance + eps));
  m.variance = variance;
  return m;
}

// From sums of d = x - guess and of d * d over `count` pixels.
__device__ inline Moments moments_of(float guess, const float (&sums)[2], int count, float eps) {
  const float lost = sums[0] / static_cast<float>(count), variance = sums[1] / static_cast<float>(count) - lost * lost;
  return moments_of(static_cast<double>(guess) + static_cast<double>(lost), fmaxf(variance, 0.0f), eps);
}

// The pixels of a plane that one thread works on, in pieces of kVec, kept in registers where there are at most kMostKept.
constexpr int kMostKept = 16;

template <typename T, int kVec, bool kKept>
struct Pixels {
  const T* plane;
  int size;
  float kept[kKept ? kMostKept : 1];

  __device__ Pixels(const T* from, int pixels) : plane(from), size(pixels) {
    if constexpr (kKept) {
#pragma unroll
      for (int piece = 0; piece < kMostKept / kVec; ++piece) {
        const int start = (piece * blockDim.x + threadIdx.x) * kVec;
        if (start >= size) continue;
        float values[kVec];
        load<kVec>(plane + start, values);
#pragma unroll
        for (int j = 0; j < kVec; ++j) kept[piece * kVec + j] = values[j];
      }
    }
  }

  // body(start, values) for every piece of this thread.
  template <typename Body>
  __device__ void each(const Body& body) const {
    if constexpr (kKept) {
#pragma unroll
      for (int piece = 0; piece < kMostKept / kVec; ++piece) {
        const int start = (piece * blockDim.x + threadIdx.x) * kVec;
        if (start >= size) continue;
        float values[kVec];
#pragma unroll
        for (int j = 0; j < kVec; ++j) values[j] = kept[piece * kVec + j];
        body(start, values);
      }
    } else {
      for (int start = threadIdx.x * kVec; start < size; start += blockDim.x * kVec) {
        float values[kVec];
        load<kVec>(plane + start, values);
        body(start, values);
      }
    }
  }
};

// Statistics of a plane in two passes; every thread gets them.
template <typename T, int kVec, bool kKept>
__device__ inline Moments plane_moments(const Pixels<T, kVec, kKept>& pixels, float eps, float* scratch) {
  float total[1] = {0};
  pixels.each([&](int, const float (&values)[kVec]) {
#pragma unroll
    for (int j = 0; j < kVec; ++j) total[0] += values[j];
  });
  block_sum(total, scratch);
  const float guess = total[0] / static_cast<float>(pixels.size);
  float sums[2] = {0, 0};
  pixels.each([&](int, const float (&values)[kVec]) {
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const float d = values[j] - guess;
      sums[0] += d;
      sums[1] += d * d;
    }
  });
  block_sum(sums, scratch);
  return moments_of(guess, sums, pixels.size, eps);
}

// --- the host's side -------------------------------------------------------------------------------------------------

// Runs a kernel of one argument; returns null or what went wrong.
template <typename Params>
inline const char* launch(void (*kernel)(Params), dim3 grid, int threads, size_t shared_bytes, void* stream,
                          const Params& params) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return nullptr;
  if (grid.y > 65535 || grid.z > 65535) return "the launch has too many blocks";
#ifdef GANCOMP_EMULATION
  static_cast<void>(stream);
  return emulation::launch(grid, dim3(threads), shared_bytes, [&] { kernel(params); });
#else
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 48 * 1024) {
    error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess) {
    void* arguments[] = {const_cast<Params*>(&params)};
    error = cudaLaunchKernel(function, grid, dim3(threads), arguments, shared_bytes, static_cast<cudaStream_t>(stream));
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#endif
}

// function(T{}) with T the storage type of `dtype`.
template <typename Function>
inline const char* with_type(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::kFloat32:
      return function(float{});
    case Dtype::kFloat16:
      return function(Half{});
    case Dtype::kBfloat16:
      return function(Bfloat16{});
  }
  return "unknown dtype";
}

template <typename T>
inline bool vectors_fit(const ConstPlanes& planes, int64_t pixels) {
  return planes.data == nullptr || (reinterpret_cast<uintptr_t>(planes.data) % 16 == 0 && planes.stride_n % kVector<T> == 0 &&
                                    planes.stride_c % kVector<T> == 0 && pixels % kVector<T> == 0);
}

template <typename T>
inline bool vectors_fit(const Planes& planes, int64_t pixels) {
  return vectors_fit<T>(ConstPlanes{planes.data, planes.stride_n, planes.stride_c}, pixels);
}

inline int64_t element_size(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Threads for a plane: enough that each keeps its pixels in registers, where that is possible at all.
constexpr int kMostThreads = 512;
inline int plane_threads(int64_t pixels) {
  return pixels <= 128 * kMostKept ? 128 : pixels <= 256 * kMostKept ? 256 : kMostThreads;
}
inline bool plane_is_kept(int64_t pixels) { return pixels <= kMostThreads * kMostKept; }

constexpr size_t kSumScratch = 32 * sizeof(float);

// partials [terms, images, channels.most] -> gradient [size / terms, terms]: sums over the images in order, zero beyond the
// channels in use. The last kernel of every gradient of a parameter that belongs to a channel.
struct SumImages {
  const float* partials;
  Channels channels;
  int images, terms;
  Gradient gradient;
};
const char* sum_images(const SumImages& params, Dtype dtype, void* stream);

}  // namespace gancomp::cuda
