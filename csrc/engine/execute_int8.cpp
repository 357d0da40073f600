// Steps in bytes. Activations get a unit per input channel from the extremes of the whole plane, so that nothing is clipped;
// the weights take these units in and are quantized anew for every image, with a unit per output channel.
#include <algorithm>

#include "execute.h"

namespace gancomp::engine {
namespace {

constexpr float kSteps = 255.0f;  // of an unsigned byte

}  // namespace

// The units, and the weights in them. Every thread does this for itself: it takes microseconds.
void Execution::prepare_int8(const Task& task) const {
  const Step& step = task.step;
  const Norm& norm = task.norms[0];
  const int channels = program_.packed_channels(step), padded = (channels + kBlock - 1) / kBlock * kBlock;
  float *unit = task.scratch + task.plan.int8_in, *inverse = task.scratch + task.plan.int8_inverse;
  if (step.reads_image()) {
    std::fill(unit, unit + padded, 2.0f / kSteps);
    std::fill(inverse, inverse + padded, kSteps / 2.0f);
  } else {
    std::fill(unit + channels, unit + padded, 0.0f);
    std::fill(inverse + channels, inverse + padded, 0.0f);
    for (int c = 0; c < channels; ++c) {
      const float low = norm.low[c] - norm.mean[c], high = norm.high[c] - norm.mean[c];
      if (step.kind == Step::Kind::pointwise) {
        // Of (x - mean), both signs: half the steps for each.
        const float largest = std::max(-low, high), steps = (kSteps - 1) / 2;
        unit[c] = largest * norm.scale[c] / steps;
        inverse[c] = largest > 0 ? steps / largest : 0.0f;
      } else {
        const float largest = std::max({low * norm.scale[c] + norm.shift[c], high * norm.scale[c] + norm.shift[c], 0.0f});
        unit[c] = largest / kSteps;
        inverse[c] = largest > 0 ? kSteps / largest : 0.0f;
      }
    }
  }
  int8_t* weights = reinterpret_cast<int8_t*>(task.scratch + task.plan.int8_weights);
  float* out_unit = task.scratch + task.plan.int8_out;
  if (step.kind == Step::Kind::head) {
    kernels_.int8_head_weights({step.weight.data(), padded / kBlock, step.kernel, step.out_channels, unit, weights, out_unit});
    return;
  }
  const int taps = step.reads_image() ? step.kernel : step.taps();
  kernels_.int8_weights({step.weight.data(), channels, taps, step.out_blocks(), unit, weights, out_unit});
}

// The strip's rows in bytes: gathered ones, or those of a pointwise step where they lie.
BlockedQuantizeParams Execution::quantize(const Task& task) const {
  static constexpr float kImageMean[kBlock] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  const Step& step = task.step;
  BlockedQuantizeParams q;
  q.inverse = task.scratch + task.plan.int8_inverse;
  q.y = reinterpret_cast<uint8_t*>(task.scratch + task.plan.int8_rows);
  if (step.kind == Step::Kind::pointwise) {
    const ValuePlan& in = plan_.values[step.inputs[0]];
    q.x = arena_ + in.data + task.begin * in.row_stride();
    q.x_block = in.block_stride();
    q.blocks = program_.values[step.inputs[0]].blocks();
    q.rows = 1, q.width = (task.end - task.begin) * in.width;
    q.mean = task.norms[0].mean;
    q.zero = 128;
    q.y_block = static_cast<int64_t>(task.plan.strip_rows) * in.width * kBlock;
  } else {
    q.x = task.scratch;
    q.x_block = task.plan.gather_block, q.x_row = task.plan.gather_row;
    q.blocks = step.reads_image() ? 1 : program_.values[step.inputs[0]].blocks();
    q.rows = gathered_rows(step, task.plan, task.end - task.begin);
    q.width = static_cast<int>(task.plan.gather_row / kBlock);
    q.mean = step.reads_image() ? kImageMean : nullptr;
    q.y_block = q.x_block, q.y_row = q.x_row;
  }
  kernels_.blocked_quantize(q);
  return q;
}

void Execution::conv_int8(const Task& task) const {
  const Step& step = task.step;
  if (step.gathers()) gather(task);
  const BlockedQuantizeParams q = quantize(task);
  const BlockedConvParams f32 = conv_params(task);
  Int8ConvParams c;
  c.x = q.y;
  c.x_block = step.reads_image() ? kBlock : q.y_block;
  c.x_row = q.y_row;
  c.x_pixel = f32.x_pixel;
  c.stride = f32.stride;
  c.in_channels = f32.in_channels;
  c.taps_h = f32.taps_h, c.taps_w = f32.taps_w;
  c.weight = reinterpret_cast<const int8_t*>(task.scratch + task.plan.int8_weights);
  c.out_unit = task.scratch + task.plan.int8_out;
  c.out_blocks = f32.out_blocks;
  c.y = f32.y, c.y_block = f32.y_block, c.y_row = f32.y_row;
  c.rows = f32.rows, c.width = f32.width;
  c.sums = f32.sums;
  if (step.kind == Step::Kind::pointwise) c.width *= c.rows, c.rows = 1;
  kernels_.int8_conv(c);
}

}  // namespace gancomp::engine
