#include "plan.h"

#include <algorithm>
#include <utility>

#include "gancomp/engine.h"

namespace gancomp::engine {
namespace {

constexpr int kMinSide = 16, kMaxSide = 16384;
constexpr int64_t kScratchFloats = 96 * 1024;  // gathered rows of a strip: with the weights they should stay in the L2 cache
constexpr int kMaxStripRows = 16;
constexpr int kMinStrips = 8;  // so that several threads have something to do

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Index in [0, size) of a position outside, by repeated reflection.
int reflect(int64_t i, int64_t size) {
  if (size == 1) return 0;
  const int64_t period = 2 * (size - 1);
  i = (i % period + period) % period;
  return static_cast<int>(i < size ? i : period - i);
}

// Source of positions [-before, size + after) of an image side that is first extended from `real` to `size` by reflection and
// then by a convolution's border.
std::vector<int> lookup(int real, int size, int before, int after, Padding mode) {
  std::vector<int> table;
  table.reserve(before + size + after);
  for (int i = -before; i < size + after; ++i) {
    int at = i;
    if (i < 0 || i >= size) {
      if (mode == Padding::zero) {
        table.push_back(-1);
        continue;
      }
      at = mode == Padding::replicate ? std::clamp(i, 0, size - 1) : reflect(i, size);
    }
    table.push_back(reflect(at, real));
  }
  return table;
}

// Source of positions [-around, size + around) of a label map that is first extended from `real` rows or columns by reflection
// and then thinned to every `stride`-th one.
std::vector<int> label_lookup(int real, int size, int stride, int around) {
  std::vector<int> table;
  table.reserve(size + 2 * around);
  for (int i = -around; i < size + around; ++i) {
    table.push_back(i < 0 || i >= size ? -1 : reflect(static_cast<int64_t>(i) * stride, real));
  }
  return table;
}

// First-fit placement of buffers that live from one step to another.
class Arena {
 public:
  void add(int64_t* place, int64_t size, int from, int to) { buffers_.push_back({place, round_up(size, 16), from, to}); }

  int64_t arrange() {
    std::stable_sort(buffers_.begin(), buffers_.end(), [](const Buffer& a, const Buffer& b) { return a.size > b.size; });
    int64_t total = 0;
    for (size_t i = 0; i < buffers_.size(); ++i) {
      std::vector<std::pair<int64_t, int64_t>> taken;  // begin, end of the buffers alive at the same time
      for (size_t j = 0; j < i; ++j) {
        if (buffers_[j].from <= buffers_[i].to && buffers_[i].from <= buffers_[j].to) {
          taken.emplace_back(*buffers_[j].place, *buffers_[j].place + buffers_[j].size);
        }
      }
      std::sort(taken.begin(), taken.end());
      int64_t at = 0;
      for (const auto& [begin, end] : taken) {
        if (at + buffers_[i].size <= begin) break;
        at = std::max(at, end);
      }
      *buffers_[i].place = at;
      total = std::max(total, at + buffers_[i].size);
    }
    return total;
  }

 private:
  struct Buffer {
    int64_t* place;
    int64_t size;
    int from, to;
  };
  std::vector<Buffer> buffers_;
};

class Planner {
 public:
  Planner(const Program& program, int64_t height, int64_t width) : program_(program) {
    for (const auto& [name, side] : {std::pair{"height", height}, std::pair{"width", width}}) {
      if (side < kMinSide || side > kMaxSide) {
        throw EngineError(EngineError::Code::invalid_argument, std::string(name) + "=" + std::to_string(side) + ": expected " +
                                                                   std::to_string(kMinSide) + " to " +
                                                                   std::to_string(kMaxSide));
      }
    }
    plan_.height = static_cast<int>(height), plan_.width = static_cast<int>(width);
    plan_.padded_height = static_cast<int>(round_up(height, program.size_multiple));
    plan_.padded_width = static_cast<int>(round_up(width, program.size_multiple));
    plan_.values.resize(program.values.size());
  }

  Plan shapes() {
    for (const Step& step : program_.steps) add_shape(step);
    return std::move(plan_);
  }

  Plan full() {
    for (const Step& step : program_.steps) {
      add_shape(step);
      add_strips(step);
    }
    place();
    return std::move(plan_);
  }

