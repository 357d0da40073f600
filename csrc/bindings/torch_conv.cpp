// The CPU implementations of the convolutions over slices of full weights.
#include <cstring>
#include <tuple>

#include "torch_tensors.h"

namespace gancomp::torch_ops {
namespace {

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

ConvWindow window(const Tensor& weight, int64_t stride, int64_t padding, int64_t mode) {
  STD_TORCH_CHECK(weight.dim() == 4, "weight must have four dimensions");
  STD_TORCH_CHECK(weight.size(2) >= 1 && weight.size(2) <= kMaxKernel && weight.size(3) >= 1 && weight.size(3) <= kMaxKernel,
                  "weight must have kernels of at most ", kMaxKernel);
  STD_TORCH_CHECK(stride >= 1 && stride <= kMaxStride, "stride must be at least 1 and at most ", kMaxStride);
  STD_TORCH_CHECK(padding >= 0 && padding < std::max(weight.size(2), weight.size(3)), "padding must be less than the kernel");
  STD_TORCH_CHECK(mode >= 0 && mode <= 2, "mode must be 0 (zeros), 1 (reflect) or 2 (replicate)");
  ConvWindow window;
  window.taps_h = static_cast<int>(weight.size(2)), window.taps_w = static_cast<int>(weight.size(3));
  window.stride = static_cast<int>(stride), window.padding = static_cast<int>(padding);
  window.mode = mode == 0 ? BorderMode::zero : mode == 1 ? BorderMode::reflect : BorderMode::replicate;
  return window;
}

// Output positions along an axis of `size`.
int64_t positions(int64_t size, int64_t taps, const ConvWindow& k) {
  STD_TORCH_CHECK(size + 2 * k.padding >= taps, "x is smaller than the kernel");
  STD_TORCH_CHECK(k.mode != BorderMode::reflect || k.padding < size, "reflection needs planes larger than the padding");
  return (size + 2 * k.padding - taps) / k.stride + 1;
}

// Dimension `out` of the weight belongs to y, the other to x.
SlicedWeight<const float> slice(const Tensor& weight, int out, int64_t outs, int64_t ins) {
  check(weight, "weight");
  STD_TORCH_CHECK(outs >= 1 && weight.size(out) >= outs && weight.size(1 - out) >= ins,
                  "weight must have at least the channels of x and y");
  return {static_cast<const float*>(weight.const_data_ptr()), weight.stride(out), weight.stride(1 - out), weight.stride(2),
          weight.stride(3)};
}

// A gradient in the full shape of the weight, all zero; and its view with dimension `out` as the outputs of the convolution.
Tensor zero_gradient(const Tensor& weight, int out, SlicedWeight<float>& view) {
  Tensor gradient = empty<4>(weight, {weight.size(0), weight.size(1), weight.size(2), weight.size(3)});
  float* data = static_cast<float*>(gradient.mutable_data_ptr());
  std::memset(data, 0, static_cast<size_t>(gradient.numel()) * sizeof(float));
  view = {data, gradient.stride(out), gradient.stride(1 - out), gradient.stride(2), gradient.stride(3)};
  return gradient;
}

Tensor bias_gradient(const Tensor& grad, int64_t size) {
  STD_TORCH_CHECK(size == 0 || size >= grad.size(1), "bias_size must be 0 or cover every channel");
  Tensor gradient = empty<1>(grad, {size});
  if (size == 0) return gradient;
  PlaneSumsParams p;
  p.x = images(grad);
  p.sums = static_cast<float*>(gradient.mutable_data_ptr());
  std::fill(p.sums + p.x.c, p.sums + size, 0.0f);
  kernels().plane_sums(p, executor);
  return gradient;
}

Tensor sliced_conv2d(Tensor x, Tensor weight, MaybeTensor bias, int64_t out_channels, int64_t stride, int64_t padding,
                     int64_t mode) {
  SlicedConvParams p;
  x = dense_planes(x, "x");
  p.x = images(x);
  p.window = window(weight, stride, padding, mode);
  p.weight = slice(weight, 0, out_channels, p.x.c);
  p.bias = vector(bias, "bias", out_channels);
  Tensor y = empty<4>(
      x, {p.x.n, out_channels, positions(p.x.h, p.window.taps_h, p.window), positions(p.x.w, p.window.taps_w, p.window)});
  p.y = writable(y);
  kernels().sliced_conv(p, executor);
  return y;
}

Gradients sliced_conv2d_backward(Tensor grad, Tensor x, Tensor weight, int64_t stride, int64_t padding, int64_t mode,
                                 int64_t bias_size, bool needs_x, bool needs_weight) {
  x = dense_planes(x, "x");
  grad = dense_planes(grad, "grad");
  const ConvWindow k = window(weight, stride, padding, mode);
  const SlicedWeight<const float> slices = slice(weight, 0, grad.size(1), x.size(1));
  STD_TORCH_CHECK(grad.size(0) == x.size(0) && grad.size(2) == positions(x.size(2), k.taps_h, k) &&
                      grad.size(3) == positions(x.size(3), k.taps_w, k),
                  "grad must have the shape of the output");
  Tensor grad_x = needs_x ? empty<4>(x, {x.size(0), x.size(1), x.size(2), x.size(3)}) : empty<1>(x, {0});
  if (needs_x) {
    SlicedConvParams p;
    p.window = k;
    p.x = images(grad);
    p.weight = slices;
    std::swap(p.weight.out, p.weight.in);
    p.y = writable(grad_x);
    kernels().sliced_conv_transpose(p, executor);
  }
  Tensor grad_weight = empty<1>(x, {0});
  if (needs_weight) {
    SlicedConvWeightGradientParams p;
    p.window = k;
    p.x = images(x), p.grad = images(grad);
    grad_weight = zero_gradient(weight, 0, p.grad_weight);
    kernels().sliced_conv_weight_gradient(p, executor);
  }
  return {grad_x, grad_weight, bias_gradient(grad, bias_size)};
}

// The window of the convolution whose gradient the transposed one is, and the size of its output along an axis.
int64_t spread(int64_t size, int64_t taps, const ConvWindow& k, int64_t output_padding) {
  STD_TORCH_CHECK(output_padding >= 0 && output_padding < k.stride, "output_padding must be less than the stride");
  const int64_t spread = (size - 1) * k.stride - 2 * k.padding + taps + output_padding;
  STD_TORCH_CHECK(spread >= 1, "x is too small: nothing is left of the output");
  return spread;
}

Tensor sliced_conv_transpose2d(Tensor x, Tensor weight, MaybeTensor bias, int64_t out_channels, int64_t stride, int64_t padding,
                               int64_t output_padding) {
  SlicedConvParams p;
  x = dense_planes(x, "x");
  p.x = images(x);
  p.window = window(weight, stride, padding, 0);
  p.weight = slice(weight, 1, out_channels, p.x.c);
  p.bias = vector(bias, "bias", out_channels);
  Tensor y = empty<4>(x, {p.x.n, out_channels, spread(p.x.h, p.window.taps_h, p.window, output_padding),
                          spread(p.x.w, p.window.taps_w, p.window, output_padding)});
  p.y = writable(y);
  kernels().sliced_conv_transpose(p, executor);
  return y;
}

Gradients sliced_conv_transpose2d_backward(Tensor grad, Tensor x, Tensor weight, int64_t stride, int64_t padding,
                                           int64_t output_padding, int64_t bias_size, bool needs_x, bool needs_weight) {
  x = dense_planes(x, "x");
  grad = dense_planes(grad, "grad");
  const ConvWindow k = window(weight, stride, padding, 0);
  const SlicedWeight<const float> slices = slice(weight, 1, grad.size(1), x.size(1));
  STD_TORCH_CHECK(grad.size(0) == x.size(0) && grad.size(2) == spread(x.size(2), k.taps_h, k, output_padding) &&
                      grad.size(3) == spread(x.size(3), k.taps_w, k, output_padding),
                  "grad must have the shape of the output");
  Tensor grad_x = needs_x ? empty<4>(x, {x.size(0), x.size(1), x.size(2), x.size(3)}) : empty<1>(x, {0});
  if (needs_x) {
    SlicedConvParams p;
    p.window = k;
    p.x = images(grad);
    p.weight = slices;
    std::swap(p.weight.out, p.weight.in);
    p.y = writable(grad_x);
    kernels().sliced_conv(p, executor);
  }
  Tensor grad_weight = empty<1>(x, {0});
  if (needs_weight) {
    SlicedConvWeightGradientParams p;
    p.window = k;
    p.x = images(grad), p.grad = images(x);  // the convolution runs from the large images to the small ones
    grad_weight = zero_gradient(weight, 0, p.grad_weight);
    kernels().sliced_conv_weight_gradient(p, executor);
  }
  return {grad_x, grad_weight, bias_gradient(grad, bias_size)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gancomp, CPU, m) {
  m.impl("sliced_conv2d", TORCH_BOX(&sliced_conv2d));
  m.impl("sliced_conv2d_backward", TORCH_BOX(&sliced_conv2d_backward));
  m.impl("sliced_conv_transpose2d", TORCH_BOX(&sliced_conv_transpose2d));
  m.impl("sliced_conv_transpose2d_backward", TORCH_BOX(&sliced_conv_transpose2d_backward));
}

}  // namespace gancomp::torch_ops
