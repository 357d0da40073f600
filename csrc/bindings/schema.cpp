// The schema of every torch op of gancomp.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(gancomp, m) {
  m.def(
      "instance_norm_act(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, bool relu, float eps)"
      " -> (Tensor y, Tensor mean, Tensor rstd)");
  m.def(
      "instance_norm_act_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, bool relu)"
      " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  m.def("reflect_pad_depthwise_conv3x3(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def(
      "reflect_pad_depthwise_conv3x3_backward(Tensor grad, Tensor x, Tensor weight, int bias_size, bool needs_x)"
      " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  m.def("sliced_conv2d(Tensor x, Tensor weight, Tensor? bias, int out_channels, int stride, int padding, int mode) -> Tensor");
  m.def(
      "sliced_conv2d_backward(Tensor grad, Tensor x, Tensor weight, int stride, int padding, int mode, int bias_size,"
      " bool needs_x, bool needs_weight) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "sliced_conv_transpose2d(Tensor x, Tensor weight, Tensor? bias, int out_channels, int stride, int padding,"
      " int output_padding) -> Tensor");
  m.def(
      "sliced_conv_transpose2d_backward(Tensor grad, Tensor x, Tensor weight, int stride, int padding, int output_padding,"
      " int bias_size, bool needs_x, bool needs_weight) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
}