 private:
  void add_shape(const Step& step) {
    StepPlan p;
    if (step.inputs.empty()) {
      // A later step of one convolution.
      const StepPlan& before = plan_.steps.back();
      p.in_height = before.in_height, p.in_width = before.in_width;
      p.out_height = before.out_height, p.out_width = before.out_width;
    } else {
      set_sizes(step, p);
    }
    if (step.output >= 0) {
      plan_.values[step.output].height = p.out_height;
      plan_.values[step.output].width = p.out_width;
      if (step.second_output >= 0) {
        plan_.values[step.second_output].height = p.out_height;
        plan_.values[step.second_output].width = p.out_width;
      }
    } else if (p.out_height != plan_.padded_height || p.out_width != plan_.padded_width) {
      throw EngineError(EngineError::Code::unsupported, "the network's output has another size than its input");
    }
    p.tile_rows = (p.out_height + kWinogradTile - 1) / kWinogradTile;
    p.tile_columns = (p.out_width + kWinogradTile - 1) / kWinogradTile;
    count(step, p);
    plan_.steps.push_back(std::move(p));
  }

  void set_sizes(const Step& step, StepPlan& p) const {
    const int input = step.inputs[0];
    if (input == Node::kLabels) {
      p.in_height = p.out_height = plan_.padded_height / step.stride;
      p.in_width = p.out_width = plan_.padded_width / step.stride;
      return;
    }
    if (step.modulates() || step.kind == Step::Kind::enlarge) {
      const int factor = step.modulation.doubled || step.kind == Step::Kind::enlarge ? 2 : 1;
      p.in_height = plan_.values[input].height, p.in_width = plan_.values[input].width;
      p.out_height = factor * p.in_height, p.out_width = factor * p.in_width;
      for (size_t i = 1; i < step.inputs.size(); ++i) {
        const ValuePlan& side = plan_.values[step.inputs[i]];
        if (side.height != p.out_height || side.width != p.out_width) {
          throw EngineError(EngineError::Code::unsupported, step.name + ": its inputs differ in size");
        }
      }
      return;
    }
    p.in_height = input >= 0 ? plan_.values[input].height : plan_.padded_height;
    p.in_width = input >= 0 ? plan_.values[input].width : plan_.padded_width;
    for (int other : step.inputs) {
      if (other >= 0 && (plan_.values[other].height != p.in_height || plan_.values[other].width != p.in_width)) {
        throw EngineError(EngineError::Code::unsupported, step.name + ": its inputs differ in size");
      }
    }
    const auto out = [&](int side) {
      if (step.kind == Step::Kind::transposed) return 2 * side;
      return (side + 2 * step.padding - step.kernel) / step.stride + 1;
    };
    p.out_height = out(p.in_height), p.out_width = out(p.in_width);
    if (p.out_height < 1 || p.out_width < 1) {
      throw EngineError(
          EngineError::Code::invalid_argument,
          "an image of " + std::to_string(plan_.height) + "x" + std::to_string(plan_.width) + " is too small for " + step.name);
    }
  }

  // Multiply-accumulates and the bytes of activations and weights, read and written once each.
  static void count(const Step& step, StepPlan& p) {
    const int64_t pairs = static_cast<int64_t>(step.in_channels) * step.out_channels;
    const int64_t in_size = static_cast<int64_t>(p.in_height) * p.in_width * step.in_channels;
    const int64_t out_size = static_cast<int64_t>(p.out_height) * p.out_width * step.out_channels;
    const int64_t tiles = static_cast<int64_t>(p.tile_rows) * p.tile_columns * kWinogradProducts;
    const int64_t taps = static_cast<int64_t>(step.kernel) * step.kernel;
    int64_t weights = pairs * taps, read = in_size, written = out_size;
    switch (step.kind) {
      case Step::Kind::emit:
      case Step::Kind::enlarge:
      case Step::Kind::labels:
        weights = 0;
        break;
      // Of a label map's convolution nothing is multiplied: its table is added up.
      case Step::Kind::label:
        read = in_size / step.in_channels;
        p.network_macs = out_size * step.in_channels * taps;
        break;
      case Step::Kind::label_statistics:
        read = in_size / step.in_channels, written = 0;
        p.macs = p.network_macs = 2 * out_size * taps;
        p.network_macs += out_size * step.in_channels * taps;
        break;
      case Step::Kind::label_modulate:
        weights = 2 * pairs, read = static_cast<int64_t>(p.in_height) * p.in_width * step.out_channels;
        p.network_macs = 2 * out_size * step.in_channels;
        p.macs = p.network_macs + 2 * static_cast<int64_t>(p.out_height) * p.out_width * step.in_channels * taps;
        break;
      case Step::Kind::modulate:
        weights = 0, read = in_size + 2 * out_size;
        break;
      case Step::Kind::winograd_input:
        weights = 0, written = tiles * step.in_channels;
        break;
      case Step::Kind::winograd_output:
        weights = 0, read = tiles * step.out_channels;
        break;
      case Step::Kind::winograd_multiply:
        weights = pairs * kWinogradProducts;
        read = tiles * step.in_channels, written = tiles * step.out_channels;
        p.macs = tiles * pairs;
        p.network_macs = static_cast<int64_t>(p.out_height) * p.out_width * pairs * 9;
        break;
      case Step::Kind::depthwise:
        weights = step.out_channels * taps;
        p.macs = p.network_macs = out_size * taps;
        break;
      case Step::Kind::transposed:
        p.macs = p.network_macs = in_size * step.out_channels * taps;
        break;
      default:
        p.macs = p.network_macs = out_size * step.in_channels * taps;
    }
    p.bytes = 4 * (weights + read + written);
  }

