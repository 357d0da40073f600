// Gradient of a convolution's weights: pixels are the lanes, a tile of output channels times taps is held in registers.
#include <algorithm>

#include "sliced_conv.h"

namespace gancomp::GANCOMP_ISA_NAME {
namespace {

constexpr int kOuts = kRegisters == 32 ? 4 : 3, kShifts = kRegisters == 32 ? 6 : 4;  // of a register tile
constexpr int kTile = kOuts * kShifts, kTiles = 128;                                 // sums of a tile, tiles of a task
static_assert(kTiles * kShifts >= kMaxKernel * kMaxKernel, "the taps of one filter must fit the tiles");
static_assert(kTile % 4 == 0);
constexpr int64_t kPixels = 64 * kLanes;  // of a pass over the tiles
// Pixels whose products are summed in float, by lanes, before they join the sums in double.
constexpr int64_t kInFloat = 16 * kLanes * kLanes;

// Rows of the gradient and of the input under one tap, to be multiplied and summed.
struct Correlation {
  const float* grad;
  int64_t grad_channel, grad_row;
  const float* x;
  int64_t x_row;
  const int64_t* shifts;  // of the input, in floats: one per tap
  int64_t rows, vecs;
};

// Adds to the sums of a tile, [kOuts][kShifts][kLanes].
template <int kOut, int kTap>
void correlate(const Correlation& p, float* sums) {
  Vec acc[kOut][kTap];
  GANCOMP_UNROLL
  for (int o = 0; o < kOut; ++o) {
    GANCOMP_UNROLL
    for (int t = 0; t < kTap; ++t) acc[o][t] = load(sums + (o * kShifts + t) * kLanes);
  }
  // Rows can be of four vectors: what every row begins with must be little.
  const float* x[kTap];
  GANCOMP_UNROLL
  for (int t = 0; t < kTap; ++t) x[t] = p.x + p.shifts[t];
  const float* grad = p.grad;
  const int64_t lanes = p.vecs * kLanes, grad_channel = p.grad_channel, grad_row = p.grad_row, x_row = p.x_row;
  for (int64_t r = p.rows; r > 0; --r) {
    for (int64_t j = 0; j < lanes; j += kLanes) {
      Vec g[kOut];
      GANCOMP_UNROLL
      for (int o = 0; o < kOut; ++o) g[o] = load_once(grad + o * grad_channel + j);
      GANCOMP_UNROLL
      for (int t = 0; t < kTap; ++t) {
        const Vec pixels = load_once(x[t] + j);
        GANCOMP_UNROLL
        for (int o = 0; o < kOut; ++o) acc[o][t] += g[o] * pixels;
      }
    }
    grad += grad_row;
    GANCOMP_UNROLL
    for (int t = 0; t < kTap; ++t) x[t] += x_row;
  }
  GANCOMP_UNROLL
  for (int o = 0; o < kOut; ++o) {
    GANCOMP_UNROLL
    for (int t = 0; t < kTap; ++t) store(sums + (o * kShifts + t) * kLanes, acc[o][t]);
  }
}

template <int kOut, int... kTap>
void correlate_of(int64_t taps, std::integer_sequence<int, kTap...>, const Correlation& p, float* sums) {
  constexpr void (*table[])(const Correlation&, float*) = {correlate<kOut, kTap + 1>...};
  table[taps - 1](p, sums);
}

void correlate(int64_t outs, int64_t taps, const Correlation& p, float* sums) {
  constexpr auto shifts = std::make_integer_sequence<int, kShifts>{};
  if constexpr (kOuts >= 4) {
    if (outs == 4) correlate_of<4>(taps, shifts, p, sums);
  }
  if (outs == 3) correlate_of<3>(taps, shifts, p, sums);
  if (outs == 2) correlate_of<2>(taps, shifts, p, sums);
  if (outs == 1) correlate_of<1>(taps, shifts, p, sums);
}

struct Span {
  int64_t begin, end;
};

// How the work is cut. A task computes the gradients of `outs` x `channels` filters over some images, piece after piece of at
// most `rows` x `columns` output pixels.
struct Plan {
  int64_t outs, channels, rows, columns;
  int64_t grad_pitch, grad_channel;  // of gathered pieces, in floats
  int64_t x_pitch, x_channel;
};

Plan plan_of(const SlicedConvWeightGradientParams& p) {
  const ConvWindow& k = p.window;
  const int64_t taps = static_cast<int64_t>(k.taps_h) * k.taps_w;
  Plan plan{};
  plan.columns = std::min(p.grad.w, taps == 1 ? kPixels : kPixels / 4);
  plan.rows = std::min(p.grad.h, std::max(kPixels / plan.columns, int64_t{1}));
  plan.grad_pitch = round_up(plan.columns), plan.grad_channel = plan.rows * plan.grad_pitch;
  plan.x_pitch = plan.grad_pitch + (k.taps_w - 1) / k.stride;
  plan.x_channel = ((plan.rows - 1) * k.stride + k.taps_h) * k.stride * plan.x_pitch;
  // Evenly, as many as a limit allows.
  const auto even = [](int64_t size, int64_t limit) { return pieces(size, pieces(size, std::max(limit, int64_t{1}))); };
  const bool whole = p.grad.w % kLanes == 0;  // then the gradient is read where it lies
  const int64_t most_outs = kScratchFloats / (whole ? 1 : 3) / plan.grad_channel,
                most_channels = kScratchFloats * 2 / 3 / plan.x_channel;
  // Every group of outputs gathers the input, every group of channels the gradient. Of the groups that the tiles allow, those
  // are taken that gather least; but several tasks, so that every thread finds work.
  const bool copies = taps > 1 || k.stride > 1;
  double least = 0;
  for (int64_t groups = pieces(p.x.c, std::max(most_channels, int64_t{1})); groups <= p.x.c; ++groups) {
    const int64_t channels = pieces(p.x.c, groups), down = pieces(channels * taps, kShifts);
    if (down > kTiles) continue;
    int64_t outs = even(p.grad.c, std::min(most_outs, kTiles / down * kOuts));
    while (outs > kOuts && pieces(p.grad.c, outs) * groups < 8) outs = even(p.grad.c, outs / 2);
    const double x = static_cast<double>(plan.x_channel * p.x.c * pieces(p.grad.c, outs)) * (copies ? 4 : 1),
                 grad = static_cast<double>(plan.grad_channel * p.grad.c * groups);
    if (least == 0 || x + grad < least) least = x + grad, plan.outs = outs, plan.channels = channels;
  }
  return plan;
}

class Task {
 public:
  Task(const SlicedConvWeightGradientParams& p, const Plan& plan, const Span& images, int64_t out0, int64_t channel0)
      : p_(p),
        images_(images),
        k_(p.window),
        plan_(plan),
        taps_(k_.taps_h * k_.taps_w),
        out0_(out0),
        channel0_(channel0),
        outs_(std::min(plan.outs, p.grad.c - out0)),
        channels_(std::min(plan.channels, p.x.c - channel0)) {}

