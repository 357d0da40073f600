// The CUDA implementations of the torch ops that work on planes. `widths` are channel counts in device memory: what is captured
// with them in a graph serves all sub-networks. Without, the shapes say how many channels there are.
#include "torch_cuda.h"

#include <tuple>

namespace gancomp::torch_ops {
namespace {

using cuda::Padding;
using Three = std::tuple<Tensor, Tensor, Tensor>;

// --- instance_norm_act -----------------------------------------------------------------------------------------------

Three instance_norm_act(Tensor x, MaybeTensor weight, MaybeTensor bias, MaybeTensor residual, MaybeTensor widths, bool relu,
                        double eps) {
  x = dense_images(x, x, "x");
  const Launch launch(x);
  const int64_t n = x.size(0), c = x.size(1);
  Tensor y = images_like(x), mean = empty(x, {n, c}, ScalarType::Double), rstd = empty(x, {n, c}, ScalarType::Float);
  cuda::InstanceNormAct p;
  p.dtype = dtype_of(x);
  p.images = to_int(n, "images");
  p.pixels = to_int(x.size(2) * x.size(3), "pixels");
  p.channels = channels(c, widths, x, 0, 1);
  p.x = planes(x);
  if (residual.has_value()) {
    STD_TORCH_CHECK(same_shape(*residual, x), "residual must have the shape of x");
    residual = dense_images(*residual, x, "residual");
    p.residual = planes(*residual);
  }
  p.weight = parameter(weight, x, "weight", c);
  p.bias = parameter(bias, x, "bias", c);
  p.y = writable(y);
  p.mean = static_cast<double*>(mean.mutable_data_ptr());
  p.rstd = static_cast<float*>(rstd.mutable_data_ptr());
  p.relu = relu;
  p.eps = static_cast<float>(eps);
  check_error(cuda::instance_norm_act(p, launch.stream()));
  return {y, mean, rstd};
}

Three instance_norm_act_backward(Tensor grad, Tensor x, MaybeTensor weight, MaybeTensor bias, MaybeTensor widths, Tensor mean,
                                 Tensor rstd, bool relu, bool needs_weight, bool needs_bias) {
  x = dense_images(x, x, "x");
  STD_TORCH_CHECK(same_shape(grad, x), "grad must have the shape of x");
  grad = dense_images(grad, x, "grad");
  const Launch launch(x);
  cuda::InstanceNormActBackward p;
  p.dtype = dtype_of(x);
  p.images = to_int(x.size(0), "images");
  p.pixels = to_int(x.size(2) * x.size(3), "pixels");
  p.channels = channels(x.size(1), widths, x, 0, 1);
  p.grad = planes(grad);
  p.x = planes(x);
  Tensor grad_x = images_like(x);
  Tensor grad_weight = vector_gradient(x, weight, needs_weight), grad_bias = vector_gradient(x, bias, needs_bias);
  p.grad_x = writable(grad_x);
  p.grad_weight = gradient(grad_weight, needs_weight && weight.has_value());
  p.grad_bias = gradient(grad_bias, needs_bias && bias.has_value());
  p.weight = parameter(weight, x, "weight", x.size(1));
  p.bias = parameter(bias, x, "bias", x.size(1));
  STD_TORCH_CHECK(mean.scalar_type() == ScalarType::Double && rstd.scalar_type() == ScalarType::Float && mean.is_contiguous() &&
                      rstd.is_contiguous() && mean.numel() == x.size(0) * x.size(1) && rstd.numel() == mean.numel(),
                  "mean and rstd must be those of the forward pass");
  p.mean = static_cast<const double*>(mean.const_data_ptr());
  p.rstd = static_cast<const float*>(rstd.const_data_ptr());
  p.relu = relu;
  const Tensor memory = workspace(x, cuda::instance_norm_act_backward_workspace(p));
  p.workspace = memory.mutable_data_ptr();
  check_error(cuda::instance_norm_act_backward(p, launch.stream()));
  return {grad_x, grad_weight, grad_bias};
}

// --- reflect_pad_depthwise_conv3x3 -----------------------------------------------------------------------------------

Tensor reflect_pad_depthwise_conv3x3(Tensor x, Tensor weight, MaybeTensor bias, MaybeTensor widths) {
  x = dense_images(x, x, "x");
  STD_TORCH_CHECK(x.size(2) >= 2 && x.size(3) >= 2, "reflection needs h, w >= 2");
  const Launch launch(x);
  Tensor y = images_like(x);
  cuda::ReflectPadDepthwiseConv3x3 p;
  p.dtype = dtype_of(x);
  p.images = to_int(x.size(0), "images");
  p.h = to_int(x.size(2), "h");
  p.w = to_int(x.size(3), "w");
  p.channels = channels(x.size(1), widths, x, 0, 1);
  p.x = planes(x);
  p.weight = filters(weight, x, "weight", x.size(1));
  p.bias = parameter(bias, x, "bias", x.size(1));
  p.y = writable(y);
  check_error(cuda::reflect_pad_depthwise_conv3x3(p, launch.stream()));
  return y;
}

Three reflect_pad_depthwise_conv3x3_backward(Tensor grad, Tensor x, Tensor weight, MaybeTensor bias, MaybeTensor widths,
                                             bool needs_x, bool needs_weight, bool needs_bias) {
  x = dense_images(x, x, "x");
  STD_TORCH_CHECK(x.size(2) >= 2 && x.size(3) >= 2, "reflection needs h, w >= 2");
  STD_TORCH_CHECK(same_shape(grad, x), "grad must have the shape of x");
  grad = dense_images(grad, x, "grad");
  const Launch launch(x);
  cuda::ReflectPadDepthwiseConv3x3Backward p;
  p.dtype = dtype_of(x);
  p.images = to_int(x.size(0), "images");
  p.h = to_int(x.size(2), "h");
  p.w = to_int(x.size(3), "w");
  p.channels = channels(x.size(1), widths, x, 0, 1);
  p.grad = planes(grad);
  p.x = planes(x);
  Tensor grad_x = needs_x ? images_like(x) : empty(x, {0});
  if (needs_x) p.grad_x = writable(grad_x);
  Tensor grad_weight = weight_gradient(weight, needs_weight), grad_bias = vector_gradient(x, bias, needs_bias);
  p.grad_weight = gradient(grad_weight, needs_weight);
  p.grad_bias = gradient(grad_bias, needs_bias && bias.has_value());
  p.weight = filters(weight, x, "weight", x.size(1));
  const Tensor memory = workspace(x, cuda::reflect_pad_depthwise_conv3x3_backward_workspace(p));
  p.workspace = memory.mutable_data_ptr();
  check_error(cuda::reflect_pad_depthwise_conv3x3_backward(p, launch.stream()));
  return {grad_x, grad_weight, grad_bias};
}

// --- spade_modulate --------------------------------------------------------------------------------------------------

cuda::SpadeNorm spade_norm(bool batch, bool given) {
  return given ? cuda::SpadeNorm::kGiven : batch ? cuda::SpadeNorm::kBatch : cuda::SpadeNorm::kInstance;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> spade_modulate(Tensor x, Tensor gamma, Tensor beta, MaybeTensor mean,
                                                          MaybeTensor rstd, MaybeTensor widths, bool batch, double slope,
                                                          double eps) {
  x = dense_images(x, x, "x");
  STD_TORCH_CHECK(same_shape(gamma, x) && same_shape(beta, x), "gamma and beta must have the shape of x");
  gamma = dense_images(gamma, x, "gamma");
  beta = dense_images(beta, x, "beta");
  const Launch launch(x);
  const int64_t n = x.size(0), c = x.size(1);
  const bool given = mean.has_value();
  STD_TORCH_CHECK(given == rstd.has_value(), "mean and rstd belong together");
  if (given) {
    STD_TORCH_CHECK(mean->scalar_type() == ScalarType::Double && rstd->scalar_type() == ScalarType::Float &&
                        mean->device() == x.device() && rstd->device() == x.device() && mean->is_contiguous() &&
                        rstd->is_contiguous() && mean->numel() >= c && rstd->numel() >= c,
                    "mean must be float64 and rstd float32, with an entry for every channel");
  }
  const int64_t statistics = batch ? c : n * c;
  Tensor y = images_like(x), means = given ? *mean : empty(x, {statistics}, ScalarType::Double);
  Tensor rstds = given ? *rstd : empty(x, {statistics}, ScalarType::Float);
  Tensor variances = empty(x, {batch && !given ? c : 0}, ScalarType::Float);
  cuda::SpadeModulate p;
  p.dtype = dtype_of(x);
  p.norm = spade_norm(batch, given);
  p.images = to_int(n, "images");
  p.pixels = to_int(x.size(2) * x.size(3), "pixels");
  p.channels = channels(c, widths, x, 0, 1);
  p.x = planes(x);
  p.gamma = planes(gamma);
  p.beta = planes(beta);
  p.y = writable(y);
  p.mean = static_cast<double*>(means.mutable_data_ptr());
  p.rstd = static_cast<float*>(rstds.mutable_data_ptr());
  p.variance = static_cast<float*>(variances.mutable_data_ptr());
  p.slope = static_cast<float>(slope);
  p.eps = static_cast<float>(eps);
  const Tensor memory = workspace(x, cuda::spade_modulate_workspace(p));
  p.workspace = memory.mutable_data_ptr();
  check_error(cuda::spade_modulate(p, launch.stream()));
  // What was given is kept by the caller: an op may not return its inputs.
  if (given) return {y, empty(x, {0}, ScalarType::Double), empty(x, {0}, ScalarType::Float), variances};
  return {y, means, rstds, variances};
}

Three spade_modulate_backward(Tensor grad, Tensor x, Tensor gamma, Tensor beta, Tensor mean, Tensor rstd, MaybeTensor widths,
                              bool batch, bool given, double slope) {
  x = dense_images(x, x, "x");
  STD_TORCH_CHECK(same_shape(gamma, x) && same_shape(beta, x) && same_shape(grad, x), "images must have the shape of x");
  grad = dense_images(grad, x, "grad");
  gamma = dense_images(gamma, x, "gamma");
  beta = dense_images(beta, x, "beta");
  const Launch launch(x);
  const int64_t count = batch || given ? x.size(1) : x.size(0) * x.size(1);
  STD_TORCH_CHECK(mean.scalar_type() == ScalarType::Double && rstd.scalar_type() == ScalarType::Float && mean.is_contiguous() &&
                      rstd.is_contiguous() && mean.numel() >= count && rstd.numel() >= count,
                  "mean and rstd must be those of the forward pass");
  Tensor grad_x = images_like(x), grad_gamma = images_like(x), grad_beta = images_like(x);
  cuda::SpadeModulateBackward p;
  p.dtype = dtype_of(x);
  p.norm = spade_norm(batch, given);
  p.images = to_int(x.size(0), "images");
  p.pixels = to_int(x.size(2) * x.size(3), "pixels");
  p.channels = channels(x.size(1), widths, x, 0, 1);
  p.grad = planes(grad);
  p.x = planes(x);
  p.gamma = planes(gamma);
  p.beta = planes(beta);
  p.mean = static_cast<const double*>(mean.const_data_ptr());
  p.rstd = static_cast<const float*>(rstd.const_data_ptr());
  p.grad_x = writable(grad_x);
  p.grad_gamma = writable(grad_gamma);
  p.grad_beta = writable(grad_beta);
  p.slope = static_cast<float>(slope);
  const Tensor memory = workspace(x, cuda::spade_modulate_backward_workspace(p));
  p.workspace = memory.mutable_data_ptr();
  check_error(cuda::spade_modulate_backward(p, launch.stream()));
  return {grad_x, grad_gamma, grad_beta};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gancomp, GANCOMP_DISPATCH_KEY, m) {
  m.impl("instance_norm_act.widths", TORCH_BOX(&instance_norm_act));
  m.impl("instance_norm_act_backward.widths", TORCH_BOX(&instance_norm_act_backward));
  m.impl("reflect_pad_depthwise_conv3x3.widths", TORCH_BOX(&reflect_pad_depthwise_conv3x3));
  m.impl("reflect_pad_depthwise_conv3x3_backward.widths", TORCH_BOX(&reflect_pad_depthwise_conv3x3_backward));
  m.impl("spade_modulate.widths", TORCH_BOX(&spade_modulate));
  m.impl("spade_modulate_backward.widths", TORCH_BOX(&spade_modulate_backward));
}

}  // namespace gancomp::torch_ops
