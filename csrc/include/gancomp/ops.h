// The operators of ring 0 as plain parameters, and the table of their CPU kernels for one instruction set.
#pragma once

#include "gancomp/blocked_ops.h"
#include "gancomp/export.h"
#include "gancomp/parallel.h"
#include "gancomp/tensor.h"
#include "gancomp/winograd_ops.h"

namespace gancomp {

// y = act(weight * (x - mean) * rstd + bias) + residual, statistics per plane; see gancomp.ops.instance_norm_act.
struct InstanceNormActParams {
  ConstImages x;
  ConstImages residual;           // data null: none
  const float* weight = nullptr;  // [C], null: one
  const float* bias = nullptr;    // [C], null: zero
  Images y;
  double* mean = nullptr;  // [N, C], dense; in float32 a large mean loses digits that the backward pass needs
  float* rstd = nullptr;   // [N, C], dense
  bool relu = false;
  float eps = 1e-5f;
};

struct InstanceNormActBackwardParams {
  ConstImages grad;  // of y
  ConstImages x;
  const float* weight = nullptr;
  const float* bias = nullptr;
  const double* mean = nullptr;
  const float* rstd = nullptr;
  Images grad_x;
  float* grad_weight = nullptr;  // [C], null: not wanted
  float* grad_bias = nullptr;    // [C], null: not wanted
  bool relu = false;
};

// y[n, c] = correlate(reflect_pad(x[n, c], 1), weight[c]) + bias[c]; see gancomp.ops.reflect_pad_depthwise_conv3x3.
struct ReflectPadDepthwiseConv3x3Params {
  ConstImages x;                  // h, w >= 2
  const float* weight = nullptr;  // [C, 3, 3], dense
  const float* bias = nullptr;    // [C], null: zero
  Images y;
};

struct ReflectPadDepthwiseConv3x3BackwardParams {
  ConstImages grad;  // of y
  ConstImages x;
  const float* weight = nullptr;
  Images grad_x;                 // data null: not wanted
  float* grad_weight = nullptr;  // [C, 3, 3]
  float* grad_bias = nullptr;    // [C], null: not wanted
};

constexpr int kMaxKernel = 15;
constexpr int kMaxStride = 4;

// How the window of a convolution moves: output position i sees positions i * stride + tap of the padded input.
struct ConvWindow {
  int taps_h = 1, taps_w = 1;  // at most kMaxKernel
  int stride = 1;              // at most kMaxStride
  int padding = 0;             // on every side, less than the taps
  BorderMode mode = BorderMode::zero;
};
// The first channels of a full weight: data[out * o + in * c + row * i + column * j].
template <typename T>
struct SlicedWeight {
  T* data = nullptr;
  int64_t out = 0, in = 0, row = 0, column = 0;
};

// Forward: y[n, o] = bias[o] + sum of weight[o, c] over x[n, c] under the window. Transposed (the gradient of the input, and
// the transposed convolution): y[n, o] = bias[o] + sum of what x[n, c] spreads over y through weight[o, c]; what reaches the
// padding goes to where the padding was taken from.
struct SlicedConvParams {
  ConvWindow window;
  ConstImages x;
  SlicedWeight<const float> weight;  // out: channels of y, in: channels of x
  const float* bias = nullptr;       // [C_y]; null: zero. None with another border than zero in the transposed form.
  Images y;
};

struct SlicedConvWeightGradientParams {
  ConvWindow window;
  ConstImages x, grad;              // input of the convolution, gradient of its output
  SlicedWeight<float> grad_weight;  // the active part is set
};

// sums[c]: of all images; the gradient of a bias.
struct PlaneSumsParams {
  ConstImages x;
  float* sums = nullptr;  // [C]
};

// Sums over pixels for the gradient of a pointwise weight are made in parts, whose number depends on nothing, and which are
// then added up in order: threads do not change the result.
constexpr int64_t kPointwiseParts = 8;
constexpr int64_t kPointwiseRows = 8, kPointwiseColumns = 48;  // multiples of the tiles of every instruction set
inline __attribute__((always_inline)) int64_t pointwise_sums_size(int64_t rows, int64_t columns) {
  return kPointwiseParts * ((rows + kPointwiseRows - 1) / kPointwiseRows * kPointwiseRows) *
         ((columns + kPointwiseColumns - 1) / kPointwiseColumns * kPointwiseColumns);
}

// h = relu(IN(P1(IN(D1(x))))) * mask * scale; y = x + IN(P2(IN(D2(h)))); see gancomp.ops.separable_resblock. D is a depthwise
// 3x3 convolution with reflection, P a pointwise one, IN normalises planes.
struct SeparableResblockWeights {
  const float *depthwise1 = nullptr, *depthwise2 = nullptr;  // [C, 3, 3] and [hidden, 3, 3], dense
  ConstMatrix pointwise1, pointwise2;                        // hidden x C and C x hidden
};

struct SeparableResblockParams {
  ConstImages x;  // h, w >= 2
  int64_t hidden = 0;
  SeparableResblockWeights weights;
  const uint8_t* mask = nullptr;  // [N, hidden, H, W] dense, 0 or 1; null: ones
  float scale = 1.0f;
  float eps = 1e-5f;
  Images y;
  // For the backward pass, all or none (data null): the outputs of P1 and P2, and (mean, 1 / standard deviation) of every plane
  // before its norm, [N, C + hidden + hidden + C, 2]: D1's, P1's, D2's, P2's.
  Images z1, z2;
  float* statistics = nullptr;
  float* workspace = nullptr;  // separable_resblock_workspace() floats, aligned to 64 bytes
};

struct SeparableResblockBackwardParams {
  ConstImages grad;  // of y
  ConstImages x;
  int64_t hidden = 0;
  SeparableResblockWeights weights;
  const uint8_t* mask = nullptr;
  float scale = 1.0f;
  ConstImages z1, z2;
  const float* statistics = nullptr;
  Images grad_x;  // data null: not wanted
  // All or none. Rows of the pointwise gradients lie as far apart as those of full weights, whose first part is written.
  float *grad_depthwise1 = nullptr, *grad_pointwise1 = nullptr, *grad_depthwise2 = nullptr, *grad_pointwise2 = nullptr;
  int64_t grad_pointwise1_stride = 0, grad_pointwise2_stride = 0;
  float* workspace = nullptr;  // separable_resblock_backward_workspace() floats, aligned to 64 bytes
};

// Images that the block works on at a time, so that what lies between its steps stays in cache.
inline __attribute__((always_inline)) int64_t separable_resblock_images(const ConstImages& x) {
  const int64_t images = x.plane_size() < 4096 ? 4096 / x.plane_size() : 1;
  return images < x.n ? images : x.n > 0 ? x.n : 1;
}
// Floats between planes of the workspace: an odd number of cache lines, so that the same pixels of many planes do not meet in a
// few sets of a cache; and of all planes of so many channels.
inline __attribute__((always_inline)) int64_t separable_resblock_stride(const ConstImages& x) {
  return ((x.plane_size() + 15) / 16 | 1) * 16;
}
inline __attribute__((always_inline)) int64_t separable_resblock_planes(const ConstImages& x, int64_t channels) {
  return separable_resblock_images(x) * channels * separable_resblock_stride(x);
}
inline __attribute__((always_inline)) int64_t separable_resblock_workspace(const SeparableResblockParams& p) {
  const int64_t widest = p.x.c > p.hidden ? p.x.c : p.hidden;
  return separable_resblock_planes(p.x, widest) + (p.z1.data == nullptr ? separable_resblock_planes(p.x, p.hidden) : 0);
}
constexpr int64_t kResblockStripe = 512;  // columns that are worked on at a time
inline __attribute__((always_inline)) int64_t separable_resblock_backward_workspace(const SeparableResblockBackwardParams& p) {
  const int64_t of_x = separable_resblock_planes(p.x, p.x.c), of_hidden = separable_resblock_planes(p.x, p.hidden);
  int64_t size = of_x + 2 * of_hidden;
  if (p.grad_pointwise1 != nullptr) size += pointwise_sums_size(p.hidden, p.x.c) + pointwise_sums_size(p.x.c, p.hidden);
  if (p.grad_x.data == nullptr || p.x.w > kResblockStripe) size += of_x;
  return size + (p.x.w > kResblockStripe ? of_hidden : 0);
}

// y = leaky((x - mean) * rstd * (1 + gamma) + beta, slope); see gancomp.ops.spade_modulate.
struct SpadeModulateParams {
  ConstImages x, gamma, beta;
  const float *given_mean = nullptr, *given_rstd = nullptr;  // [C]; null: those of x
  bool batch = false;                                        // of a channel in all images, else of a plane
  Images y;
  // Dense [C] with `batch` or given statistics, else [N, C]. As in InstanceNormActParams; the variance is not of given ones.
  double* mean = nullptr;
  float *rstd = nullptr, *variance = nullptr;
  float slope = 1.0f;
  float eps = 1e-5f;
};

struct SpadeModulateBackwardParams {
  ConstImages grad;  // of y
  ConstImages x, gamma;
  ConstImages y;  // for its sign; data null where the slope is one
  const double* mean = nullptr;
  const float* rstd = nullptr;
  bool per_channel = false;  // [C] statistics, else [N, C]
  bool constant = false;     // no gradient flows through them
  Images grad_x, grad_gamma, grad_beta;
  float slope = 1.0f;
};

struct CpuKernels {
  const char* isa;
  void (*instance_norm_act)(const InstanceNormActParams&, const Executor&);
  void (*instance_norm_act_backward)(const InstanceNormActBackwardParams&, const Executor&);
  void (*reflect_pad_depthwise_conv3x3)(const ReflectPadDepthwiseConv3x3Params&, const Executor&);
  void (*reflect_pad_depthwise_conv3x3_backward)(const ReflectPadDepthwiseConv3x3BackwardParams&, const Executor&);
  void (*sliced_conv)(const SlicedConvParams&, const Executor&);
  void (*sliced_conv_transpose)(const SlicedConvParams&, const Executor&);
  void (*sliced_conv_weight_gradient)(const SlicedConvWeightGradientParams&, const Executor&);
  void (*plane_sums)(const PlaneSumsParams&, const Executor&);
  void (*winograd_conv)(const WinogradConvParams&, const Executor&);
  void (*winograd_conv_transpose)(const WinogradConvParams&, const Executor&);
  void (*winograd_conv_weight_gradient)(const WinogradConvWeightGradientParams&, const Executor&);
  void (*separable_resblock)(const SeparableResblockParams&, const Executor&);
  void (*separable_resblock_backward)(const SeparableResblockBackwardParams&, const Executor&);
  void (*spade_modulate)(const SpadeModulateParams&, const Executor&);
  void (*spade_modulate_backward)(const SpadeModulateBackwardParams&, const Executor&);
  // The engine's, in the calling thread.
  void (*image_gather)(const ImageGatherParams&);
  void (*blocked_gather)(const BlockedGatherParams&);
  void (*blocked_conv)(const BlockedConvParams&);
  void (*blocked_depthwise)(const BlockedDepthwiseParams&);
  void (*winograd_input)(const WinogradInputParams&);
  void (*winograd_output)(const WinogradOutputParams&);
  void (*blocked_head)(const BlockedHeadParams&);
  void (*blocked_emit)(const BlockedEmitParams&);
  void (*merge_sums)(const MergeSumsParams&);
  void (*label_conv)(const LabelConvParams&);
  void (*blocked_modulate)(const BlockedModulateParams&);
  // What a core does at most: as many multiply-adds as registers allow, which goes sink[0] = sink[0] * sink[1] + sink[2] and
  // returns their number; and a copy.
  int64_t (*multiply_adds)(int64_t rounds, float* sink);
  void (*copy_floats)(const float* x, float* y, int64_t size);
  // Null where the instruction set has no 8-bit dot products.
  void (*blocked_quantize)(const BlockedQuantizeParams&);
  void (*int8_weights)(const Int8WeightsParams&);
  void (*int8_conv)(const Int8ConvParams&);
  void (*int8_head_weights)(const Int8HeadWeightsParams&);
};

// The kernels for an instruction set by name ("portable", "avx2", "avx512", "neon"), or null where this build or this
// processor lacks it.
GANCOMP_API const CpuKernels* cpu_kernels_for(const char* isa);

// The best kernels of this processor, or those that the environment variable GANCOMP_ISA names. Null, with a message in
// `error` (static storage), where that name cannot be had.
GANCOMP_API const CpuKernels* cpu_kernels(const char** error);

// Makes the next cpu_kernels() calls return the kernels of `isa` (null: forget the choice). Returns whether it can be had.
GANCOMP_API bool select_isa(const char* isa);

// The instruction sets in this build, best first, null-terminated.
GANCOMP_API const char* const* built_isas();

}  // namespace gancomp
