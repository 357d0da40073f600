// The CPU implementation of the torch op of SPADE's modulation.
#include <tuple>

#include "torch_tensors.h"

namespace gancomp::torch_ops {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> spade_modulate(Tensor x, Tensor gamma, Tensor beta, MaybeTensor mean,
                                                          MaybeTensor rstd, bool batch, double slope, double eps) {
  SpadeModulateParams p;
  x = dense_planes(x, "x");
  gamma = dense_planes(gamma, "gamma");
  beta = dense_planes(beta, "beta");
  p.x = images(x);
  p.gamma = images(gamma);
  p.beta = images(beta);
  check_same_shape(p.x, p.gamma, "gamma");
  check_same_shape(p.x, p.beta, "beta");
  STD_TORCH_CHECK(mean.has_value() == rstd.has_value(), "mean and rstd must be given together");
  p.given_mean = vector(mean, "mean", p.x.c);
  p.given_rstd = vector(rstd, "rstd", p.x.c);
  p.batch = batch;
  const bool given = mean.has_value();
  const int64_t sets = batch || given ? 1 : p.x.n;
  Tensor y = empty<4>(x, {p.x.n, p.x.c, p.x.h, p.x.w});
  Tensor used_mean = empty<2>(x, {sets, p.x.c}, ScalarType::Double), used_rstd = empty<2>(x, {sets, p.x.c});
  Tensor variance = empty<2>(x, {given ? 0 : sets, p.x.c});
  p.y = writable(y);
  p.mean = static_cast<double*>(used_mean.mutable_data_ptr());
  p.rstd = static_cast<float*>(used_rstd.mutable_data_ptr());
  p.variance = static_cast<float*>(variance.mutable_data_ptr());
  p.slope = static_cast<float>(slope);
  p.eps = static_cast<float>(eps);
  kernels().spade_modulate(p, executor);
  return {y, used_mean, used_rstd, variance};
}

std::tuple<Tensor, Tensor, Tensor> spade_modulate_backward(Tensor grad, Tensor x, Tensor gamma, MaybeTensor y, Tensor mean,
                                                           Tensor rstd, bool per_channel, bool constant, double slope) {
  SpadeModulateBackwardParams p;
  x = dense_planes(x, "x");
  grad = dense_planes(grad, "grad");
  gamma = dense_planes(gamma, "gamma");
  p.x = images(x);
  p.grad = images(grad);
  p.gamma = images(gamma);
  check_same_shape(p.x, p.grad, "grad");
  check_same_shape(p.x, p.gamma, "gamma");
  if (y.has_value()) {
    y = dense_planes(*y, "y");
    p.y = images(*y);
    check_same_shape(p.x, p.y, "y");
  }
  check(rstd, "rstd");
  STD_TORCH_CHECK(mean.device().is_cpu() && mean.scalar_type() == ScalarType::Double, "mean must be float64 on the CPU");
  STD_TORCH_CHECK(mean.is_contiguous() && rstd.is_contiguous() && mean.numel() == (per_channel ? 1 : p.x.n) * p.x.c &&
                      rstd.numel() == mean.numel(),
                  "mean and rstd must be contiguous, with a number per channel or per plane");
  p.mean = static_cast<const double*>(mean.const_data_ptr());
  p.rstd = static_cast<const float*>(rstd.const_data_ptr());
  p.per_channel = per_channel;
  p.constant = constant;
  p.slope = static_cast<float>(slope);
  const auto like_x = [&] { return empty<4>(x, {p.x.n, p.x.c, p.x.h, p.x.w}); };
  Tensor grad_x = like_x(), grad_gamma = like_x(), grad_beta = like_x();
  p.grad_x = writable(grad_x);
  p.grad_gamma = writable(grad_gamma);
  p.grad_beta = writable(grad_beta);
  kernels().spade_modulate_backward(p, executor);
  return {grad_x, grad_gamma, grad_beta};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gancomp, CPU, m) {
  m.impl("spade_modulate", TORCH_BOX(&spade_modulate));
  m.impl("spade_modulate_backward", TORCH_BOX(&spade_modulate_backward));
}

}  // namespace gancomp::torch_ops
