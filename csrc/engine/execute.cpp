#include "execute.h"

#include <algorithm>
#include <chrono>

namespace gancomp::engine {
namespace {

double now_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

BorderMode border_mode(Padding padding) {
  switch (padding) {
    case Padding::reflect:
      return BorderMode::reflect;
    case Padding::replicate:
      return BorderMode::replicate;
    default:
      return BorderMode::zero;
  }
}

}  // namespace

bool Execution::run() {
  if (times_ != nullptr) {
    std::fill(times_, times_ + program_.steps.size(), 0.0);
    step_begin_ = now_ms();
  }
  team_.run(plan_.steps[0].strips, [](void* self, int thread) { static_cast<Execution*>(self)->work(thread); }, this);
  return !wrong_labels_.load(std::memory_order_relaxed);
}

void Execution::work(int thread) {
  const int steps = static_cast<int>(program_.steps.size());
  for (int64_t image = 0; image < count_; ++image) {
    for (int index = 0; index < steps; ++index) {
      run_step(index, image, thread);
      // A step takes until the last thread is done with it; a thread that loses its core right after must not prolong it.
      const double now = times_ != nullptr ? now_ms() : 0.0;
      const bool last = team_.next_step(plan_.steps[index + 1 < steps ? index + 1 : 0].strips);
      if (last && times_ != nullptr) {
        times_[index] += now - step_begin_;
        step_begin_ = now;
      }
    }
  }
}

void Execution::run_step(int index, int64_t image, int thread) {
  int64_t strip = team_.take(thread);
  if (strip < 0) return;
  float* const own = scratch_ + thread * plan_.scratch;
  Task task{program_.steps[index], plan_.steps[index], index, image, {}, own + (plan_.params + 15) / 16 * 16};
  float* params = own;
  for (size_t i = 0; i < task.step.inputs.size(); ++i) {
    const int value = task.step.inputs[i];
    if (value < 0) continue;
    const bool modulated = i == 0 && task.step.modulates();
    const Modulation& modulation = task.step.modulation;
    if (modulated && !modulation.mean.empty()) {
      task.norms[i] = Norm{modulation.mean.data(), modulation.factor.data()};
    } else {
      task.norms[i] = modulated ? plane_norm(value, params) : norm_of(value, params);
    }
    params += kNormRows * program_.values[value].blocks() * kBlock;
  }
  if (task.step.int8) {
    prepare_int8(task);
  } else if (task.step.kind == Step::Kind::pointwise && task.norms[0].mean != nullptr) {
    fold_weights(task.step, task.step.weight, Floats(), task.norms[0], task.scratch);
  } else if (task.step.kind == Step::Kind::label_modulate) {
    fold_sides(task);
  }
  for (; strip >= 0; strip = team_.take(thread)) {
    task.strip = static_cast<int>(strip);
    task.begin = task.strip * task.plan.strip_rows;
    task.end = std::min(task.begin + task.plan.strip_rows, task.plan.rows);
    run_strip(task);
  }
}

void Execution::run_strip(Task& task) const {
  if (task.step.int8 && task.step.kind != Step::Kind::head) return conv_int8(task);
  switch (task.step.kind) {
    case Step::Kind::conv:
      return conv(task);
    case Step::Kind::pointwise:
      return pointwise(task);
    case Step::Kind::depthwise:
      return depthwise(task);
    case Step::Kind::transposed:
      return transposed(task);
    case Step::Kind::winograd_input:
      return winograd_input(task);
    case Step::Kind::winograd_multiply:
      return winograd_multiply(task);
    case Step::Kind::winograd_output:
      return winograd_output(task);
    case Step::Kind::head:
      return head(task);
    case Step::Kind::emit:
      return emit(task);
    case Step::Kind::labels:
      return labels(task);
    case Step::Kind::label:
      return label(task);
    case Step::Kind::label_statistics:
      return label_statistics(task);
    case Step::Kind::modulate:
      return modulate(task);
    case Step::Kind::label_modulate:
      return label_modulate(task);
    case Step::Kind::enlarge:
      return enlarge(task);
  }
}

// Every thread works the parameters out for itself: that takes less time than waiting for one that does.
Execution::Norm Execution::norm_of(int index, float* params) const {
  return program_.values[index].norm ? plane_norm(index, params) : Norm{};
}

Execution::Norm Execution::plane_norm(int index, float* params) const {
  const Value& value = program_.values[index];
  const ValuePlan& p = plan_.values[index];
  const int channels = value.blocks() * kBlock;
  MergeSumsParams merge;
  merge.sums = arena_ + p.sums;
  merge.counts = p.counts.data();
  merge.strips = static_cast<int>(p.counts.size());
  merge.channels = channels;
  merge.eps = value.eps;
  merge.norm_scale = value.norm_scale.data();
  merge.norm_shift = value.norm_shift.data();
  merge.mean = params, merge.scale = params + channels, merge.shift = params + 2 * channels;
  if (value.extremes) merge.low = params + 3 * channels, merge.high = params + 4 * channels;
  kernels_.merge_sums(merge);
  return Norm{merge.mean, merge.scale, merge.shift, merge.low, merge.high};
}

// A 1x1 convolution of (x - mean) * scale is one of x with its weights scaled, and a bias. The norm behind the convolution
// would take that away again, but without it the outputs were far from zero, and so were the sums of their squares from their
// variance.
void Execution::fold_weights(const Step& step, const Floats& weights, const Floats& bias, const Norm& norm, float* to) {
  const float* from = weights.data();
  const int out_channels = step.out_blocks() * kBlock;
  float *at = to, *folded_bias = to + weights.size();
  for (int group = 0; group < out_channels; group += kGroup * kBlock) {
    const int width = std::min(kGroup * kBlock, out_channels - group);
    float means[kGroup * kBlock] = {};
    for (int c = 0; c < step.in_channels; ++c, from += width, at += width) {
      const float scale = norm.scale[c], mean = norm.mean == nullptr ? 0.0f : norm.mean[c];
      for (int o = 0; o < width; ++o) {
        const float weight = from[o] * scale;
        at[o] = weight;
        means[o] += weight * mean;
      }
    }
    for (int o = 0; o < width; ++o) *folded_bias++ = (bias.empty() ? 0.0f : bias.data()[group + o]) - means[o];
  }
}

ChannelSums Execution::sums_of(const Task& task) const {
  return task.step.output < 0 ? ChannelSums() : part_sums(task.step.output, task.strip);
}

ChannelSums Execution::part_sums(int index, int part) const {
  ChannelSums sums;
  const Value& value = program_.values[index];
  if (!value.statistics) return sums;
  const int64_t channels = value.blocks() * kBlock;
  sums.pivot = arena_ + plan_.values[index].sums + part * kSumRows * channels;
  sums.sum = sums.pivot + channels;
  sums.squares = sums.sum + channels;
  if (value.extremes) sums.low = sums.squares + channels, sums.high = sums.low + channels;
  return sums;
}

// Rows [begin, end) of one input, finished and with borders; block strides and destinations are the caller's.
BlockedGatherParams Execution::gather_params(const Task& task, int input, int begin, int end) const {
  const int index = task.step.inputs[input];
  const Value& value = program_.values[index];
  const ValuePlan& p = plan_.values[index];
  BlockedGatherParams g;
  g.x_block = p.block_stride(), g.x_row = p.row_stride();
  g.blocks = value.blocks(), g.height = p.height, g.width = p.width;
  g.slope = task.step.input_slope;
  if (value.kept_by >= 0 && value.kept_by != task.index) {
    g.x = arena_ + p.kept;
  } else {
    g.x = arena_ + p.data;
    g.mean = task.norms[input].mean, g.scale = task.norms[input].scale, g.shift = task.norms[input].shift;
    g.slope *= value.slope;
    if (value.residual >= 0) g.residual = arena_ + plan_.values[value.residual].kept;
    if (value.kept_by == task.index) {
      g.kept = arena_ + p.kept;
      // Every row is kept by one strip: rows between two strips' own belong to the first.
      const int stride = task.step.kind == Step::Kind::transposed       ? 1
                         : task.step.kind == Step::Kind::winograd_input ? kWinogradTile
                                                                        : task.step.stride;
      g.kept_begin = task.begin * stride;
      g.kept_end = task.strip + 1 == task.plan.strips ? p.height : task.end * stride;
    }
  }
  g.row_begin = begin, g.row_end = end;
  g.border_left = task.plan.left, g.border_right = task.plan.right;
  g.mode = border_mode(task.step.padding_mode);
  g.y_row = task.plan.gather_row, g.y_block = task.plan.gather_block;
  return g;
}

// Gathers what the strip reads into the scratch.
void Execution::gather(const Task& task) const {
  const Step& step = task.step;
  const bool phases = step.kind == Step::Kind::transposed;
  const int begin = phases ? task.begin - task.plan.above : task.begin * step.stride - step.padding;
  const int end = begin + gathered_rows(step, task.plan, task.end - task.begin);
  if (step.reads_image()) {
    ImageGatherParams g;
    const int64_t pixels = static_cast<int64_t>(plan_.height) * plan_.width * program_.in_channels * task.image;
    g.planes = images_.x_planes == nullptr ? nullptr : images_.x_planes + pixels;
    g.bytes = images_.x_bytes == nullptr ? nullptr : images_.x_bytes + pixels;
    g.channels = program_.in_channels, g.height = plan_.height, g.width = plan_.width;
    g.rows = task.plan.image_rows.data() + begin + step.padding;
    g.row_count = end - begin;
    g.columns = task.plan.image_columns.data();
    g.column_count = static_cast<int>(task.plan.image_columns.size());
    g.pixel = program_.image_pixel;
    g.y = task.scratch;
    g.y_row = task.plan.gather_row, g.y_block = task.plan.gather_block;
    kernels_.image_gather(g);
    return;
  }
  float* to = task.scratch;
  for (size_t i = 0; i < step.inputs.size(); ++i) {
    BlockedGatherParams g = gather_params(task, static_cast<int>(i), begin, end);
    g.y = to;
    kernels_.blocked_gather(g);
    to += g.blocks * task.plan.gather_block;
  }
}

// Of the strip's rows in the output's memory, reading gathered rows.
BlockedConvParams Execution::conv_params(const Task& task) const {
  const ValuePlan& out = plan_.values[task.step.output];
  BlockedConvParams c;
  c.x = task.scratch;
  c.x_block = task.plan.gather_block, c.x_row = task.plan.gather_row;
  c.stride = task.step.stride;
  c.in_channels = program_.packed_channels(task.step);
  c.taps_h = c.taps_w = task.step.kernel;
  if (task.step.reads_image() && program_.image_pixel != kBlock) {
    // A row of taps is one piece.
    c.x_pixel = program_.image_pixel;
    c.x_block = kBlock;
    c.taps_w = 1;
  }
  c.weight = task.step.weight.data();
  c.bias = task.step.bias.data();
  c.out_blocks = task.step.out_blocks();
  c.y = arena_ + out.data + task.begin * out.row_stride();
  c.y_block = out.block_stride(), c.y_row = out.row_stride();
  c.rows = task.end - task.begin, c.width = task.plan.out_width;
  c.add = task.step.add;
  c.sums = sums_of(task);
  return c;
}

void Execution::conv(const Task& task) const {
  gather(task);
  kernels_.blocked_conv(conv_params(task));
}

void Execution::pointwise(const Task& task) const {
  const ValuePlan& in = plan_.values[task.step.inputs[0]];
  BlockedConvParams c = conv_params(task);
  c.x = arena_ + in.data + task.begin * in.row_stride();
  c.x_block = in.block_stride(), c.x_row = in.row_stride();
  if (task.norms[0].mean != nullptr) {
    c.weight = task.scratch;
    c.bias = task.scratch + task.step.weight.size();
    c.centred = true;
  }
  // Rows follow one another without borders: one long row.
  c.width *= c.rows;
  c.rows = 1;
  kernels_.blocked_conv(c);
}

void Execution::transposed(const Task& task) const {
  gather(task);
  const ValuePlan& out = plan_.values[task.step.output];
  for (int i = 0; i < 4; ++i) {
    const Phase& phase = task.step.phases[i];
    BlockedConvParams c = conv_params(task);
    c.x += (task.plan.above + phase.first_row) * c.x_row + (task.plan.left + phase.first_column) * kBlock;
    c.stride = 1;
    c.taps_h = phase.taps_h, c.taps_w = phase.taps_w;
    c.weight = phase.weight.data();
    c.y = arena_ + out.data + (2 * task.begin + i / 2) * out.row_stride() + i % 2 * kBlock;
    c.y_row = 2 * out.row_stride();
    c.y_pixel = 2 * kBlock;
    c.width = task.plan.in_width;
    c.first = i == 0;
    kernels_.blocked_conv(c);
  }
}

// Calls use(block) with the block's rows [begin, end) in the scratch, one block after the other.
template <typename Use>
void Execution::gather_by_block(const Task& task, int begin, int end, const Use& use) const {
  BlockedGatherParams g = gather_params(task, 0, begin, end);
  const int blocks = g.blocks;
  g.blocks = 1;
  g.y = task.scratch;
  for (int block = 0; block < blocks; ++block) {
    kernels_.blocked_gather(g);
    use(block);
    g.x += g.x_block;
    if (g.residual != nullptr) g.residual += g.x_block;
    if (g.kept != nullptr) g.kept += g.x_block;
    if (g.mean != nullptr) g.mean += kBlock, g.scale += kBlock, g.shift += kBlock;
  }
}

void Execution::depthwise(const Task& task) const {
  const Step& step = task.step;
  const ValuePlan& out = plan_.values[step.output];
  gather_by_block(task, task.begin - step.padding, task.end + step.padding, [&](int block) {
    BlockedDepthwiseParams d;
    d.x = task.scratch;
    d.x_row = task.plan.gather_row;
    d.weight = step.weight.data() + block * 9 * kBlock;
    d.bias = step.bias.empty() ? nullptr : step.bias.data() + block * kBlock;
    d.y = arena_ + out.data + block * out.block_stride() + task.begin * out.row_stride();
    d.y_row = out.row_stride();
    d.rows = task.end - task.begin, d.width = task.plan.out_width;
    d.sums = sums_of(task).from(block * kBlock);
    kernels_.blocked_depthwise(d);
  });
}

void Execution::winograd_input(const Task& task) const {
  const StepPlan& multiply = plan_.steps[task.index + 1];
  const int begin = task.begin * kWinogradTile - task.step.padding;
  gather_by_block(task, begin, begin + gathered_rows(task.step, task.plan, task.end - task.begin), [&](int block) {
    WinogradInputParams w;
    w.x = task.scratch;
    w.x_row = task.plan.gather_row;
    w.tile_rows = task.end - task.begin, w.tile_columns = task.plan.tile_columns;
    w.y_product = multiply.factor_stride;
    w.y = arena_ + multiply.factors + block * task.plan.tile_floats() + task.begin * task.plan.tile_columns * kBlock;
    kernels_.winograd_input(w);
  });
}

void Execution::winograd_multiply(const Task& task) const {
  const int64_t tiles = task.plan.tile_floats();
  for (int product = task.begin; product < task.end; ++product) {
    BlockedConvParams c;
    c.x = arena_ + task.plan.factors + product * task.plan.factor_stride;
    c.x_block = tiles;
    c.in_channels = task.step.in_channels;
    c.weight = task.step.weight.data() + task.step.weight.size() / kWinogradProducts * product;
    c.out_blocks = task.step.out_blocks();
    c.y = arena_ + task.plan.products + product * task.plan.product_stride;
    c.y_block = tiles;
    c.rows = 1, c.width = static_cast<int>(tiles / kBlock);
    kernels_.blocked_conv(c);
  }
}

void Execution::winograd_output(const Task& task) const {
  const Step& step = task.step;
  const StepPlan& multiply = plan_.steps[task.index - 1];
  const ValuePlan& out = plan_.values[step.output];
  const int row = task.begin * kWinogradTile;
  for (int block = 0; block < step.out_blocks(); ++block) {
    WinogradOutputParams w;
    w.x = arena_ + multiply.products + block * task.plan.tile_floats() + task.begin * task.plan.tile_columns * kBlock;
    w.x_product = multiply.product_stride;
    w.tile_columns = task.plan.tile_columns;
    w.bias = step.bias.empty() ? nullptr : step.bias.data() + block * kBlock;
    w.y = arena_ + out.data + block * out.block_stride() + row * out.row_stride();
    w.y_row = out.row_stride();
    w.rows = std::min(task.end * kWinogradTile, out.height) - row, w.width = out.width;
    w.add = step.add;
    w.sums = sums_of(task).from(block * kBlock);
    kernels_.winograd_output(w);
  }
}

void Execution::head(const Task& task) const {
  gather(task);
  BlockedHeadParams h;
  h.x = task.scratch;
  h.x_block = task.plan.gather_block, h.x_row = task.plan.gather_row;
  for (int input : task.step.inputs) h.in_blocks += program_.values[input].blocks();
  h.taps = task.step.kernel;
  if (task.step.int8) {
    h.x8 = quantize(task).y;
    h.weight8 = reinterpret_cast<const int8_t*>(task.scratch + task.plan.int8_weights);
    h.out_unit = task.scratch + task.plan.int8_out;
  }
  h.weight = task.step.weight.data();
  h.bias = task.step.bias.data();
  h.out_channels = task.step.out_channels;
  h.tanh = task.step.tanh;
  h.rows = task.end - task.begin, h.width = plan_.width;
  h.scratch = task.scratch + task.plan.head_sums;
  h.plane = static_cast<int64_t>(plan_.height) * plan_.width;
  const int64_t start = task.image * h.plane * h.out_channels;
  if (images_.y_planes != nullptr) {
    h.y_row = plan_.width;
    h.planes = images_.y_planes + start + task.begin * h.y_row;
  } else {
    h.y_row = static_cast<int64_t>(plan_.width) * h.out_channels;
    h.bytes = images_.y_bytes + start + task.begin * h.y_row;
  }
  kernels_.blocked_head(h);
}

void Execution::emit(const Task& task) const {
  const ValuePlan& in = plan_.values[task.step.inputs[0]];
  BlockedEmitParams e;
  e.x = arena_ + in.data + task.begin * in.row_stride();
  e.x_block = in.block_stride(), e.x_row = in.row_stride();
  e.mean = task.norms[0].mean, e.scale = task.norms[0].scale, e.shift = task.norms[0].shift;
  e.channels = task.step.out_channels;
  e.rows = task.end - task.begin, e.width = plan_.width;
  e.tanh = task.step.tanh;
  e.plane = static_cast<int64_t>(plan_.height) * plan_.width;
  const int64_t start = task.image * e.plane * e.channels;
  if (images_.y_planes != nullptr) {
    e.y_row = plan_.width;
    e.planes = images_.y_planes + start + task.begin * e.y_row;
  } else {
    e.y_row = static_cast<int64_t>(plan_.width) * e.channels;
    e.bytes = images_.y_bytes + start + task.begin * e.y_row;
  }
  kernels_.blocked_emit(e);
}

}  // namespace gancomp::engine
