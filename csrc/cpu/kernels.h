// What every per-ISA source shares. Each source of this folder is compiled once per instruction set, with GANCOMP_ISA_NAME
// naming the namespace, so that two compilations never share a symbol.
#pragma once

#include "gancomp/ops.h"

#define GANCOMP_RESTRICT __restrict__
// Vectorise the loop below; sums may be reordered into lanes (-fopenmp-simd, no OpenMP runtime).
#define GANCOMP_PRAGMA(text) _Pragma(#text)
#define GANCOMP_SIMD GANCOMP_PRAGMA(omp simd)
#define GANCOMP_SIMD_SUM(...) GANCOMP_PRAGMA(omp simd reduction(+ : __VA_ARGS__))

namespace gancomp::GANCOMP_ISA_NAME {

// Index in [0, size) of a position outside, by repeated reflection or by the nearest edge.
inline int64_t inside(int64_t i, int64_t size, BorderMode mode) {
  if (mode == BorderMode::replicate || size == 1) return i < 0 ? 0 : i < size ? i : size - 1;
  const int64_t period = 2 * (size - 1);
  i = (i % period + period) % period;
  return i < size ? i : period - i;
}

void instance_norm_act(const InstanceNormActParams& p, const Executor& executor);
void instance_norm_act_backward(const InstanceNormActBackwardParams& p, const Executor& executor);
void reflect_pad_depthwise_conv3x3(const ReflectPadDepthwiseConv3x3Params& p, const Executor& executor);
void reflect_pad_depthwise_conv3x3_backward(const ReflectPadDepthwiseConv3x3BackwardParams& p, const Executor& executor);
void sliced_conv(const SlicedConvParams& p, const Executor& executor);
void sliced_conv_transpose(const SlicedConvParams& p, const Executor& executor);
void sliced_conv_weight_gradient(const SlicedConvWeightGradientParams& p, const Executor& executor);
void plane_sums(const PlaneSumsParams& p, const Executor& executor);
void winograd_conv(const WinogradConvParams& p, const Executor& executor);
void winograd_conv_transpose(const WinogradConvParams& p, const Executor& executor);
void winograd_conv_weight_gradient(const WinogradConvWeightGradientParams& p, const Executor& executor);
void separable_resblock(const SeparableResblockParams& p, const Executor& executor);
void separable_resblock_backward(const SeparableResblockBackwardParams& p, const Executor& executor);
void spade_modulate(const SpadeModulateParams& p, const Executor& executor);
void spade_modulate_backward(const SpadeModulateBackwardParams& p, const Executor& executor);
void image_gather(const ImageGatherParams& p);
void blocked_gather(const BlockedGatherParams& p);
void blocked_conv(const BlockedConvParams& p);
void blocked_depthwise(const BlockedDepthwiseParams& p);
void winograd_input(const WinogradInputParams& p);
void winograd_output(const WinogradOutputParams& p);
void blocked_head(const BlockedHeadParams& p);
void blocked_emit(const BlockedEmitParams& p);
void merge_sums(const MergeSumsParams& p);
void label_conv(const LabelConvParams& p);
void blocked_modulate(const BlockedModulateParams& p);
int64_t multiply_adds(int64_t rounds, float* sink);
void copy_floats(const float* x, float* y, int64_t size);

#if defined(__AVX512VNNI__)
#define GANCOMP_HAS_INT8 1
void blocked_quantize(const BlockedQuantizeParams& p);
void int8_weights(const Int8WeightsParams& p);
void int8_conv(const Int8ConvParams& p);
void int8_head_weights(const Int8HeadWeightsParams& p);
// Sums of a row of BlockedHeadParams in bytes, without bias: [channel][width + 64].
void int8_head_sums(const BlockedHeadParams& p, int row);
#endif

}  // namespace gancomp::GANCOMP_ISA_NAME
