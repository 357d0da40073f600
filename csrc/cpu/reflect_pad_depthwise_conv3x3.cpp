// Depthwise 3x3 with reflection: the padded image is never made.
#include "depthwise.h"

namespace gancomp::GANCOMP_ISA_NAME {

void reflect_pad_depthwise_conv3x3(const ReflectPadDepthwiseConv3x3Params& p, const Executor& executor) {
  const int64_t height = p.x.h, width = p.x.w;
  executor.parallel_for(p.x.n * p.x.c, [&](int64_t begin, int64_t end) {
    Input window;
    for (int64_t index = begin; index < end; ++index) {
      const int64_t n = index / p.x.c, c = index % p.x.c;
      float* y = p.y.plane(n, c);
      const float bias = p.bias == nullptr ? 0.0f : p.bias[c];
      depthwise(window, Copied{p.x.plane(n, c), width}, p.weight + 9 * c, height, width,
                [=](int64_t i, int, int64_t j, Vec value, int64_t count)
                    GANCOMP_FORCE { store_first(y + i * width + j, value + bias, count); });
    }
  });
}

void reflect_pad_depthwise_conv3x3_backward(const ReflectPadDepthwiseConv3x3BackwardParams& p, const Executor& executor) {
  const int64_t height = p.x.h, width = p.x.w;
  // One task owns a channel in all images, so that the sums over images are in a fixed order.
  executor.parallel_for(p.x.c, [&](int64_t begin, int64_t end) {
    Windows windows;
    for (int64_t c = begin; c < end; ++c) {
      double sums[9] = {}, bias = 0;
      for (int64_t n = 0; n < p.x.n; ++n) {
        const Copied grad{p.grad.plane(n, c), width}, x{p.x.plane(n, c), width};
        if (p.grad_x.data == nullptr) {
          depthwise_backward(windows, grad, x, p.weight + 9 * c, height, width, sums,
                             [](int64_t, int, int64_t, Vec, int64_t, const float*) GANCOMP_FORCE {});
        } else {
          float* grad_x = p.grad_x.plane(n, c);
          depthwise_backward(windows, grad, x, p.weight + 9 * c, height, width, sums,
                             [=](int64_t i, int, int64_t j, Vec value, int64_t count, const float*)
                                 GANCOMP_FORCE { store_first(grad_x + i * width + j, value, count); });
        }
        if (p.grad_bias != nullptr) bias += sum(p.grad.plane(n, c), height * width);
      }
      for (int t = 0; t < 9; ++t) p.grad_weight[9 * c + t] = static_cast<float>(sums[t]);
      if (p.grad_bias != nullptr) p.grad_bias[c] = static_cast<float>(bias);
    }
  });
}

}  // namespace gancomp::GANCOMP_ISA_NAME
