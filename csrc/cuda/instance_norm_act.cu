// InstanceNorm with ReLU and residual: a block owns a plane, so nothing crosses blocks.
#include "common.cuh"

namespace gancomp::cuda {
namespace {

// value = (x - guess) * scale + shift, the shift holding what float32 lost of the mean.
struct Line {
  float guess, lost, rstd, scale, shift;
};

template <typename T>
__device__ inline Line line_of(const Moments& m, const Parameter& weight, const Parameter& bias, int c) {
  const float scale = weight.data == nullptr ? m.rstd : m.rstd * read_parameter<T>(weight, c);
  const float shift = bias.data == nullptr ? 0.0f : read_parameter<T>(bias, c);
  return {m.guess, m.lost, m.rstd, scale, fmaf(-m.lost, scale, shift)};
}

template <typename T, int kVec, bool kKept>
__global__ void __launch_bounds__(kMostThreads) instance_norm_act_kernel(InstanceNormAct p) {
  GANCOMP_SHARED(shared);
  const int n = blockIdx.x / p.channels.most, c = blockIdx.x % p.channels.most;
  if (c >= active(p.channels)) return;
  const Pixels<T, kVec, kKept> pixels(plane_of<T>(p.x, n, c), p.pixels);
  const Moments moments = plane_moments(pixels, p.eps, reinterpret_cast<float*>(shared));
  if (threadIdx.x == 0) {
    p.mean[blockIdx.x] = moments.mean();
    p.rstd[blockIdx.x] = moments.rstd;
  }
  const Line line = line_of<T>(moments, p.weight, p.bias, c);
  const T* residual = p.residual.data == nullptr ? nullptr : plane_of<T>(p.residual, n, c);
  T* y = plane_of<T>(p.y, n, c);
  pixels.each([&](int start, float (&values)[kVec]) {
    float added[kVec] = {};
    if (residual != nullptr) load<kVec>(residual + start, added);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      float value = fmaf(values[j] - line.guess, line.scale, line.shift);
      if (p.relu) value = value < 0.0f ? 0.0f : value;  // keeps a NaN
      values[j] = value + added[j];
    }
    store<kVec>(y + start, values);
  });
}

template <typename T, int kVec, bool kKept>
__global__ void __launch_bounds__(kMostThreads) instance_norm_act_backward_kernel(InstanceNormActBackward p) {
  GANCOMP_SHARED(shared);
  const int n = blockIdx.x / p.channels.most, c = blockIdx.x % p.channels.most;
  if (c >= active(p.channels)) return;
  const Line line = line_of<T>(known_moments(p.mean[blockIdx.x], p.rstd[blockIdx.x]), p.weight, p.bias, c);
  const T* grad = plane_of<T>(p.grad, n, c);
  T* grad_x = plane_of<T>(p.grad_x, n, c);
  const Pixels<T, kVec, kKept> pixels(plane_of<T>(p.x, n, c), p.pixels);
  // The value is computed as in the forward pass, so that both agree on which side of zero it lies.
  const auto through = [&](int start, float (&centred)[kVec], float (&gradient)[kVec]) {
    load<kVec>(grad + start, gradient);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      centred[j] -= line.guess;
      if (p.relu && !(fmaf(centred[j], line.scale, line.shift) > 0.0f)) gradient[j] = 0.0f;
      centred[j] -= line.lost;
    }
  };
  float sums[2] = {0, 0};  // of the gradient g, and of g * (x - mean)
  pixels.each([&](int start, float (&values)[kVec]) {
    float gradient[kVec];
    through(start, values, gradient);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      sums[0] += gradient[j];
      sums[1] += gradient[j] * values[j];
    }
  });
  block_sum(sums, reinterpret_cast<float*>(shared));
  sums[1] *= line.rstd;
  if (threadIdx.x == 0 && p.workspace != nullptr) {
    float* partials = static_cast<float*>(p.workspace);
    partials[blockIdx.x] = sums[1];
    partials[blockIdx.x + p.images * p.channels.most] = sums[0];
  }
  const float offset = sums[0] / static_cast<float>(p.pixels), slope = sums[1] / static_cast<float>(p.pixels) * line.rstd;
  pixels.each([&](int start, float (&values)[kVec]) {
    float gradient[kVec];
    through(start, values, gradient);
#pragma unroll
    for (int j = 0; j < kVec; ++j) values[j] = line.scale * (gradient[j] - offset - values[j] * slope);
    store<kVec>(grad_x + start, values);
  });
}

