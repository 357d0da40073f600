// The two products that make up a convolution, plain or transposed, forward and backward.
#pragma once

#include "matmul.cuh"

namespace gancomp::cuda {

// y[n, o, i, j] = bias[o] + sum of weight[o, c, r, s] * x[n, c, row, column], where
//   plain:       row = i * stride - padding + r (padded by `shape.mode`)
//   transposed:  row * stride - padding + r = i
// and likewise for columns. Transposed is also the gradient of plain by its input, and the other way round.
struct Gather {
  ConvShape shape;
  ConstPlanes x;
  Filters weight;
  Parameter bias;
  Planes y;
  bool transposed;
};

// The weight with its inputs and outputs exchanged.
inline Filters transposed(const Filters& weight) {
  return {weight.values, weight.stride_in, weight.stride_out, weight.stride_h, weight.stride_w};
}

const char* gather(const Gather& params, Dtype dtype, bool tf32, void* stream);

// gradient[a, b, r, s] = sum over n, i, j of rows[n, a, i, j] * columns[n, b, i * stride - padding + r, j * stride - padding +
// s]
struct WeightGradient {
  ConvShape shape;  // in, h, w: those of `columns`; out, out_h, out_w: those of `rows`
  ConstPlanes rows, columns;
  Gradient gradient;  // [., gradient_columns, kernel_h, kernel_w]
  int gradient_columns;
  float* partials;
  int splits, stages_per_split;
};
const char* weight_gradient(WeightGradient params, Dtype dtype, bool tf32, void* stream);
int64_t weight_gradient_workspace(const ConvShape& shape, Dtype dtype);

}  // namespace gancomp::cuda
