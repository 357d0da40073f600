// Kernels with the faults that the emulation must notice, and one without.
#include "mma.cuh"

namespace gancomp::cuda {
namespace {

struct Numbers {
  float* data;
  int size;
};

// Every thread takes its neighbour's number: through shared memory, without a barrier.
__global__ void no_barrier_kernel(Numbers p) {
  GANCOMP_SHARED(shared);
  float* numbers = reinterpret_cast<float*>(shared);
  numbers[threadIdx.x] = p.data[threadIdx.x];
  p.data[threadIdx.x] = numbers[threadIdx.x ^ 1];
}

__global__ void barrier_kernel(Numbers p) {
  GANCOMP_SHARED(shared);
  float* numbers = reinterpret_cast<float*>(shared);
  numbers[threadIdx.x] = p.data[threadIdx.x];
  __syncthreads();
  p.data[threadIdx.x] = numbers[threadIdx.x ^ 1];
}

__global__ void half_a_barrier_kernel(Numbers p) {
  if (threadIdx.x < 40) __syncthreads();
  p.data[threadIdx.x] = 0;
}

__global__ void half_a_warp_kernel(Numbers p) {
  if (threadIdx.x % 32 < 16) p.data[threadIdx.x] = __shfl_xor_sync(0xffffffffu, p.data[threadIdx.x], 1);
}

__global__ void reads_beyond_kernel(Numbers p) { p.data[threadIdx.x] = p.data[threadIdx.x + p.size - 63]; }

__global__ void shared_beyond_kernel(Numbers p) {
  GANCOMP_SHARED(shared);
  reinterpret_cast<float*>(shared)[threadIdx.x + 1] = p.data[threadIdx.x];
}

// The product of data[0:256] (16 x 16, row-major) and data[256:384] (16 x 8) over data[384:512], all in `T`; 32 threads.
template <typename Compute>
__global__ void multiply_kernel(Numbers p) {
  constexpr int kDepth = 8 * Compute::kPerWord;
  const int lane = threadIdx.x, group = lane / 4, quad = lane % 4;
  const auto left = [&](int row, int word) {
    const float* at = p.data + row * kDepth + word * Compute::kPerWord;
    if constexpr (Compute::kPerWord == 2) {
      return Compute::pack(at[0], at[1]);
    } else {
      return Compute::pack(at[0]);
    }
  };
  const auto right = [&](int word, int column) {
    const float* at = p.data + 256 + word * Compute::kPerWord * 8 + column;
    if constexpr (Compute::kPerWord == 2) {
      return Compute::pack(at[0], at[8]);
    } else {
      return Compute::pack(at[0]);
    }
  };
  const uint32_t a[4] = {left(group, quad), left(group + 8, quad), left(group, quad + 4), left(group + 8, quad + 4)};
  const uint32_t b[2] = {right(quad, group), right(quad + 4, group)};
  float d[4] = {};
  multiply_add<Compute>(d, a, b);
  for (int i = 0; i < 4; ++i) p.data[384 + (group + i / 2 * 8) * 8 + 2 * quad + i % 2] = d[i];
}

// Rounds data[i] to 16 bits and back, float16 in the first half of the threads' numbers and bfloat16 in the second.
__global__ void round_kernel(Numbers p) {
  for (int i = threadIdx.x; i < p.size; i += blockDim.x) {
    p.data[i] = i < p.size / 2 ? to_float(from_float<Half>(p.data[i])) : to_float(from_float<Bfloat16>(p.data[i]));
  }
}

}  // namespace
}  // namespace gancomp::cuda

extern "C" const char* faulty(int kind, float* data, int size) {
  using namespace gancomp::cuda;
  void (*const kernels[])(Numbers) = {
      barrier_kernel,        no_barrier_kernel,    half_a_barrier_kernel,         half_a_warp_kernel,
      reads_beyond_kernel,   shared_beyond_kernel, multiply_kernel<Halves<Half>>, multiply_kernel<Halves<Bfloat16>>,
      multiply_kernel<Tf32>, round_kernel};
  return launch(kernels[kind], dim3(1), kind >= 6 && kind <= 8 ? 32 : 64, 64 * sizeof(float), nullptr, Numbers{data, size});
}
