// InstanceNorm, ReLU and residual addition over planes that stay in cache between the passes.
#include <cmath>

#include "kernels.h"

namespace gancomp::GANCOMP_ISA_NAME {
namespace {

// Sums are in double, as PyTorch has them: lanes of float32 lose digits that a large mean or a cancelling sum needs.
double sum(const float* GANCOMP_RESTRICT x, int64_t size) {
  double total = 0;
  GANCOMP_SIMD_SUM(total)
  for (int64_t i = 0; i < size; ++i) total += static_cast<double>(x[i]);
  return total;
}

// Sum of squared distances from the mean: a second pass instead of E[x^2] - E[x]^2, which cancels.
double sum_squares(const float* GANCOMP_RESTRICT x, int64_t size, float mean) {
  double total = 0;
  GANCOMP_SIMD_SUM(total)
  for (int64_t i = 0; i < size; ++i) {
    const double distance = static_cast<double>(x[i] - mean);
    total += distance * distance;
  }
  return total;
}

template <bool kRelu, bool kResidual>
void normalise(const float* GANCOMP_RESTRICT x, const float* GANCOMP_RESTRICT residual, float* GANCOMP_RESTRICT y, int64_t size,
               float mean, float scale, float shift) {
  GANCOMP_SIMD
  for (int64_t i = 0; i < size; ++i) {
    float value = (x[i] - mean) * scale + shift;
    if (kRelu) value = value < 0.0f ? 0.0f : value;  // keeps a NaN
    y[i] = kResidual ? value + residual[i] : value;
  }
}

void forward_plane(const InstanceNormActParams& p, int64_t n, int64_t c) {
  const int64_t size = p.x.plane_size();
  const float* x = p.x.plane(n, c);
  const float mean = static_cast<float>(sum(x, size) / static_cast<double>(size));
  const double variance = sum_squares(x, size, mean) / static_cast<double>(size);
  const float rstd = static_cast<float>(1.0 / std::sqrt(variance + static_cast<double>(p.eps)));
  p.mean[n * p.x.c + c] = mean;
  p.rstd[n * p.x.c + c] = rstd;
  const float scale = p.weight == nullptr ? rstd : rstd * p.weight[c];
  const float shift = p.bias == nullptr ? 0.0f : p.bias[c];
  const float* residual = p.residual.data == nullptr ? nullptr : p.residual.plane(n, c);
  float* y = p.y.plane(n, c);
  if (p.relu) {
    residual ? normalise<true, true>(x, residual, y, size, mean, scale, shift)
             : normalise<true, false>(x, nullptr, y, size, mean, scale, shift);
  } else {
    residual ? normalise<false, true>(x, residual, y, size, mean, scale, shift)
             : normalise<false, false>(x, nullptr, y, size, mean, scale, shift);
  }
}

struct GradientSums {
  double grad = 0;       // sum of g
  double grad_xhat = 0;  // sum of g * xhat
};

// g = grad where the activation let the value through, else 0. The value is computed as in the forward pass, to the bit, so
// that both passes agree on which side of zero it lies.
template <bool kRelu>
float through(float grad, float centred, float scale, float shift) {
  return !kRelu || centred * scale + shift > 0.0f ? grad : 0.0f;
}

template <bool kRelu>
GradientSums gradient_sums(const float* GANCOMP_RESTRICT grad, const float* GANCOMP_RESTRICT x, int64_t size, float mean,
                           float rstd, float scale, float shift) {
  double sum_g = 0, sum_gx = 0;
  GANCOMP_SIMD_SUM(sum_g, sum_gx)
  for (int64_t i = 0; i < size; ++i) {
    const float centred = x[i] - mean;
    const double g = static_cast<double>(through<kRelu>(grad[i], centred, scale, shift));
    sum_g += g;
    sum_gx += g * static_cast<double>(centred * rstd);
  }
  return {sum_g, sum_gx};
}

template <bool kRelu>
void gradient(const float* GANCOMP_RESTRICT grad, const float* GANCOMP_RESTRICT x, float* GANCOMP_RESTRICT grad_x, int64_t size,
              float mean, float rstd, float scale, float shift, float mean_g, float mean_gx) {
  GANCOMP_SIMD
  for (int64_t i = 0; i < size; ++i) {
    const float centred = x[i] - mean;
    grad_x[i] = scale * (through<kRelu>(grad[i], centred, scale, shift) - mean_g - centred * rstd * mean_gx);
  }
}

template <bool kRelu>
GradientSums backward_plane(const InstanceNormActBackwardParams& p, int64_t n, int64_t c) {
  const int64_t size = p.x.plane_size();
  const float mean = p.mean[n * p.x.c + c], rstd = p.rstd[n * p.x.c + c];
  const float scale = p.weight == nullptr ? rstd : rstd * p.weight[c];
  const float shift = p.bias == nullptr ? 0.0f : p.bias[c];
  const float *grad = p.grad.plane(n, c), *x = p.x.plane(n, c);
  const GradientSums sums = gradient_sums<kRelu>(grad, x, size, mean, rstd, scale, shift);
  const double count = static_cast<double>(size);
  gradient<kRelu>(grad, x, p.grad_x.plane(n, c), size, mean, rstd, scale, shift, static_cast<float>(sums.grad / count),
                  static_cast<float>(sums.grad_xhat / count));
  return sums;
}

}  // namespace

void instance_norm_act(const InstanceNormActParams& p, const Executor& executor) {
  executor.parallel_for(p.x.n * p.x.c, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) forward_plane(p, i / p.x.c, i % p.x.c);
  });
}

void instance_norm_act_backward(const InstanceNormActBackwardParams& p, const Executor& executor) {
  const auto plane = p.relu ? backward_plane<true> : backward_plane<false>;
  if (p.grad_weight == nullptr && p.grad_bias == nullptr) {
    executor.parallel_for(p.x.n * p.x.c, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) plane(p, i / p.x.c, i % p.x.c);
    });
    return;
  }
  // One task owns a channel in all images, so that the sums over images are in a fixed order.
  executor.parallel_for(p.x.c, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      GradientSums total;
      for (int64_t n = 0; n < p.x.n; ++n) {
        const GradientSums sums = plane(p, n, c);
        total.grad += sums.grad;
        total.grad_xhat += sums.grad_xhat;
      }
      if (p.grad_weight != nullptr) p.grad_weight[c] = static_cast<float>(total.grad_xhat);
      if (p.grad_bias != nullptr) p.grad_bias[c] = static_cast<float>(total.grad);
    }
  });
}

}  // namespace gancomp::GANCOMP_ISA_NAME