  int in_blocks(const Step& step) const {
    if (step.inputs.empty() || step.inputs[0] < 0) return static_cast<int>(round_up(step.in_channels, kBlock) / kBlock);
    int blocks = 0;
    for (int input : step.inputs) blocks += program_.values[input].blocks();
    return blocks;
  }

  void add_strips(const Step& step) {
    StepPlan& p = plan_.steps.back();
    if (step.kind == Step::Kind::labels) return add_rows(step, p, plan_.height);
    if (step.kind == Step::Kind::enlarge || step.kind == Step::Kind::modulate) return add_rows(step, p, p.out_height);
    if (step.reads_codes()) return add_code_strips(step, p);
    const int pixel = step.reads_image() ? program_.image_pixel : kBlock;
    set_borders(step, p);
    // Whole blocks, so that a row of an image can be quantized like any other.
    p.gather_row = round_up(static_cast<int64_t>(p.left + p.in_width + p.right) * pixel, kBlock);
    const int blocks = step.by_block() ? 1 : in_blocks(step);
    const int64_t row_floats = std::max<int64_t>(p.gather_row * blocks, 1);
    int strip = std::min(kMaxStripRows, std::max(1, (p.rows + kMinStrips - 1) / kMinStrips));
    if (step.kind == Step::Kind::winograd_multiply) strip = 1;
    while (strip > 1 && gathered_rows(step, p, strip) * row_floats > kScratchFloats) --strip;
    p.strips = (p.rows + strip - 1) / strip;
    p.strip_rows = (p.rows + p.strips - 1) / p.strips;
    p.strips = (p.rows + p.strip_rows - 1) / p.strip_rows;
    p.gather_block = p.gather_row * gathered_rows(step, p, p.strip_rows);
    if (step.reads_image()) {
      p.image_rows = lookup(plan_.height, plan_.padded_height, p.above, p.below, step.padding_mode);
      p.image_columns = lookup(plan_.width, plan_.padded_width, p.left, p.right, step.padding_mode);
    }
    plan_.params = std::max<int64_t>(plan_.params, kNormRows * kBlock * (step.reads_image() ? 0 : in_blocks(step)));
    int64_t scratch = step.gathers() ? p.gather_block * blocks : 0;
    if (step.int8) {
      const int64_t row_bytes =
          step.gathers() ? p.gather_block * blocks : static_cast<int64_t>(p.strip_rows) * p.in_width * blocks * kBlock;
      const int64_t channels = round_up(program_.packed_channels(step), kBlock);
      const auto add = [&scratch](int64_t floats) { return std::exchange(scratch, round_up(scratch + floats, 16)); };
      scratch = round_up(scratch, 16);
      // The last dot product of a row may read beyond it.
      p.int8_rows = add(row_bytes / 4 + 2 * kBlock);
      p.int8_weights = add((int8_bytes(step) + 3) / 4);
      p.int8_in = add(channels), p.int8_inverse = add(channels);
      p.int8_out = add(step.out_blocks() * kBlock);
    } else if (step.kind == Step::Kind::pointwise) {
      scratch = static_cast<int64_t>(step.weight.size()) + step.out_blocks() * kBlock;
    }
    if (step.kind == Step::Kind::head) {
      p.head_sums = scratch;
      scratch += kMaxHeadChannels * (static_cast<int64_t>(plan_.width) + 64);
    }
    plan_.scratch = std::max(plan_.scratch, round_up(scratch, 16));
    // A product's factors lie an odd number of cache lines from the next one's, lest 36 of them share a cache set.
    const int64_t tiles = p.tile_floats();
    p.factor_stride = tiles * round_up(step.in_channels, kBlock) / kBlock + 5 * kBlock;
    p.product_stride = tiles * step.out_blocks() + 5 * kBlock;

    const bool partial = step.kind == Step::Kind::winograd_input || step.kind == Step::Kind::winograd_multiply;
    if (step.output < 0 || partial || !program_.values[step.output].statistics) return;
    ValuePlan& value = plan_.values[step.output];
    const int outputs_per_row = step.kind == Step::Kind::transposed        ? 2
                                : step.kind == Step::Kind::winograd_output ? kWinogradTile
                                                                           : 1;
    for (int s = 0; s < p.strips; ++s) {
      const int begin = s * p.strip_rows * outputs_per_row;
      const int end = std::min((s + 1) * p.strip_rows * outputs_per_row, p.out_height);
      value.counts.push_back(static_cast<int64_t>(end - begin) * p.out_width);
    }
  }

