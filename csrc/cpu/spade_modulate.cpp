// SPADE's modulation: a norm whose scale and shift differ from pixel to pixel, and the activation after it.
#include "plane.h"

namespace gancomp::GANCOMP_ISA_NAME {
namespace {

// normalised = (x - mean) * rstd + shift. float32 rounds a large mean; the shift holds what was lost.
struct Line {
  float mean, rstd, shift;

  template <typename T>
  GANCOMP_INLINE T operator()(T x) const {
    return (x - mean) * rstd + shift;
  }
};

Line line(double mean, float rstd) {
  const float rounded = static_cast<float>(mean);
  return {rounded, rstd, -static_cast<float>((mean - static_cast<double>(rounded)) * static_cast<double>(rstd))};
}

// The planes whose statistics are one: those of a channel in all images, or one plane.
struct Set {
  int64_t channel, first, last;  // images
};

Set set_of(const ConstImages& x, bool batch, int64_t index) {
  if (batch) return {index, 0, x.n};
  return {index % x.c, index / x.c, index / x.c + 1};
}

Moments moments_of(const ConstImages& x, const Set& set) {
  const int64_t size = x.plane_size();
  const double count = static_cast<double>(size * (set.last - set.first));
  double total = 0;
  for (int64_t n = set.first; n < set.last; ++n) total += sum(x.plane(n, set.channel), size);
  const float pivot = static_cast<float>(total / count);
  Distances distances;
  for (int64_t n = set.first; n < set.last; ++n) distances.add(x.plane(n, set.channel), size, pivot);
  return moments(distances, pivot, count);
}

// The gradient of what the activation is applied to.
template <typename T>
GANCOMP_INLINE T through(T grad, const float* y, int64_t i, float slope) {
  if (y == nullptr) return grad;
  return load_as<T>(y + i) > 0.0f ? grad : grad * slope;
}

}  // namespace

void spade_modulate(const SpadeModulateParams& p, const Executor& executor) {
  const int64_t size = p.x.plane_size(), channels = p.x.c;
  const bool given = p.given_mean != nullptr, batch = p.batch || given;
  executor.parallel_for(batch ? channels : p.x.n * channels, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const Set set = set_of(p.x, batch, index);
      if (given) {
        p.mean[index] = static_cast<double>(p.given_mean[index]);
        p.rstd[index] = p.given_rstd[index];
      } else {
        const Moments m = moments_of(p.x, set);
        p.mean[index] = m.mean;
        p.rstd[index] = rstd(m.variance, p.eps);
        p.variance[index] = static_cast<float>(m.variance);
      }
      const Line l = line(p.mean[index], p.rstd[index]);
      for (int64_t n = set.first; n < set.last; ++n) {
        const float *x = p.x.plane(n, set.channel), *gamma = p.gamma.plane(n, set.channel),
                    *beta = p.beta.plane(n, set.channel);
        float* y = p.y.plane(n, set.channel);
        const float slope = p.slope;
        each_element(size, [=](int64_t i, auto kind) {
          using T = decltype(kind);
          const T value = l(load_as<T>(x + i)) * (stream_as<T>(gamma + i) + 1.0f) + stream_as<T>(beta + i);
          store(y + i, value > 0.0f ? value : value * slope);
        });
      }
    }
  });
}

void spade_modulate_backward(const SpadeModulateBackwardParams& p, const Executor& executor) {
  const int64_t size = p.x.plane_size(), channels = p.x.c;
  executor.parallel_for(p.per_channel ? channels : p.x.n * channels, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const Set set = set_of(p.x, p.per_channel, index);
      const Line l = line(p.mean[index], p.rstd[index]);
      const float slope = p.slope;
      // Means of the gradient of the normalised value, and of its product with that value.
      float mean_g = 0, mean_gn = 0;
      if (!p.constant) {
        double totals[2] = {};
        for (int64_t n = set.first; n < set.last; ++n) {
          const float *grad = p.grad.plane(n, set.channel), *x = p.x.plane(n, set.channel),
                      *gamma = p.gamma.plane(n, set.channel);
          const float* y = p.y.data == nullptr ? nullptr : p.y.plane(n, set.channel);
          add_terms<2>(size, totals, [=](int64_t i, auto kind) {
            using T = decltype(kind);
            const T g = through(stream_as<T>(grad + i), y, i, slope) * (stream_as<T>(gamma + i) + 1.0f);
            return Terms<T, 2>{{g, g * l(stream_as<T>(x + i))}};
          });
        }
        const double count = static_cast<double>(size * (set.last - set.first));
        mean_g = static_cast<float>(totals[0] / count), mean_gn = static_cast<float>(totals[1] / count);
      }
      for (int64_t n = set.first; n < set.last; ++n) {
        const float *grad = p.grad.plane(n, set.channel), *x = p.x.plane(n, set.channel),
                    *gamma = p.gamma.plane(n, set.channel);
        const float* y = p.y.data == nullptr ? nullptr : p.y.plane(n, set.channel);
        float *grad_x = p.grad_x.plane(n, set.channel), *grad_gamma = p.grad_gamma.plane(n, set.channel);
        float* grad_beta = p.grad_beta.plane(n, set.channel);
        each_element(size, [=](int64_t i, auto kind) {
          using T = decltype(kind);
          const T g = through(load_as<T>(grad + i), y, i, slope), normalised = l(load_as<T>(x + i));
          store(grad_beta + i, g);
          store(grad_gamma + i, g * normalised);
          store(grad_x + i, l.rstd * (g * (load_as<T>(gamma + i) + 1.0f) - mean_g - normalised * mean_gn));
        });
      }
    }
  });
}

}  // namespace gancomp::GANCOMP_ISA_NAME
