// The schemas of the torch ops that CUDA implements: those of schema.cpp with what only a GPU has a use for. `widths` are int32
// in device memory that say how many channels are in use (convolutions: output, input; the residual block: stream, hidden; the
// others: one), `tf32` whether products of float32 may be rounded.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(gancomp, m) {
  m.def(
      "instance_norm_act.widths(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? widths, bool relu, float eps)"
      " -> (Tensor y, Tensor mean, Tensor rstd)");
  m.def(
      "instance_norm_act_backward.widths(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor? widths, Tensor mean,"
      " Tensor rstd, bool relu, bool needs_weight, bool needs_bias)"
      " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  m.def("reflect_pad_depthwise_conv3x3.widths(Tensor x, Tensor weight, Tensor? bias, Tensor? widths) -> Tensor");
  m.def(
      "reflect_pad_depthwise_conv3x3_backward.widths(Tensor grad, Tensor x, Tensor weight, Tensor? bias, Tensor? widths,"
      " bool needs_x, bool needs_weight, bool needs_bias) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "sliced_conv2d.widths(Tensor x, Tensor weight, Tensor? bias, Tensor? widths, int out_channels, int stride, int padding,"
      " int mode, bool tf32) -> Tensor");
  m.def(
      "sliced_conv2d_backward.widths(Tensor grad, Tensor x, Tensor weight, Tensor? bias, Tensor? widths, int stride,"
      " int padding, int mode, bool tf32, bool needs_x, bool needs_weight, bool needs_bias)"
      " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "sliced_conv_transpose2d.widths(Tensor x, Tensor weight, Tensor? bias, Tensor? widths, int out_channels, int stride,"
      " int padding, int output_padding, bool tf32) -> Tensor");
  m.def(
      "sliced_conv_transpose2d_backward.widths(Tensor grad, Tensor x, Tensor weight, Tensor? bias, Tensor? widths, int stride,"
      " int padding, int output_padding, bool tf32, bool needs_x, bool needs_weight, bool needs_bias)"
      " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "separable_resblock.widths(Tensor x, Tensor depthwise1, Tensor pointwise1, Tensor depthwise2, Tensor pointwise2,"
      " Tensor? mask, Tensor? widths, float scale, int hidden, float eps, bool tf32)"
      " -> (Tensor y, Tensor first, Tensor first_out, Tensor second, Tensor second_out, Tensor mean, Tensor rstd)");
  m.def(
      "separable_resblock_backward.widths(Tensor grad, Tensor x, Tensor depthwise1, Tensor pointwise1, Tensor depthwise2,"
      " Tensor pointwise2, Tensor? mask, Tensor? widths, Tensor first, Tensor first_out, Tensor second, Tensor second_out,"
      " Tensor mean, Tensor rstd, float scale, int hidden, float eps, bool tf32, bool needs_weights)"
      " -> (Tensor grad_x, Tensor grad_depthwise1, Tensor grad_pointwise1, Tensor grad_depthwise2, Tensor grad_pointwise2)");
  m.def(
      "spade_modulate.widths(Tensor x, Tensor gamma, Tensor beta, Tensor? mean, Tensor? rstd, Tensor? widths, bool batch,"
      " float slope, float eps) -> (Tensor y, Tensor mean_out, Tensor rstd_out, Tensor variance)");
  m.def(
      "spade_modulate_backward.widths(Tensor grad, Tensor x, Tensor gamma, Tensor beta, Tensor mean, Tensor rstd,"
      " Tensor? widths, bool batch, bool given, float slope) -> (Tensor grad_x, Tensor grad_gamma, Tensor grad_beta)");
}