  // A step without borders, which splits up so many rows.
  void add_rows(const Step& step, StepPlan& p, int rows) {
    p.rows = rows;
    const int strip = std::min(kMaxStripRows, (rows + kMinStrips - 1) / kMinStrips);
    p.strips = (rows + strip - 1) / strip;
    p.strip_rows = strip;
    if (step.inputs[0] >= 0) plan_.params = std::max<int64_t>(plan_.params, kNormRows * kBlock * in_blocks(step));
  }

  // Strips in pieces of a few columns, so that what is made of the codes stays in the nearest caches.
  void add_code_strips(const Step& step, StepPlan& p) {
    constexpr int kTileRows = 8, kTileColumns = 64;
    add_rows(step, p, p.out_height);
    p.strip_rows = std::min(p.strip_rows, kTileRows);
    p.strips = (p.rows + p.strip_rows - 1) / p.strip_rows;
    p.tiles = step.kind == Step::Kind::label ? 1 : (p.out_width + kTileColumns - 1) / kTileColumns;
    p.tile_width = (p.out_width + p.tiles - 1) / p.tiles;
    p.tile_pixels = static_cast<int64_t>(p.strip_rows) * p.tile_width;
    p.image_rows = label_lookup(plan_.height, p.out_height, step.stride, kCodesAround);
    p.image_columns = label_lookup(plan_.width, p.out_width, step.stride, kCodesAround);

    const Embedding& embedding = program_.embeddings[step.embedding];
    int64_t scratch = 0;
    const auto add = [&scratch](int64_t floats) { return std::exchange(scratch, round_up(scratch + floats, kBlock)); };
    add(static_cast<int64_t>(p.strip_rows + 2 * kCodesAround) * (p.tile_width + 2 * kCodesAround));
    if (step.kind != Step::Kind::label) {
      p.embedded = add(static_cast<int64_t>(p.strip_rows + 2) * (p.tile_width + 2) * kBlock);
      p.filtered = add((step.kind == Step::Kind::label_modulate ? 2 * embedding.blocks() : 1) * p.tile_pixels * kBlock);
    }
    if (step.kind == Step::Kind::label_modulate) {
      p.sides = add(2 * kGroup * p.tile_pixels * kBlock);
      p.weights = scratch;
      for (const Floats& weight : step.modulation.weight)
        scratch += static_cast<int64_t>(weight.size()) + step.out_blocks() * kBlock;
    }
    plan_.scratch = std::max(plan_.scratch, round_up(scratch, kBlock));

    for (int output : {step.output, step.second_output}) {
      if (output < 0 || !program_.values[output].statistics) continue;
      for (int s = 0; s < p.strips; ++s) {
        const int64_t rows = std::min((s + 1) * p.strip_rows, p.rows) - s * p.strip_rows;
        for (int t = 0; t < p.tiles; ++t) {
          const int width = std::min((t + 1) * p.tile_width, p.out_width) - t * p.tile_width;
          plan_.values[output].counts.push_back(rows * width);
        }
      }
    }
  }

  // Of a step's quantized weights.
  int64_t int8_bytes(const Step& step) const {
    const int channels = program_.packed_channels(step);
    if (step.kind == Step::Kind::head) {
      return int8_head_row_bytes(step.kernel) * step.kernel * in_blocks(step) * step.out_channels;
    }
    return int8_weight_bytes(channels, step.reads_image() ? step.kernel : step.taps(), step.out_blocks());
  }

