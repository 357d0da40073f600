// The CPU implementation of the torch op of the separable residual block.
#include <algorithm>
#include <tuple>

#include "torch_tensors.h"

namespace gancomp::torch_ops {
namespace {

// A pointwise weight of which rows x columns are used, where it lies; a copy where neither of them are side by side.
ConstMatrix matrix(Tensor& weight, const char* name, int64_t rows, int64_t columns) {
  check(weight, name);
  STD_TORCH_CHECK(
      weight.dim() == 4 && weight.size(0) >= rows && weight.size(1) >= columns && weight.size(2) == 1 && weight.size(3) == 1,
      name, " must be a pointwise weight [O, I, 1, 1] with the active channels");
  if (weight.stride(0) != 1 && weight.stride(1) != 1) weight = torch::stable::contiguous(weight);
  return {static_cast<const float*>(weight.const_data_ptr()), weight.stride(0), weight.stride(1)};
}

SeparableResblockWeights weights_of(const ConstImages& x, int64_t hidden, Tensor& depthwise1, Tensor& pointwise1,
                                    Tensor& depthwise2, Tensor& pointwise2) {
  STD_TORCH_CHECK(x.h >= 2 && x.w >= 2 && x.c > 0 && hidden > 0, "x needs h, w >= 2, and there must be channels");
  return {filters(depthwise1, x.c), filters(depthwise2, hidden), matrix(pointwise1, "pointwise1", hidden, x.c),
          matrix(pointwise2, "pointwise2", x.c, hidden)};
}

// [N, hidden, H, W] of bytes, made contiguous where it is not; null for none.
const uint8_t* mask_of(MaybeTensor& mask, const ConstImages& x, int64_t hidden) {
  if (!mask.has_value()) return nullptr;
  STD_TORCH_CHECK(mask->device().is_cpu() && mask->scalar_type() == ScalarType::Byte && mask->dim() == 4 &&
                      mask->size(0) == x.n && mask->size(1) == hidden && mask->size(2) == x.h && mask->size(3) == x.w,
                  "mask must be uint8 [N, hidden, H, W] on the CPU");
  if (!mask->is_contiguous()) mask = torch::stable::contiguous(*mask);
  return static_cast<const uint8_t*>(mask->const_data_ptr());
}

// A gradient in the full shape of a weight [O, I, ...]: the kernel writes the first `rows`, and of them the first `columns`;
// the inactive rest is zero.
Tensor gradient_of(const Tensor& weight, int64_t rows, int64_t columns) {
  Tensor gradient = empty<4>(weight, {weight.size(0), weight.size(1), weight.size(2), weight.size(3)});
  const int64_t taps = weight.size(2) * weight.size(3), stride = weight.size(1) * taps;
  float* data = static_cast<float*>(gradient.mutable_data_ptr());
  for (int64_t row = 0; row < weight.size(0); ++row) {
    std::fill(data + row * stride + (row < rows ? columns * taps : 0), data + (row + 1) * stride, 0.0f);
  }
  return gradient;
}

float* floats(const Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

std::tuple<Tensor, Tensor, Tensor, Tensor> separable_resblock(Tensor x, Tensor depthwise1, Tensor pointwise1, Tensor depthwise2,
                                                              Tensor pointwise2, MaybeTensor mask, double scale, int64_t hidden,
                                                              double eps, bool keep) {
  SeparableResblockParams p;
  x = dense_planes(x, "x");
  p.x = images(x);
  p.hidden = hidden;
  p.weights = weights_of(p.x, hidden, depthwise1, pointwise1, depthwise2, pointwise2);
  p.mask = mask_of(mask, p.x, hidden);
  p.scale = static_cast<float>(scale);
  p.eps = static_cast<float>(eps);
  Tensor y = empty<4>(x, {p.x.n, p.x.c, p.x.h, p.x.w});
  Tensor z1 = empty<4>(x, {keep ? p.x.n : 0, hidden, p.x.h, p.x.w}), z2 = empty<4>(x, {keep ? p.x.n : 0, p.x.c, p.x.h, p.x.w});
  Tensor statistics = empty<3>(x, {keep ? p.x.n : 0, 2 * (p.x.c + hidden), 2});
  p.y = writable(y);
  if (keep) p.z1 = writable(z1), p.z2 = writable(z2), p.statistics = floats(statistics);
  Tensor workspace = empty<1>(x, {separable_resblock_workspace(p)});
  p.workspace = floats(workspace);
  kernels().separable_resblock(p, executor);
  return {y, z1, z2, statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> separable_resblock_backward(
    Tensor grad, Tensor x, Tensor depthwise1, Tensor pointwise1, Tensor depthwise2, Tensor pointwise2, MaybeTensor mask,
    double scale, Tensor z1, Tensor z2, Tensor statistics, bool needs_x, bool needs_weights) {
  SeparableResblockBackwardParams p;
  x = dense_planes(x, "x");
  p.x = images(x);
  grad = dense_planes(grad, "grad");
  p.grad = images(grad);
  check_same_shape(p.x, p.grad, "grad");
  z1 = dense_planes(z1, "z1");
  z2 = dense_planes(z2, "z2");
  p.z1 = images(z1);
  p.z2 = images(z2);
  check_same_shape(p.x, p.z2, "z2");
  STD_TORCH_CHECK(p.z1.n == p.x.n && p.z1.h == p.x.h && p.z1.w == p.x.w, "z1 must have the images and the size of x");
  p.hidden = p.z1.c;
  check(statistics, "statistics");
  STD_TORCH_CHECK(statistics.is_contiguous() && statistics.numel() == 4 * p.x.n * (p.x.c + p.hidden),
                  "statistics must be contiguous [N, 2 * (C + hidden), 2]");
  p.statistics = static_cast<const float*>(statistics.const_data_ptr());
  p.weights = weights_of(p.x, p.hidden, depthwise1, pointwise1, depthwise2, pointwise2);
  p.mask = mask_of(mask, p.x, p.hidden);
  p.scale = static_cast<float>(scale);

  Tensor grad_x = needs_x ? empty<4>(x, {p.x.n, p.x.c, p.x.h, p.x.w}) : empty<1>(x, {0});
  if (needs_x) p.grad_x = writable(grad_x);
  const auto gradient = [&](const Tensor& weight, int64_t rows, int64_t columns, float*& data) {
    Tensor made = needs_weights ? gradient_of(weight, rows, columns) : empty<1>(x, {0});
    if (needs_weights) data = floats(made);
    return made;
  };
  Tensor grad_depthwise1 = gradient(depthwise1, p.x.c, 1, p.grad_depthwise1);
  Tensor grad_pointwise1 = gradient(pointwise1, p.hidden, p.x.c, p.grad_pointwise1);
  Tensor grad_depthwise2 = gradient(depthwise2, p.hidden, 1, p.grad_depthwise2);
  Tensor grad_pointwise2 = gradient(pointwise2, p.x.c, p.hidden, p.grad_pointwise2);
  p.grad_pointwise1_stride = pointwise1.size(1);
  p.grad_pointwise2_stride = pointwise2.size(1);
  Tensor workspace = empty<1>(x, {separable_resblock_backward_workspace(p)});
  p.workspace = floats(workspace);
  kernels().separable_resblock_backward(p, executor);
  return {grad_x, grad_depthwise1, grad_pointwise1, grad_depthwise2, grad_pointwise2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gancomp, CPU, m) {
  m.impl("separable_resblock", TORCH_BOX(&separable_resblock));
  m.impl("separable_resblock_backward", TORCH_BOX(&separable_resblock_backward));
}

}  // namespace gancomp::torch_ops
