// Pointwise (1x1) convolutions over planes, as matrix products. Weights are read where they lie, through strides.
#pragma once

#include "kernels.h"

namespace gancomp::GANCOMP_ISA_NAME {

// y[n, o] = bias[o] + sum over i of weight(o, i) * x[n, i], for o < y.c and i < x.c; bias null: zero. The input gradient is the
// same with the gradient for x and the transposed weight. No task shares a sum: threads do not change a bit.
void pointwise(const ConstImages& x, const ConstMatrix& weight, const float* bias, const Images& y, const Executor& executor);

// Adds, over images and pixels, grad[n, o] * x[n, i] to `sums`, which holds pointwise_sums_size(grad.c, x.c) floats aligned to
// 64 bytes and needs no zeros where `first`. The sums are as many as tasks at most, whose number is fixed.
void pointwise_weight_sums(const ConstImages& grad, const ConstImages& x, bool first, float* sums, const Executor& executor);

// grad_weight[o * stride + i] = those sums, for o < rows and i < columns.
void pointwise_weight(const float* sums, int64_t rows, int64_t columns, float* grad_weight, int64_t stride,
                      const Executor& executor);

}  // namespace gancomp::GANCOMP_ISA_NAME