  // The rows a step splits among threads, and what its gathered rows have around the image's.
  void set_borders(const Step& step, StepPlan& p) const {
    // What is cut off the output image is not computed.
    p.rows = step.output >= 0 ? p.out_height : plan_.height;
    p.above = p.left = p.below = p.right = step.padding;
    switch (step.kind) {
      case Step::Kind::transposed:
        p.rows = p.in_height;
        p.above = p.left = p.below = p.right = 0;
        for (const Phase& phase : step.phases) {
          p.above = std::max(p.above, -phase.first_row);
          p.below = std::max(p.below, phase.first_row + phase.taps_h - 1);
          p.left = std::max(p.left, -phase.first_column);
          p.right = std::max(p.right, phase.first_column + phase.taps_w - 1);
        }
        break;
      case Step::Kind::winograd_input:
        p.rows = p.tile_rows;
        // The last tiles may reach beyond the border; what they make of that is cut off.
        p.right = p.tile_columns * kWinogradTile + 1 - p.in_width;
        break;
      case Step::Kind::winograd_output:
        p.rows = p.tile_rows;
        break;
      case Step::Kind::winograd_multiply:
        p.rows = kWinogradProducts;
        break;
      default:
        break;
    }
  }

  // The value in whose memory another one is made.
  int root(int value) const {
    while (program_.values[value].added_to >= 0) value = program_.values[value].added_to;
    return value;
  }

  // The last step that makes or reads a value.
  int last_read(int value) const {
    int last = -1;
    for (size_t s = 0; s < program_.steps.size(); ++s) {
      const Step& step = program_.steps[s];
      bool used = step.output == value;
      for (int input : step.inputs) used |= input == value;
      if (used) last = static_cast<int>(s);
    }
    return last;
  }

  void place() {
    Arena arena;
    const int count = static_cast<int>(program_.steps.size());
    for (size_t v = 0; v < program_.values.size(); ++v) {
      const Value& value = program_.values[v];
      ValuePlan& p = plan_.values[v];
      int made = -1, read = -1, used = -1;
      for (int s = 0; s < count; ++s) {
        const Step& step = program_.steps[s];
        if (step.output == static_cast<int>(v) || step.second_output == static_cast<int>(v)) made = s;
        for (int input : step.inputs) {
          if (input < 0) continue;
          if (input == static_cast<int>(v)) read = used = s;
          // A value that is finished by adding this one reads it too.
          if (program_.values[input].residual == static_cast<int>(v)) used = s;
        }
      }
      if (made < 0) continue;  // the output image
      const int last = std::max(value.kept_by >= 0 ? value.kept_by : read, made);
      const int64_t size = p.block_stride() * value.blocks();
      if (value.stored && value.added_to < 0) {
        // Together with all that is made by adding to it.
        int until = last;
        for (size_t later = v + 1; later < program_.values.size(); ++later) {
          if (root(static_cast<int>(later)) == static_cast<int>(v)) until = std::max(until, last_read(static_cast<int>(later)));
        }
        arena.add(&p.data, size, made, until);
      }
      if (value.kept_by >= 0) arena.add(&p.kept, size, value.kept_by, std::max(used, value.kept_by));
      if (value.statistics)
        arena.add(&p.sums, static_cast<int64_t>(p.counts.size()) * kSumRows * value.blocks() * kBlock, made, last);
    }
    for (int s = 0; s < count; ++s) {
      if (program_.steps[s].kind != Step::Kind::winograd_multiply) continue;
      StepPlan& p = plan_.steps[s];
      arena.add(&p.factors, p.factor_stride * kWinogradProducts, s - 1, s);
      arena.add(&p.products, p.product_stride * kWinogradProducts, s, s + 1);
    }
    if (program_.classes > 0) arena.add(&plan_.codes, static_cast<int64_t>(plan_.height) * plan_.width, 0, count);
    plan_.arena = arena.arrange();
    for (size_t v = 0; v < program_.values.size(); ++v) {
      if (program_.values[v].added_to >= 0) plan_.values[v].data = plan_.values[root(static_cast<int>(v))].data;
    }
    plan_.scratch += round_up(plan_.params, 16);
  }

  const Program& program_;
  Plan plan_;
};

}  // namespace

int gathered_rows(const Step& step, const StepPlan& p, int strip_rows) {
  if (step.kind == Step::Kind::transposed) return p.above + strip_rows + p.below;
  if (step.kind == Step::Kind::winograd_input) return strip_rows * kWinogradTile + 2;
  return (strip_rows - 1) * step.stride + step.kernel;
}

Plan make_plan(const Program& program, int64_t height, int64_t width) { return Planner(program, height, width).full(); }

int64_t count_macs(const Program& program, int64_t height, int64_t width) {
  int64_t macs = 0;
  for (const StepPlan& step : Planner(program, height, width).shapes().steps) macs += step.network_macs;
  return macs;
}

}  // namespace gancomp::engine
