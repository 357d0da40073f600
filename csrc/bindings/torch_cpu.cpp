// The CPU implementations of the torch ops that work plane by plane.
#include <algorithm>
#include <tuple>

#include "torch_tensors.h"

namespace gancomp::torch_ops {
namespace {

std::tuple<Tensor, Tensor, Tensor> instance_norm_act(Tensor x, MaybeTensor weight, MaybeTensor bias, MaybeTensor residual,
                                                     bool relu, double eps) {
  InstanceNormActParams p;
  x = dense_planes(x, "x");
  p.x = images(x);
  if (residual.has_value()) {
    residual = dense_planes(*residual, "residual");
    p.residual = images(*residual);
    check_same_shape(p.x, p.residual, "residual");
  }
  p.weight = vector(weight, "weight", p.x.c);
  p.bias = vector(bias, "bias", p.x.c);
  Tensor y = empty<4>(x, {p.x.n, p.x.c, p.x.h, p.x.w});
  Tensor mean = empty<2>(x, {p.x.n, p.x.c}, ScalarType::Double), rstd = empty<2>(x, {p.x.n, p.x.c});
  p.y = writable(y);
  p.mean = static_cast<double*>(mean.mutable_data_ptr());
  p.rstd = static_cast<float*>(rstd.mutable_data_ptr());
  p.relu = relu;
  p.eps = static_cast<float>(eps);
  kernels().instance_norm_act(p, executor);
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> instance_norm_act_backward(Tensor grad, Tensor x, MaybeTensor weight, MaybeTensor bias,
                                                              Tensor mean, Tensor rstd, bool relu) {
  InstanceNormActBackwardParams p;
  x = dense_planes(x, "x");
  p.x = images(x);
  grad = dense_planes(grad, "grad");
  p.grad = images(grad);
  check_same_shape(p.x, p.grad, "grad");
  p.weight = vector(weight, "weight", p.x.c);
  p.bias = vector(bias, "bias", p.x.c);
  check(rstd, "rstd");
  STD_TORCH_CHECK(mean.device().is_cpu() && mean.scalar_type() == ScalarType::Double, "mean must be float64 on the CPU");
  STD_TORCH_CHECK(mean.is_contiguous() && rstd.is_contiguous() && mean.numel() == p.x.n * p.x.c && rstd.numel() == mean.numel(),
                  "mean and rstd must be contiguous [N, C]");
  p.mean = static_cast<const double*>(mean.const_data_ptr());
  p.rstd = static_cast<const float*>(rstd.const_data_ptr());
  Tensor grad_x = empty<4>(x, {p.x.n, p.x.c, p.x.h, p.x.w});
  Tensor grad_weight = gradient_like(x, weight, p.x.c), grad_bias = gradient_like(x, bias, p.x.c);
  p.grad_x = writable(grad_x);
  p.grad_weight = data_or_null(grad_weight);
  p.grad_bias = data_or_null(grad_bias);
  p.relu = relu;
  kernels().instance_norm_act_backward(p, executor);
  return {grad_x, grad_weight, grad_bias};
}

void check_reflectable(const ConstImages& x) { STD_TORCH_CHECK(x.h >= 2 && x.w >= 2, "reflection needs h, w >= 2"); }

Tensor reflect_pad_depthwise_conv3x3(Tensor x, Tensor weight, MaybeTensor bias) {
  ReflectPadDepthwiseConv3x3Params p;
  x = dense_planes(x, "x");
  p.x = images(x);
  check_reflectable(p.x);
  p.weight = filters(weight, p.x.c);
  p.bias = vector(bias, "bias", p.x.c);
  Tensor y = empty<4>(x, {p.x.n, p.x.c, p.x.h, p.x.w});
  p.y = writable(y);
  kernels().reflect_pad_depthwise_conv3x3(p, executor);
  return y;
}

std::tuple<Tensor, Tensor, Tensor> reflect_pad_depthwise_conv3x3_backward(Tensor grad, Tensor x, Tensor weight,
                                                                          int64_t bias_size, bool needs_x) {
  ReflectPadDepthwiseConv3x3BackwardParams p;
  x = dense_planes(x, "x");
  p.x = images(x);
  check_reflectable(p.x);
  grad = dense_planes(grad, "grad");
  p.grad = images(grad);
  check_same_shape(p.x, p.grad, "grad");
  p.weight = filters(weight, p.x.c);
  STD_TORCH_CHECK(bias_size == 0 || bias_size >= p.x.c, "bias_size must be 0 or cover every channel");
  Tensor grad_x = needs_x ? empty<4>(x, {p.x.n, p.x.c, p.x.h, p.x.w}) : empty<1>(x, {0});
  Tensor grad_weight = empty<4>(x, {weight.size(0), 1, 3, 3});
  Tensor grad_bias = empty<1>(x, {bias_size});
  if (needs_x) p.grad_x = writable(grad_x);
  p.grad_weight = static_cast<float*>(grad_weight.mutable_data_ptr());
  p.grad_bias = data_or_null(grad_bias);
  std::fill(p.grad_weight + 9 * p.x.c, p.grad_weight + 9 * weight.size(0), 0.0f);
  if (bias_size > p.x.c) std::fill(p.grad_bias + p.x.c, p.grad_bias + bias_size, 0.0f);
  kernels().reflect_pad_depthwise_conv3x3_backward(p, executor);
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gancomp, CPU, m) {
  m.impl("instance_norm_act", TORCH_BOX(&instance_norm_act));
  m.impl("instance_norm_act_backward", TORCH_BOX(&instance_norm_act_backward));
  m.impl("reflect_pad_depthwise_conv3x3", TORCH_BOX(&reflect_pad_depthwise_conv3x3));
  m.impl("reflect_pad_depthwise_conv3x3_backward", TORCH_BOX(&reflect_pad_depthwise_conv3x3_backward));
}

}  // namespace gancomp::torch_ops
