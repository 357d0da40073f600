// Depthwise 3x3 with reflection padding as an op of its own.
#include "depthwise.cuh"

namespace gancomp::cuda {
namespace {

constexpr int kThreads = 256;

// The strip of a thread: blocks_per_plane blocks work on a plane.
struct Strip {
  int plane, top, column;
  bool exists;
};

__device__ inline Strip strip_of(int h, int w) {
  const int blocks = (strips_of(h, w) + kThreads - 1) / kThreads;
  const int strip = blockIdx.x % blocks * kThreads + threadIdx.x;
  return {static_cast<int>(blockIdx.x / blocks), strip / w * kStripRows, strip % w, strip < strips_of(h, w)};
}

template <typename T>
__device__ inline void write_strip(T* plane, int h, int w, const Strip& strip, const float (&values)[kStripRows]) {
#pragma unroll
  for (int r = 0; r < kStripRows; ++r) {
    if (strip.top + r < h) plane[(strip.top + r) * w + strip.column] = from_float<T>(values[r]);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) reflect_pad_depthwise_conv3x3_kernel(ReflectPadDepthwiseConv3x3 p) {
  const Strip strip = strip_of(p.h, p.w);
  const int n = strip.plane / p.channels.most, c = strip.plane % p.channels.most;
  if (!strip.exists || c >= active(p.channels)) return;
  float taps[9], values[kStripRows];
  read_filter<T>(p.weight, c, taps);
  correlate_strip(plane_of<T>(p.x, n, c), taps, p.h, p.w, strip.top, strip.column, values);
  const float bias = p.bias.data == nullptr ? 0.0f : read_parameter<T>(p.bias, c);
#pragma unroll
  for (int r = 0; r < kStripRows; ++r) values[r] += bias;
  write_strip(plane_of<T>(p.y, n, c), p.h, p.w, strip, values);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    reflect_pad_depthwise_conv3x3_backward_input_kernel(ReflectPadDepthwiseConv3x3Backward p) {
  const Strip strip = strip_of(p.h, p.w);
  const int n = strip.plane / p.channels.most, c = strip.plane % p.channels.most;
  if (!strip.exists || c >= active(p.channels)) return;
  float taps[9], values[kStripRows];
  read_filter<T>(p.weight, c, taps);
  adjoint_strip(plane_of<T>(p.grad, n, c), taps, p.h, p.w, strip.top, strip.column, values);
  write_strip(plane_of<T>(p.grad_x, n, c), p.h, p.w, strip, values);
}

// A block per plane: what it adds to the nine taps and the bias, to partials [10, N, C].
template <typename T>
__global__ void __launch_bounds__(kThreads)
    reflect_pad_depthwise_conv3x3_backward_weight_kernel(ReflectPadDepthwiseConv3x3Backward p) {
  GANCOMP_SHARED(shared);
  const int n = blockIdx.x / p.channels.most, c = blockIdx.x % p.channels.most;
  if (c >= active(p.channels)) return;
  const T *x = plane_of<T>(p.x, n, c), *grad = plane_of<T>(p.grad, n, c);
  float sums[10] = {};
  for (int strip = threadIdx.x; strip < strips_of(p.h, p.w); strip += kThreads) {
    const int column = strip % p.w;
    const auto gradient = [&](int row) {
      const float g = to_float(grad[row * p.w + column]);
      sums[9] += g;
      return g;
    };
    add_filter_gradient(x, p.h, p.w, strip / p.w * kStripRows, column, gradient, sums);
  }
  block_sum(sums, reinterpret_cast<float*>(shared));
  if (threadIdx.x != 0) return;
  float* partials = static_cast<float*>(p.workspace) + blockIdx.x;
#pragma unroll
  for (int k = 0; k < 10; ++k) partials[static_cast<int64_t>(k) * p.images * p.channels.most] = sums[k];
}

dim3 strip_grid(int images, int channels, int h, int w) {
  return dim3(static_cast<unsigned>(images) * channels * static_cast<unsigned>(ceil_div(strips_of(h, w), kThreads)));
}

}  // namespace

const char* reflect_pad_depthwise_conv3x3(const ReflectPadDepthwiseConv3x3& p, void* stream) {
  return with_type(p.dtype, [&](auto type) {
    return launch(reflect_pad_depthwise_conv3x3_kernel<decltype(type)>, strip_grid(p.images, p.channels.most, p.h, p.w),
                  kThreads, 0, stream, p);
  });
}

int64_t reflect_pad_depthwise_conv3x3_backward_workspace(const ReflectPadDepthwiseConv3x3Backward& p) {
  const bool wanted = p.grad_weight.data != nullptr || p.grad_bias.data != nullptr;
  return wanted ? 10 * static_cast<int64_t>(p.images) * p.channels.most * static_cast<int64_t>(sizeof(float)) : 0;
}

const char* reflect_pad_depthwise_conv3x3_backward(const ReflectPadDepthwiseConv3x3Backward& p, void* stream) {
  const dim3 planes(static_cast<unsigned>(p.images) * p.channels.most);
  const bool sums = reflect_pad_depthwise_conv3x3_backward_workspace(p) > 0;
  const char* error = with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const char* failed = nullptr;
    if (p.grad_x.data != nullptr) {
      failed = launch(reflect_pad_depthwise_conv3x3_backward_input_kernel<T>, strip_grid(p.images, p.channels.most, p.h, p.w),
                      kThreads, 0, stream, p);
    }
    if (failed != nullptr || !sums) return failed;
    return launch(reflect_pad_depthwise_conv3x3_backward_weight_kernel<T>, planes, kThreads, 10 * kSumScratch, stream, p);
  });
  const float* partials = static_cast<const float*>(p.workspace);
  if (error == nullptr && p.grad_weight.data != nullptr) {
    error = sum_images({partials, p.channels, p.images, 9, p.grad_weight}, p.dtype, stream);
  }
  if (error == nullptr && p.grad_bias.data != nullptr) {
    error = sum_images({partials + 9 * static_cast<int64_t>(p.images) * p.channels.most, p.channels, p.images, 1, p.grad_bias},
                       p.dtype, stream);
  }
  return error;
}

}  // namespace gancomp::cuda