  void run() {
    int64_t pixels = 0;
    for (int64_t n = images_.begin; n < images_.end; ++n) {
      for (int64_t row = 0; row < p_.grad.h; row += plan_.rows) {
        const int64_t rows = std::min(plan_.rows, p_.grad.h - row);
        for (int64_t column = 0; column < p_.grad.w; column += plan_.columns) {
          const int64_t columns = std::min(plan_.columns, p_.grad.w - column);
          add(n, row, rows, column, columns);
          pixels += rows * columns;
          if (pixels >= kInFloat) flush(), pixels = 0;
        }
      }
    }
    flush();
    write();
  }

 private:
  // Calls function(tile, first out, outs, first shift, shifts) for every tile.
  template <typename Function>
  void for_tiles(const Function& function) const {
    int64_t tile = 0;
    for_parts(channels_ * taps_, kShifts, [&](int64_t shift, int64_t shifts) {
      for_parts(outs_, kOuts, [&](int64_t out, int64_t outs) { function(tile++, out, outs, shift, shifts); });
    });
  }

  void add(int64_t n, int64_t row, int64_t rows, int64_t column, int64_t columns) {
    Correlation c{};
    c.rows = rows, c.vecs = pieces(columns, kLanes);
    const float* grad = p_.grad.plane(n, out0_) + row * p_.grad.w + column;
    c.grad_channel = p_.grad.stride_c, c.grad_row = p_.grad.w;
    if (columns % kLanes != 0) {  // the last vector is filled up with zeros
      GatherTile tile{};
      tile.x = p_.grad.plane(n, out0_), tile.stride_c = p_.grad.stride_c, tile.height = p_.grad.h, tile.width = p_.grad.w;
      tile.channels = outs_, tile.row0 = row, tile.rows = rows, tile.column0 = column, tile.columns = columns;
      tile.phases = 1, tile.pitch = plan_.grad_pitch, tile.y = scratch_ + channels_ * plan_.x_channel;
      gather(tile);
      grad = tile.y, c.grad_channel = tile.channel_floats(), c.grad_row = tile.pitch;
    }
    c.x = p_.x.plane(n, channel0_) + row * p_.x.w + column;
    int64_t x_channel = p_.x.stride_c, x_row = 0;
    if (taps_ > 1 || k_.stride > 1 || columns % kLanes != 0) {
      GatherTile tile{};
      tile.x = p_.x.plane(n, channel0_), tile.stride_c = p_.x.stride_c, tile.height = p_.x.h, tile.width = p_.x.w;
      tile.channels = channels_, tile.mode = k_.mode;
      tile.row0 = row * k_.stride - k_.padding, tile.rows = (rows - 1) * k_.stride + k_.taps_h;
      tile.column0 = column * k_.stride - k_.padding, tile.columns = (columns - 1) * k_.stride + k_.taps_w;
      tile.phases = k_.stride, tile.pitch = plan_.x_pitch, tile.y = scratch_;
      gather(tile);
      c.x = tile.y, x_channel = tile.channel_floats(), x_row = tile.row_floats();
    }
    c.x_row = k_.stride * x_row;
    set_shifts(x_channel, x_row);
    for_tiles([&](int64_t tile, int64_t out, int64_t outs, int64_t shift, int64_t shifts) {
      c.shifts = shifts_ + shift, c.grad = grad + out * c.grad_channel;
      correlate(outs, shifts, c, sums_ + tile * kTile * kLanes);
    });
  }

