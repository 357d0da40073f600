// The CUDA implementations of the torch ops with products of matrices: convolutions and the residual block.
#include <tuple>

#include "torch_cuda.h"

namespace gancomp::torch_ops {
namespace {

using Three = std::tuple<Tensor, Tensor, Tensor>;

constexpr int64_t kMostStride = 255;  // a launch has a layer of blocks for every phase of a transposed convolution

struct Window {
  int64_t stride, padding, mode, output_padding;
};

void check_window(const Tensor& weight, const Window& window) {
  STD_TORCH_CHECK(weight.dim() == 4, "weight must have four dimensions");
  for (int64_t axis = 2; axis < 4; ++axis) {
    STD_TORCH_CHECK(weight.size(axis) >= 1 && weight.size(axis) < 65536, "kernels must have taps");
  }
  STD_TORCH_CHECK(window.stride >= 1 && window.stride <= kMostStride, "stride must be 1 to ", kMostStride);
  STD_TORCH_CHECK(window.padding >= 0 && window.mode >= 0 && window.mode <= 2, "unknown padding");
}

int64_t plain_size(int64_t size, int64_t taps, const Window& w) {
  STD_TORCH_CHECK(size + 2 * w.padding >= taps, "x is smaller than the kernel");
  STD_TORCH_CHECK(w.mode != 1 || w.padding < size, "reflection needs planes larger than the padding");
  return (size + 2 * w.padding - taps) / w.stride + 1;
}

int64_t transposed_size(int64_t size, int64_t taps, const Window& w) {
  STD_TORCH_CHECK(w.output_padding >= 0 && w.output_padding < w.stride, "output_padding must be less than the stride");
  const int64_t out = (size - 1) * w.stride - 2 * w.padding + taps + w.output_padding;
  STD_TORCH_CHECK(out >= 1, "nothing is left of the output");
  return out;
}

// Dimension `out` of the weight belongs to the output.
cuda::Filters filters_of(const Tensor& weight, const Tensor& x, int out) {
  check_parameter(weight, x, "weight");
  return {{weight.const_data_ptr(), weight.scalar_type() == ScalarType::Float},
          weight.stride(out),
          weight.stride(1 - out),
          weight.stride(2),
          weight.stride(3)};
}

cuda::ConvShape shape_of(const Tensor& x, const Tensor& weight, int64_t out_channels, const MaybeTensor& widths,
                         bool transposed, const Window& w) {
  check_window(weight, w);
  const int out = transposed ? 1 : 0;
  STD_TORCH_CHECK(out_channels >= 1 && out_channels <= weight.size(out) && x.size(1) <= weight.size(1 - out),
                  "weight must have at least the channels of x and y");
  cuda::ConvShape s;
  s.images = to_int(x.size(0), "images");
  s.in = channels(x.size(1), widths, x, 1, 2);
  s.out = channels(out_channels, widths, x, 0, 2);
  s.h = to_int(x.size(2), "h");
  s.w = to_int(x.size(3), "w");
  s.kernel_h = static_cast<int>(weight.size(2));
  s.kernel_w = static_cast<int>(weight.size(3));
  s.stride = static_cast<int>(w.stride);
  s.padding = static_cast<int>(w.padding);
  s.mode = w.mode == 0 ? cuda::Padding::kZeros : w.mode == 1 ? cuda::Padding::kReflect : cuda::Padding::kReplicate;
  s.out_h = to_int(transposed ? transposed_size(s.h, s.kernel_h, w) : plain_size(s.h, s.kernel_h, w), "output height");
  s.out_w = to_int(transposed ? transposed_size(s.w, s.kernel_w, w) : plain_size(s.w, s.kernel_w, w), "output width");
  // The kernels count the pixels of a batch, extended by the padding.
  to_int(x.size(0) * (s.h + 2 * w.padding) * (s.w + 2 * w.padding), "pixels of x");
  to_int(x.size(0) * s.out_h * s.out_w, "pixels of y");
  return s;
}

Tensor convolve(Tensor x, const Tensor& weight, MaybeTensor& bias, const MaybeTensor& widths, int64_t out_channels,
                bool transposed, bool tf32, const Window& window) {
  x = dense_images(x, x, "x");
  const Launch launch(x);
  cuda::SlicedConv p;
  p.dtype = dtype_of(x);
  p.tf32 = tf32;
  p.shape = shape_of(x, weight, out_channels, widths, transposed, window);
  p.x = planes(x);
  p.weight = filters_of(weight, x, transposed ? 1 : 0);
  p.bias = parameter(bias, x, "bias", out_channels);
  Tensor y = empty(x, {x.size(0), out_channels, p.shape.out_h, p.shape.out_w});
  p.y = writable(y);
  check_error(transposed ? cuda::sliced_conv_transpose2d(p, launch.stream()) : cuda::sliced_conv2d(p, launch.stream()));
  return y;
}

Three convolve_backward(Tensor grad, Tensor x, const Tensor& weight, MaybeTensor& bias, const MaybeTensor& widths,
                        bool transposed, bool tf32, const Window& window, bool needs_x, bool needs_weight, bool needs_bias) {
  x = dense_images(x, x, "x");
  grad = dense_images(grad, x, "grad");
  const Launch launch(x);
  cuda::SlicedConvBackward p;
  p.dtype = dtype_of(x);
  p.tf32 = tf32;
  p.shape = shape_of(x, weight, grad.size(1), widths, transposed, window);
  STD_TORCH_CHECK(grad.size(0) == x.size(0) && grad.size(2) == p.shape.out_h && grad.size(3) == p.shape.out_w,
                  "grad must have the shape of y");
  p.grad = planes(grad);
  p.x = planes(x);
  p.weight = filters_of(weight, x, transposed ? 1 : 0);
  Tensor grad_x = needs_x ? images_like(x) : empty(x, {0});
  if (needs_x) p.grad_x = writable(grad_x);
  Tensor grad_weight = weight_gradient(weight, needs_weight), grad_bias = vector_gradient(x, bias, needs_bias);
  p.grad_weight = gradient(grad_weight, needs_weight);
  p.grad_bias = gradient(grad_bias, needs_bias && bias.has_value());
  parameter(bias, x, "bias", grad.size(1));
  p.weight_in = to_int(weight.size(transposed ? 0 : 1), "weight");
  p.weight_out = to_int(weight.size(transposed ? 1 : 0), "weight");
  const Tensor memory = workspace(
      x, transposed ? cuda::sliced_conv_transpose2d_backward_workspace(p) : cuda::sliced_conv2d_backward_workspace(p));
  p.workspace = memory.mutable_data_ptr();
  check_error(transposed ? cuda::sliced_conv_transpose2d_backward(p, launch.stream())
                         : cuda::sliced_conv2d_backward(p, launch.stream()));
  return {grad_x, grad_weight, grad_bias};
}

Tensor sliced_conv2d(Tensor x, Tensor weight, MaybeTensor bias, MaybeTensor widths, int64_t out_channels, int64_t stride,
                     int64_t padding, int64_t mode, bool tf32) {
  return convolve(x, weight, bias, widths, out_channels, false, tf32, {stride, padding, mode, 0});
}

Three sliced_conv2d_backward(Tensor grad, Tensor x, Tensor weight, MaybeTensor bias, MaybeTensor widths, int64_t stride,
                             int64_t padding, int64_t mode, bool tf32, bool needs_x, bool needs_weight, bool needs_bias) {
  return convolve_backward(grad, x, weight, bias, widths, false, tf32, {stride, padding, mode, 0}, needs_x, needs_weight,
                           needs_bias);
}

Tensor sliced_conv_transpose2d(Tensor x, Tensor weight, MaybeTensor bias, MaybeTensor widths, int64_t out_channels,
                               int64_t stride, int64_t padding, int64_t output_padding, bool tf32) {
  return convolve(x, weight, bias, widths, out_channels, true, tf32, {stride, padding, 0, output_padding});
}

Three sliced_conv_transpose2d_backward(Tensor grad, Tensor x, Tensor weight, MaybeTensor bias, MaybeTensor widths,
                                       int64_t stride, int64_t padding, int64_t output_padding, bool tf32, bool needs_x,
                                       bool needs_weight, bool needs_bias) {
  return convolve_backward(grad, x, weight, bias, widths, true, tf32, {stride, padding, 0, output_padding}, needs_x,
                           needs_weight, needs_bias);
}

// --- separable_resblock ----------------------------------------------------------------------------------------------

// What the block keeps: the normalised outputs of both depthwise convolutions, the outputs of both pointwise ones, and
// statistics: means of the latter's planes (hidden, then stream), 1 / standard deviation of all (stream, hidden, hidden,
// stream).
struct Kept {
  Tensor depthwise1, pointwise1, depthwise2, pointwise2, mean, rstd;
};

cuda::SeparableResblock block_of(const Tensor& x, Tensor& depthwise1, const Tensor& pointwise1, Tensor& depthwise2,
                                 const Tensor& pointwise2, MaybeTensor& mask, const MaybeTensor& widths, double scale,
                                 int64_t hidden, double eps, bool tf32, const Kept& kept) {
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
  STD_TORCH_CHECK(h >= 2 && w >= 2, "reflection needs h, w >= 2");
  for (const Tensor* weight : {&pointwise1, &pointwise2}) {
    STD_TORCH_CHECK(weight->dim() == 4 && weight->size(2) == 1 && weight->size(3) == 1,
                    "pointwise weights must be [O, I, 1, 1]");
  }
  STD_TORCH_CHECK(hidden >= 1 && pointwise1.size(0) >= hidden && pointwise1.size(1) >= c && pointwise2.size(0) >= c &&
                      pointwise2.size(1) >= hidden,
                  "pointwise weights must have at least the channels of x and the hidden ones");
  cuda::SeparableResblock p;
  p.dtype = dtype_of(x);
  p.tf32 = tf32;
  p.images = to_int(n, "images");
  p.h = to_int(h, "h");
  p.w = to_int(w, "w");
  p.stream = channels(c, widths, x, 0, 2);
  p.hidden = channels(hidden, widths, x, 1, 2);
  to_int(n * h * w, "pixels of x");
  to_int(n * hidden, "planes");
  p.x = planes(x);
  p.depthwise1 = filters(depthwise1, x, "depthwise1", c);
  p.depthwise2 = filters(depthwise2, x, "depthwise2", hidden);
  p.pointwise1 = filters_of(pointwise1, x, 0);
  p.pointwise2 = filters_of(pointwise2, x, 0);
  if (mask.has_value()) {
    STD_TORCH_CHECK(mask->device() == x.device() && mask->scalar_type() == ScalarType::Byte && mask->dim() == 4 &&
                        mask->size(0) == n && mask->size(1) == hidden && mask->size(2) == h && mask->size(3) == w,
                    "mask must be bytes [N, hidden, H, W]");
    if (!mask->is_contiguous()) mask = torch::stable::contiguous(*mask);
    p.mask = static_cast<const uint8_t*>(mask->const_data_ptr());
  }
  p.scale = static_cast<float>(scale);
  p.eps = static_cast<float>(eps);
  double* mean = static_cast<double*>(kept.mean.mutable_data_ptr());
  float* rstd = static_cast<float*>(kept.rstd.mutable_data_ptr());
  p.first = {writable(kept.depthwise1), rstd, writable(kept.pointwise1), mean, rstd + n * c};
  p.second = {writable(kept.depthwise2), rstd + n * (c + hidden), writable(kept.pointwise2), mean + n * hidden,
              rstd + n * (c + 2 * hidden)};
  return p;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> separable_resblock(Tensor x, Tensor depthwise1,
                                                                                      Tensor pointwise1, Tensor depthwise2,
                                                                                      Tensor pointwise2, MaybeTensor mask,
                                                                                      MaybeTensor widths, double scale,
                                                                                      int64_t hidden, double eps, bool tf32) {
  x = dense_images(x, x, "x");
  const Launch launch(x);
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
  const Kept kept = {images_like(x),
                     empty(x, {n, hidden, h, w}),
                     empty(x, {n, hidden, h, w}),
                     images_like(x),
                     empty(x, {n * (hidden + c)}, ScalarType::Double),
                     empty(x, {2 * n * (c + hidden)}, ScalarType::Float)};
  Tensor y = images_like(x);
  cuda::SeparableResblock p =
      block_of(x, depthwise1, pointwise1, depthwise2, pointwise2, mask, widths, scale, hidden, eps, tf32, kept);
  p.y = writable(y);
  const Tensor memory = workspace(x, cuda::separable_resblock_workspace(p));
  p.workspace = memory.mutable_data_ptr();
  check_error(cuda::separable_resblock(p, launch.stream()));
  return {y, kept.depthwise1, kept.pointwise1, kept.depthwise2, kept.pointwise2, kept.mean, kept.rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> separable_resblock_backward(
    Tensor grad, Tensor x, Tensor depthwise1, Tensor pointwise1, Tensor depthwise2, Tensor pointwise2, MaybeTensor mask,
    MaybeTensor widths, Tensor first, Tensor first_out, Tensor second, Tensor second_out, Tensor mean, Tensor rstd,
    double scale, int64_t hidden, double eps, bool tf32, bool needs_weights) {
  x = dense_images(x, x, "x");
  STD_TORCH_CHECK(same_shape(grad, x), "grad must have the shape of x");
  grad = dense_images(grad, x, "grad");
  const Launch launch(x);
  const int64_t n = x.size(0), c = x.size(1);
  STD_TORCH_CHECK(same_shape(first, x) && same_shape(second_out, x) && same_shape(first_out, second) &&
                      first_out.size(1) == hidden && mean.numel() == n * (hidden + c) &&
                      mean.scalar_type() == ScalarType::Double && rstd.numel() == 2 * n * (c + hidden) &&
                      rstd.scalar_type() == ScalarType::Float,
                  "what was kept must be that of the forward pass");
  cuda::SeparableResblockBackward p;
  Tensor grad_x = images_like(x);
  Tensor grad_depthwise1 = weight_gradient(depthwise1, needs_weights),
         grad_pointwise1 = weight_gradient(pointwise1, needs_weights);
  Tensor grad_depthwise2 = weight_gradient(depthwise2, needs_weights),
         grad_pointwise2 = weight_gradient(pointwise2, needs_weights);
  p.forward = block_of(x, depthwise1, pointwise1, depthwise2, pointwise2, mask, widths, scale, hidden, eps, tf32,
                       {first, first_out, second, second_out, mean, rstd});
  p.grad = planes(grad);
  p.grad_x = writable(grad_x);
  p.grad_depthwise1 = gradient(grad_depthwise1, needs_weights);
  p.grad_pointwise1 = gradient(grad_pointwise1, needs_weights);
  p.grad_depthwise2 = gradient(grad_depthwise2, needs_weights);
  p.grad_pointwise2 = gradient(grad_pointwise2, needs_weights);
  p.pointwise1_in = to_int(pointwise1.size(1), "pointwise1");
  p.pointwise2_in = to_int(pointwise2.size(1), "pointwise2");
  const Tensor memory = workspace(x, cuda::separable_resblock_backward_workspace(p));
  p.workspace = memory.mutable_data_ptr();
  check_error(cuda::separable_resblock_backward(p, launch.stream()));
  return {grad_x, grad_depthwise1, grad_pointwise1, grad_depthwise2, grad_pointwise2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gancomp, GANCOMP_DISPATCH_KEY, m) {
  m.impl("sliced_conv2d.widths", TORCH_BOX(&sliced_conv2d));
  m.impl("sliced_conv2d_backward.widths", TORCH_BOX(&sliced_conv2d_backward));
  m.impl("sliced_conv_transpose2d.widths", TORCH_BOX(&sliced_conv_transpose2d));
  m.impl("sliced_conv_transpose2d_backward.widths", TORCH_BOX(&sliced_conv_transpose2d_backward));
  m.impl("separable_resblock.widths", TORCH_BOX(&separable_resblock));
  m.impl("separable_resblock_backward.widths", TORCH_BOX(&separable_resblock_backward));
}

}  // namespace gancomp::torch_ops
