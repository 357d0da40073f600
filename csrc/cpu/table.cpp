// The kernel table of one instruction set.
#include "kernels.h"

#define GANCOMP_STRING_(x) #x
#define GANCOMP_STRING(x) GANCOMP_STRING_(x)

namespace gancomp::GANCOMP_ISA_NAME {

extern const CpuKernels kernels_table;
const CpuKernels kernels_table = {
    GANCOMP_STRING(GANCOMP_ISA_NAME),
    instance_norm_act,
    instance_norm_act_backward,
    reflect_pad_depthwise_conv3x3,
    reflect_pad_depthwise_conv3x3_backward,
    sliced_conv,
    sliced_conv_transpose,
    sliced_conv_weight_gradient,
    plane_sums,
    winograd_conv,
    winograd_conv_transpose,
    winograd_conv_weight_gradient,
    separable_resblock,
    separable_resblock_backward,
    spade_modulate,
    spade_modulate_backward,
    image_gather,
    blocked_gather,
    blocked_conv,
    blocked_depthwise,
    winograd_input,
    winograd_output,
    blocked_head,
    blocked_emit,
    merge_sums,
    label_conv,
    blocked_modulate,
    multiply_adds,
    copy_floats,
#if defined(GANCOMP_HAS_INT8)
    blocked_quantize,
    int8_weights,
    int8_conv,
    int8_head_weights,
#else
    nullptr,
    nullptr,
    nullptr,
    nullptr,
#endif
};

}  // namespace gancomp::GANCOMP_ISA_NAME