  // Where the input under every channel's taps lies; only pieces at the ends differ.
  void set_shifts(int64_t channel, int64_t row) {
    if (channel == shifts_channel_ && row == shifts_row_) return;
    shifts_channel_ = channel, shifts_row_ = row;
    int64_t* shift = shifts_;
    for (int64_t c = 0; c < channels_; ++c) {
      for (int64_t i = 0; i < k_.taps_h; ++i) {
        for (int64_t j = 0; j < k_.taps_w; ++j) {
          *shift++ = c * channel + i * row + j % k_.stride * plan_.x_pitch + j / k_.stride;
        }
      }
    }
  }

  // Lanes into the sums in double.
  void flush() {
    for_tiles([&](int64_t tile, int64_t, int64_t, int64_t, int64_t) {
      float* sums = sums_ + tile * kTile * kLanes;
      for (int i = 0; i < kTile; i += 4) {
        Vec lanes[4];
        for (int v = 0; v < 4; ++v) lanes[v] = load(sums + (i + v) * kLanes);
        float total[kLanes];
        lane_sums<4>(lanes, total);
        for (int v = 0; v < 4; ++v) totals_[tile * kTile + i + v] += static_cast<double>(total[v]);
      }
      std::fill_n(sums, kTile * kLanes, 0.0f);
    });
  }

  void write() const {
    const SlicedWeight<float>& to = p_.grad_weight;
    int64_t tap_at[kMaxKernel * kMaxKernel];
    for (int64_t tap = 0; tap < taps_; ++tap) tap_at[tap] = tap / k_.taps_w * to.row + tap % k_.taps_w * to.column;
    for_tiles([&](int64_t tile, int64_t out, int64_t outs, int64_t shift, int64_t shifts) {
      const double* totals = totals_ + tile * kTile;
      float* data = to.data + (out0_ + out) * to.out + channel0_ * to.in;
      int64_t channel = shift / taps_, tap = shift % taps_;
      for (int64_t s = 0; s < shifts; ++s) {
        for (int64_t o = 0; o < outs; ++o) {
          float& sum = data[o * to.out + channel * to.in + tap_at[tap]];
          sum = static_cast<float>(totals[o * kShifts + s] + (images_.begin > 0 ? static_cast<double>(sum) : 0.0));
        }
        if (++tap == taps_) tap = 0, ++channel;
      }
    });
  }

  const SlicedConvWeightGradientParams& p_;
  const Span images_;
  const ConvWindow& k_;
  const Plan& plan_;
  const int64_t taps_, out0_, channel0_, outs_, channels_;
  int64_t shifts_[kTiles * kShifts], shifts_channel_ = -1, shifts_row_ = -1;
  alignas(64) float sums_[kTiles * kTile * kLanes] = {};
  alignas(64) float scratch_[kScratchFloats + kLanes];
  double totals_[kTiles * kTile] = {};
};

}  // namespace

void sliced_conv_weight_gradient(const SlicedConvWeightGradientParams& full, const Executor& executor) {
  SlicedConvWeightGradientParams p = full;
  const ConvWindow& k = p.window;
  if (k.taps_h == 1 && k.taps_w == 1 && k.stride == 1 && k.padding == 0) {  // one long row
    p.x.w *= p.x.h, p.grad.w *= p.grad.h, p.x.h = p.grad.h = 1;
  }
  const Plan plan = plan_of(p);
  const int64_t channel_groups = pieces(p.x.c, plan.channels);
  // Every task reads the images anew, so that all tasks take those that the last cache holds before any takes the next ones.
  constexpr int64_t kCached = 2 * 1024 * 1024;
  const int64_t floats = p.x.c * p.x.plane_size() + p.grad.c * p.grad.plane_size();
  const int64_t together = std::max(kCached / floats, int64_t{1});
  for (int64_t n = 0; n < p.grad.n; n += together) {
    const Span images{n, std::min(n + together, p.grad.n)};
    executor.parallel_for(pieces(p.grad.c, plan.outs) * channel_groups, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        Task(p, plan, images, i / channel_groups * plan.outs, i % channel_groups * plan.channels).run();
    });
  }
}

void plane_sums(const PlaneSumsParams& p, const Executor& executor) {
  executor.parallel_for(p.x.c, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double total = 0;
      for (int64_t n = 0; n < p.x.n; ++n) {
        const float* x = p.x.plane(n, c);
        GANCOMP_SIMD_SUM(total)
        for (int64_t i = 0; i < p.x.plane_size(); ++i) total += static_cast<double>(x[i]);
      }
      p.sums[c] = static_cast<float>(total);
    }
  });
}

}  // namespace gancomp::GANCOMP_ISA_NAME
