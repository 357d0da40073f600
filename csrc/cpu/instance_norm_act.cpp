// InstanceNorm, ReLU and residual addition over planes that stay in cache between the passes.
#include <algorithm>
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

// Sum of squared distances from `mean`: a second pass instead of E[x^2] - E[x]^2, which cancels.
double sum_squares(const float* GANCOMP_RESTRICT x, int64_t size, float mean) {
  double total = 0;
  GANCOMP_SIMD_SUM(total)
  for (int64_t i = 0; i < size; ++i) {
    const double distance = static_cast<double>(x[i] - mean);
    total += distance * distance;
  }
  return total;
}

// What the statistics and parameters of a plane come to: value = (x - mean) * scale + shift. float32 rounds a large mean; the
// shift holds what was lost, at no cost per pixel.
struct Line {
  float mean, scale, shift;
};

Line line(double mean, float rstd, const float* weight, const float* bias, int64_t c) {
  const float rounded = static_cast<float>(mean), scale = weight == nullptr ? rstd : rstd * weight[c];
  const double lost = (mean - static_cast<double>(rounded)) * static_cast<double>(scale);
  return {rounded, scale, static_cast<float>((bias == nullptr ? 0.0 : static_cast<double>(bias[c])) - lost)};
}

template <bool kRelu, bool kResidual>
void normalise(const float* GANCOMP_RESTRICT x, const float* GANCOMP_RESTRICT residual, float* GANCOMP_RESTRICT y, int64_t size,
               const Line& l) {
  const float mean = l.mean, scale = l.scale, shift = l.shift;
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
  const double count = static_cast<double>(size), mean = sum(x, size) / count;
  const double lost = mean - static_cast<double>(static_cast<float>(mean));
  const double variance = sum_squares(x, size, static_cast<float>(mean)) / count - lost * lost;
  const float rstd = static_cast<float>(1.0 / std::sqrt(std::max(variance, 0.0) + static_cast<double>(p.eps)));
  p.mean[n * p.x.c + c] = mean;
  p.rstd[n * p.x.c + c] = rstd;
  const Line l = line(mean, rstd, p.weight, p.bias, c);
  const float* residual = p.residual.data == nullptr ? nullptr : p.residual.plane(n, c);
  float* y = p.y.plane(n, c);
  if (p.relu) {
    residual ? normalise<true, true>(x, residual, y, size, l) : normalise<true, false>(x, nullptr, y, size, l);
  } else {
    residual ? normalise<false, true>(x, residual, y, size, l) : normalise<false, false>(x, nullptr, y, size, l);
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

// Sums of g, and of g * (x - l.mean).
template <bool kRelu>
GradientSums gradient_sums(const float* GANCOMP_RESTRICT grad, const float* GANCOMP_RESTRICT x, int64_t size, const Line& l) {
  const float mean = l.mean, scale = l.scale, shift = l.shift;
  double sum_g = 0, sum_gx = 0;
  GANCOMP_SIMD_SUM(sum_g, sum_gx)
  for (int64_t i = 0; i < size; ++i) {
    const float centred = x[i] - mean;
    const double g = static_cast<double>(through<kRelu>(grad[i], centred, scale, shift));
    sum_g += g;
    sum_gx += g * static_cast<double>(centred);
  }
  return {sum_g, sum_gx};
}

// grad_x = scale * (g - mean of g - xhat * mean of g * xhat), the last two as offset + slope * (x - l.mean).
template <bool kRelu>
void gradient(const float* GANCOMP_RESTRICT grad, const float* GANCOMP_RESTRICT x, float* GANCOMP_RESTRICT grad_x, int64_t size,
              const Line& l, float offset, float slope) {
  const float mean = l.mean, scale = l.scale, shift = l.shift;
  GANCOMP_SIMD
  for (int64_t i = 0; i < size; ++i) {
    const float centred = x[i] - mean;
    grad_x[i] = scale * (through<kRelu>(grad[i], centred, scale, shift) - offset - centred * slope);
  }
}

template <bool kRelu>
GradientSums backward_plane(const InstanceNormActBackwardParams& p, int64_t n, int64_t c) {
  const int64_t size = p.x.plane_size();
  const double mean = p.mean[n * p.x.c + c], rstd = static_cast<double>(p.rstd[n * p.x.c + c]);
  const Line l = line(mean, p.rstd[n * p.x.c + c], p.weight, p.bias, c);
  const double lost = mean - static_cast<double>(l.mean), count = static_cast<double>(size);
  const float *grad = p.grad.plane(n, c), *x = p.x.plane(n, c);
  GradientSums sums = gradient_sums<kRelu>(grad, x, size, l);
  sums.grad_xhat = (sums.grad_xhat - lost * sums.grad) * rstd;
  const double slope = sums.grad_xhat / count * rstd;
  gradient<kRelu>(grad, x, p.grad_x.plane(n, c), size, l, static_cast<float>(sums.grad / count - lost * slope),
                  static_cast<float>(slope));
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
