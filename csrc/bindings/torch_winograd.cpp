// The CPU implementations of the 4x4 convolutions by Winograd's method.
#include <algorithm>
#include <tuple>

#include "torch_tensors.h"

namespace gancomp::torch_ops {
namespace {

void check_geometry(const Tensor& weight, int64_t channels, int64_t stride, int64_t padding) {
  check(weight, "weight");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(0) >= 1 && weight.size(1) == channels && weight.size(2) == kWinogradTaps &&
                      weight.size(3) == kWinogradTaps,
                  "weight must be [O, C, 4, 4] with the channels of x");
  STD_TORCH_CHECK(stride == 1 || stride == 2, "stride must be 1 or 2");
  STD_TORCH_CHECK(padding >= 0 && padding < kWinogradTaps, "padding must be at least 0 and less than 4");
}

int64_t positions(int64_t size, int64_t stride, int64_t padding) {
  STD_TORCH_CHECK(size + 2 * padding >= kWinogradTaps, "x is smaller than the kernel");
  return (size + 2 * padding - kWinogradTaps) / stride + 1;
}

// Memory for as many tasks as run at a time.
template <typename Params>
Tensor workspace(const Tensor& like, const WinogradPlan& plan, Params& p) {
  p.slots = std::clamp(static_cast<int64_t>(torch::stable::get_num_threads()), int64_t{1}, std::max(plan.tasks, int64_t{1}));
  Tensor memory = empty<1>(like, {plan.floats(p.slots)});
  p.workspace = static_cast<float*>(memory.mutable_data_ptr());
  return memory;
}

Tensor winograd_conv2d(Tensor x, Tensor weight, MaybeTensor bias, int64_t stride, int64_t padding) {
  x = dense_planes(x, "x");
  check_geometry(weight, x.size(1), stride, padding);
  weight = torch::stable::contiguous(weight);
  WinogradConvParams p;
  p.x = images(x);
  p.weight = static_cast<const float*>(weight.const_data_ptr());
  p.bias = vector(bias, "bias", weight.size(0));
  p.stride = static_cast<int>(stride), p.padding = static_cast<int>(padding);
  Tensor y = empty<4>(x, {p.x.n, weight.size(0), positions(p.x.h, stride, padding), positions(p.x.w, stride, padding)});
  p.y = writable(y);
  const Tensor memory = workspace(x, winograd_conv_plan(p), p);
  kernels().winograd_conv(p, executor);
  return y;
}

std::tuple<Tensor, Tensor, Tensor> winograd_conv2d_backward(Tensor grad, Tensor x, Tensor weight, int64_t stride,
                                                            int64_t padding, bool needs_x, bool needs_weight, bool needs_bias) {
  x = dense_planes(x, "x");
  grad = dense_planes(grad, "grad");
  check_geometry(weight, x.size(1), stride, padding);
  STD_TORCH_CHECK(grad.size(0) == x.size(0) && grad.size(1) == weight.size(0) &&
                      grad.size(2) == positions(x.size(2), stride, padding) &&
                      grad.size(3) == positions(x.size(3), stride, padding),
                  "grad must have the shape of the output");
  Tensor grad_x = needs_x ? empty<4>(x, {x.size(0), x.size(1), x.size(2), x.size(3)}) : empty<1>(x, {0});
  if (needs_x) {
    weight = torch::stable::contiguous(weight);
    WinogradConvParams p;
    p.x = images(grad), p.y = writable(grad_x);
    p.weight = static_cast<const float*>(weight.const_data_ptr());
    p.stride = static_cast<int>(stride), p.padding = static_cast<int>(padding);
    const Tensor memory = workspace(x, winograd_conv_transpose_plan(p), p);
    kernels().winograd_conv_transpose(p, executor);
  }
  Tensor grad_weight = empty<1>(x, {0});
  if (needs_weight) {
    grad_weight = empty<4>(x, {weight.size(0), weight.size(1), weight.size(2), weight.size(3)});
    WinogradConvWeightGradientParams p;
    p.x = images(x), p.grad = images(grad);
    p.grad_weight = static_cast<float*>(grad_weight.mutable_data_ptr());
    p.stride = static_cast<int>(stride), p.padding = static_cast<int>(padding);
    const Tensor memory = workspace(x, winograd_weight_gradient_plan(p), p);
    kernels().winograd_conv_weight_gradient(p, executor);
  }
  Tensor grad_bias = empty<1>(x, {needs_bias ? grad.size(1) : 0});
  if (needs_bias) {
    PlaneSumsParams p;
    p.x = images(grad);
    p.sums = static_cast<float*>(grad_bias.mutable_data_ptr());
    kernels().plane_sums(p, executor);
  }
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gancomp, CPU, m) {
  m.impl("winograd_conv2d", TORCH_BOX(&winograd_conv2d));
  m.impl("winograd_conv2d_backward", TORCH_BOX(&winograd_conv2d_backward));
}

}  // namespace gancomp::torch_ops
