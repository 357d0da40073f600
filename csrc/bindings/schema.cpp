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
  m.def("winograd_conv2d(Tensor x, Tensor weight, Tensor? bias, int stride, int padding) -> Tensor");
  m.def(
      "winograd_conv2d_backward(Tensor grad, Tensor x, Tensor weight, int stride, int padding, bool needs_x, bool needs_weight,"
      " bool needs_bias) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  // With `keep`, z1 and z2 are the pointwise convolutions' outputs and statistics (mean, 1 / standard deviation) of what the
  // four norms are applied to, [N, C + hidden + hidden + C, 2]; without, they are empty.
  m.def(
      "separable_resblock(Tensor x, Tensor depthwise1, Tensor pointwise1, Tensor depthwise2, Tensor pointwise2, Tensor? mask,"
      " float scale, int hidden, float eps, bool keep) -> (Tensor y, Tensor z1, Tensor z2, Tensor statistics)");
  m.def(
      "separable_resblock_backward(Tensor grad, Tensor x, Tensor depthwise1, Tensor pointwise1, Tensor depthwise2,"
      " Tensor pointwise2, Tensor? mask, float scale, Tensor z1, Tensor z2, Tensor statistics, bool needs_x,"
      " bool needs_weights)"
      " -> (Tensor grad_x, Tensor grad_depthwise1, Tensor grad_pointwise1, Tensor grad_depthwise2, Tensor grad_pointwise2)");
  // Given statistics come back as `used_mean` and `used_rstd`, for which there is no variance.
  m.def(
      "spade_modulate(Tensor x, Tensor gamma, Tensor beta, Tensor? mean, Tensor? rstd, bool batch, float slope, float eps)"
      " -> (Tensor y, Tensor used_mean, Tensor used_rstd, Tensor variance)");
  m.def(
      "spade_modulate_backward(Tensor grad, Tensor x, Tensor gamma, Tensor? y, Tensor mean, Tensor rstd, bool per_channel,"
      " bool constant, float slope) -> (Tensor grad_x, Tensor grad_gamma, Tensor grad_beta)");
}
