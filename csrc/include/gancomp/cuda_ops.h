// The CUDA kernels of ring 0: parameters as plain data, and functions that launch on a stream.
//
// Every function returns null, or what went wrong as text. It allocates nothing: where a `..._workspace` function stands beside
// it, the caller brings that many bytes, aligned to 16. Pointers are to device memory unless they say otherwise. Sums are in a
// fixed order: two runs give the same bits.
#pragma once

#include <cstdint>

namespace gancomp::cuda {

enum class Dtype { kFloat32, kFloat16, kBfloat16 };
enum class Padding { kZeros, kReflect, kReplicate };

// How many channels are in use, the first ones of what is there. With `device`, the number lies in device memory and is read
// when the kernels run: launches are sized for `most`, and one captured graph serves every number of channels.
struct Channels {
  int most = 0;
  const int32_t* device = nullptr;
};

// [N, C, H, W] whose (h, w) planes are contiguous; strides in elements. `data` null where there is none.
struct ConstPlanes {
  const void* data = nullptr;
  int64_t stride_n = 0, stride_c = 0;
};

struct Planes {
  void* data = nullptr;
  int64_t stride_n = 0, stride_c = 0;
};

// A contiguous parameter, in the dtype of the images or float32.
struct Parameter {
  const void* data = nullptr;
  bool is_float32 = true;
};

// A contiguous gradient of `size` numbers, all of which are written; zero for channels not in use.
struct Gradient {
  void* data = nullptr;
  bool is_float32 = true;
  int64_t size = 0;
};

// y = act(weight * (x - mean) * rstd + bias) + residual; see gancomp.ops.instance_norm_act.
struct InstanceNormAct {
  Dtype dtype = Dtype::kFloat32;
  int images = 0, pixels = 0;  // pixels of a plane
  Channels channels;
  ConstPlanes x, residual;
  Parameter weight, bias;
  Planes y;
  double* mean = nullptr;  // [N, channels.most]
  float* rstd = nullptr;   // [N, channels.most]
  bool relu = false;
  float eps = 1e-5f;
};

struct InstanceNormActBackward {
  Dtype dtype = Dtype::kFloat32;
  int images = 0, pixels = 0;
  Channels channels;
  ConstPlanes grad, x;
  Parameter weight, bias;
  const double* mean = nullptr;
  const float* rstd = nullptr;
  Planes grad_x;
  Gradient grad_weight, grad_bias;  // data null: not wanted
  bool relu = false;
  void* workspace = nullptr;
};

const char* instance_norm_act(const InstanceNormAct& params, void* stream);
const char* instance_norm_act_backward(const InstanceNormActBackward& params, void* stream);
int64_t instance_norm_act_backward_workspace(const InstanceNormActBackward& params);

// y[n, c] = correlate(reflect_pad(x[n, c], 1), weight[c]) + bias[c]; see gancomp.ops.reflect_pad_depthwise_conv3x3.
struct ReflectPadDepthwiseConv3x3 {
  Dtype dtype = Dtype::kFloat32;
  int images = 0, h = 0, w = 0;  // h, w >= 2
  Channels channels;
  ConstPlanes x;
  Parameter weight, bias;  // [C, 3, 3], [C]
  Planes y;
};

struct ReflectPadDepthwiseConv3x3Backward {
  Dtype dtype = Dtype::kFloat32;
  int images = 0, h = 0, w = 0;
  Channels channels;
  ConstPlanes grad, x;
  Parameter weight;
  Planes grad_x;                    // data null: not wanted
  Gradient grad_weight, grad_bias;  // data null: not wanted
  void* workspace = nullptr;
};

const char* reflect_pad_depthwise_conv3x3(const ReflectPadDepthwiseConv3x3& params, void* stream);
const char* reflect_pad_depthwise_conv3x3_backward(const ReflectPadDepthwiseConv3x3Backward& params, void* stream);
int64_t reflect_pad_depthwise_conv3x3_backward_workspace(const ReflectPadDepthwiseConv3x3Backward& params);

// A convolution of [N, in, h, w] to [N, out, out_h, out_w], plain or transposed.
struct ConvShape {
  int images = 0;
  Channels in, out;
  int h = 0, w = 0, out_h = 0, out_w = 0;
  int kernel_h = 0, kernel_w = 0, stride = 1, padding = 0;
  Padding mode = Padding::kZeros;  // a transposed convolution knows zeros alone
};

// Filters of which the first channels are used, read through their strides (in elements).
struct Filters {
  Parameter values;
  int64_t stride_out = 0, stride_in = 0, stride_h = 0, stride_w = 0;
};

// y = conv(x, weight) + bias; see gancomp.ops.sliced_conv2d and sliced_conv_transpose2d.
struct SlicedConv {
  Dtype dtype = Dtype::kFloat32;
  bool tf32 = false;  // float32 products may be rounded to TF32
  ConvShape shape;
  ConstPlanes x;
  Filters weight;
  Parameter bias;
  Planes y;
};

struct SlicedConvBackward {
  Dtype dtype = Dtype::kFloat32;
  bool tf32 = false;
  ConvShape shape;
  ConstPlanes grad, x;
  Filters weight;
  Planes grad_x;                    // data null: not wanted
  Gradient grad_weight, grad_bias;  // data null: not wanted
  int weight_in = 0;                // input channels of the full weight, whose gradient is contiguous
  int weight_out = 0;
  void* workspace = nullptr;
};

const char* sliced_conv2d(const SlicedConv& params, void* stream);
const char* sliced_conv2d_backward(const SlicedConvBackward& params, void* stream);
int64_t sliced_conv2d_backward_workspace(const SlicedConvBackward& params);
const char* sliced_conv_transpose2d(const SlicedConv& params, void* stream);
const char* sliced_conv_transpose2d_backward(const SlicedConvBackward& params, void* stream);
int64_t sliced_conv_transpose2d_backward_workspace(const SlicedConvBackward& params);

// h = drop(relu(norm(P1 norm(D1 x)))), y = x + norm(P2 norm(D2 h)); see gancomp.ops.separable_resblock. D is the depthwise 3x3
// with reflection, P a pointwise convolution, norm an InstanceNorm. What one half keeps for the backward pass:
struct SeparableHalf {
  Planes depthwise;            // norm(D .), [N, C, H, W]
  float* rstd = nullptr;       // of D's output, [N, C]
  Planes pointwise;            // P's output
  double* out_mean = nullptr;  // of P's output
  float* out_rstd = nullptr;
};

struct SeparableResblock {
  Dtype dtype = Dtype::kFloat32;
  bool tf32 = false;
  int images = 0, h = 0, w = 0;
  Channels stream, hidden;
  ConstPlanes x;
  Parameter depthwise1, depthwise2;  // [C, 3, 3]
  Filters pointwise1, pointwise2;
  const uint8_t* mask = nullptr;  // [N, hidden.most, H, W] of 0 and 1, or null
  float scale = 1;                // of what the mask lets through
  float eps = 1e-5f;
  SeparableHalf first, second;
  Planes y;
  void* workspace = nullptr;
};

struct SeparableResblockBackward {
  SeparableResblock forward;  // as it ran
  ConstPlanes grad;
  Planes grad_x;
  Gradient grad_depthwise1, grad_pointwise1, grad_depthwise2, grad_pointwise2;
  int pointwise1_in = 0, pointwise2_in = 0;  // input channels of the full weights, whose gradients are contiguous
  void* workspace = nullptr;
};

const char* separable_resblock(const SeparableResblock& params, void* stream);
int64_t separable_resblock_workspace(const SeparableResblock& params);
const char* separable_resblock_backward(const SeparableResblockBackward& params, void* stream);
int64_t separable_resblock_backward_workspace(const SeparableResblockBackward& params);

// y = leaky((x - mean) * rstd * (1 + gamma) + beta, slope); see gancomp.ops.spade_modulate.
enum class SpadeNorm { kInstance, kBatch, kGiven };  // statistics of the plane, of the channel in all images, or given ones

struct SpadeModulate {
  Dtype dtype = Dtype::kFloat32;
  SpadeNorm norm = SpadeNorm::kInstance;
  int images = 0, pixels = 0;
  Channels channels;
  ConstPlanes x, gamma, beta;
  Planes y;
  double* mean = nullptr;  // [N, channels.most] of planes, [channels.most] of channels: written, or read where they are given
  float* rstd = nullptr;
  float* variance = nullptr;  // [channels.most], written with kBatch
  float slope = 1;
  float eps = 1e-5f;
  void* workspace = nullptr;
};

struct SpadeModulateBackward {
  Dtype dtype = Dtype::kFloat32;
  SpadeNorm norm = SpadeNorm::kInstance;
  int images = 0, pixels = 0;
  Channels channels;
  ConstPlanes grad, x, gamma, beta;
  const double* mean = nullptr;
  const float* rstd = nullptr;
  Planes grad_x, grad_gamma, grad_beta;
  float slope = 1;
  void* workspace = nullptr;
};

const char* spade_modulate(const SpadeModulate& params, void* stream);
int64_t spade_modulate_workspace(const SpadeModulate& params);
const char* spade_modulate_backward(const SpadeModulateBackward& params, void* stream);
int64_t spade_modulate_backward_workspace(const SpadeModulateBackward& params);

}  // namespace gancomp::cuda