template <typename T>
__global__ void __launch_bounds__(256) sum_images_kernel(SumImages p) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (at >= p.gradient.size) return;
  const int64_t channel = at / p.terms;
  const int term = static_cast<int>(at % p.terms);
  float total = 0;
  if (channel < active(p.channels)) {
    const float* partial = p.partials + static_cast<int64_t>(term) * p.images * p.channels.most + channel;
    for (int n = 0; n < p.images; ++n) total += partial[static_cast<int64_t>(n) * p.channels.most];
  }
  write_gradient<T>(p.gradient, at, total);
}

// run(kernel variant): 16-byte accesses where `vectors`, pixels in registers where they fit.
template <typename T, typename Function>
const char* with_variant(bool vectors, int pixels, const Function& run) {
  using std::integral_constant;
  const auto with_kept = [&](auto vec) {
    return plane_is_kept(pixels) ? run(vec, std::true_type{}) : run(vec, std::false_type{});
  };
  return vectors ? with_kept(integral_constant<int, kVector<T>>{}) : with_kept(integral_constant<int, 1>{});
}

}  // namespace

const char* sum_images(const SumImages& params, Dtype dtype, void* stream) {
  return with_type(dtype, [&](auto type) {
    return launch(sum_images_kernel<decltype(type)>, dim3(ceil_div(params.gradient.size, 256)), 256, 0, stream, params);
  });
}

const char* instance_norm_act(const InstanceNormAct& p, void* stream) {
  const dim3 grid(static_cast<unsigned>(p.images) * p.channels.most);
  return with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const bool vectors = vectors_fit<T>(p.x, p.pixels) && vectors_fit<T>(p.residual, p.pixels) && vectors_fit<T>(p.y, p.pixels);
    return with_variant<T>(vectors, p.pixels, [&](auto vec, auto kept) {
      return launch(instance_norm_act_kernel<T, decltype(vec)::value, decltype(kept)::value>, grid, plane_threads(p.pixels),
                    2 * kSumScratch, stream, p);
    });
  });
}

int64_t instance_norm_act_backward_workspace(const InstanceNormActBackward& p) {
  const bool wanted = p.grad_weight.data != nullptr || p.grad_bias.data != nullptr;
  return wanted ? 2 * static_cast<int64_t>(p.images) * p.channels.most * static_cast<int64_t>(sizeof(float)) : 0;
}

const char* instance_norm_act_backward(const InstanceNormActBackward& params, void* stream) {
  InstanceNormActBackward p = params;
  if (instance_norm_act_backward_workspace(p) == 0) p.workspace = nullptr;
  const dim3 grid(static_cast<unsigned>(p.images) * p.channels.most);
  const char* error = with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const bool vectors =
        vectors_fit<T>(p.x, p.pixels) && vectors_fit<T>(p.grad, p.pixels) && vectors_fit<T>(p.grad_x, p.pixels);
    return with_variant<T>(vectors, p.pixels, [&](auto vec, auto kept) {
      return launch(instance_norm_act_backward_kernel<T, decltype(vec)::value, decltype(kept)::value>, grid,
                    plane_threads(p.pixels), 2 * kSumScratch, stream, p);
    });
  });
  const float* partials = static_cast<const float*>(p.workspace);
  if (error == nullptr && p.grad_weight.data != nullptr) {
    error = sum_images({partials, p.channels, p.images, 1, p.grad_weight}, p.dtype, stream);
  }
  if (error == nullptr && p.grad_bias.data != nullptr) {
    error = sum_images({partials + static_cast<int64_t>(p.images) * p.channels.most, p.channels, p.images, 1, p.grad_bias},
                       p.dtype, stream);
  }
  return error;
}

}  // namespace gancomp::cuda
