// 4x4 convolutions by Winograd's method, forwards and transposed.
#include "winograd_conv.h"

#include "plane.h"

namespace gancomp::GANCOMP_ISA_NAME {
namespace {

// Filters whose lanes are the channels of the result and which are summed over depth.
struct Filters {
  const float* data;
  int64_t lanes, lane_stride;
  int64_t depth, depth_stride;
};

// Transforms a block of filters, [point][depth][lane], zeros for those that do not exist. Of a stride of 2: all four phases of
// kPhaseLanes channels, or the phase (row, column) of kWide channels where kFlipped.
template <typename Taps, bool kFlipped>
void transform_filters(const Filters& f, int64_t first_lane, int64_t first_depth, int phase_row, int phase_column, float* u) {
  constexpr bool kPhases = Taps::kTaps == 2 && !kFlipped;
  for (int64_t lane = first_lane; lane < first_lane + kWide; lane += kLanes) {
    for (int64_t d = 0; d < (kPhases ? kPhaseLanes : kWide); ++d) {
      const int64_t at = first_depth + d;
      Vec taps[kFilter];
      load_filters(f.data + lane * f.lane_stride + at * f.depth_stride, f.lane_stride, at < f.depth ? f.lanes - lane : 0, taps);
      const auto phase = [&](int step, int row, int column, int64_t to) GANCOMP_FORCE {
        transform<Taps::kWeight>(
            [&](int i, int j) GANCOMP_FORCE {
              const int down = kFlipped ? Taps::kTaps - 1 - i : i, across = kFlipped ? Taps::kTaps - 1 - j : j;
              return taps[(down * step + row) * kWinogradTaps + across * step + column];
            },
            [&](int i, int j, Vec value) GANCOMP_FORCE {
              store(u + (i * Taps::kPoints + j) * kWinogradWeights + to * kWide + lane - first_lane, value);
            });
      };
      if constexpr (kPhases) {
        for (int i = 0; i < 4; ++i) phase(2, i / 2, i % 2, i * kPhaseLanes + d);
      } else {
        phase(kWinogradTaps / Taps::kTaps, phase_row, phase_column, d);
      }
    }
  }
}

template <typename Taps, bool kTransposed>
class Convolution {
  static constexpr int kStride = kWinogradTaps / Taps::kTaps;
  static constexpr int kSums = kTransposed ? kStride : 1;  // rows or columns of phases of y
  static constexpr int kPoints = Taps::kPoints * Taps::kPoints;

 public:
  Convolution(const WinogradConvParams& p, const WinogradPlan& plan, const Executor& executor)
      : p_(p), plan_(plan), executor_(executor), image_rows_(plan.pieces(plan.pieces(p.y.h, kSums), Taps::kOutputs)) {}

  void run() {
    for (first_ = 0; first_ < plan_.tile_rows; first_ += plan_.rows) {
      rows_ = plan_.at_most(plan_.rows, plan_.tile_rows - first_);
      for (int row = 0; row < kSums; ++row) {
        for (int column = 0; column < kSums; ++column) transform_images(row, column);
      }
      const int64_t parts = pieces(rows_, plan_.part), lanes = pieces(p_.y.c, kWide);
      for_tasks(lanes * kSums * parts, p_.slots, executor_, [&](int64_t slot, int64_t task) {
        const int64_t row = task % parts * plan_.part;
        float* memory = p_.workspace + plan_.blocks * plan_.points * plan_.pitch(plan_.rows) + slot * plan_.slot_floats();
        run_part(row, plan_.at_most(plan_.part, rows_ - row), static_cast<int>(task / parts % kSums),
                 task / parts / kSums * kWide, memory);
      });
    }
  }

 private:
  // Phase of the weight that belongs to even (0) or odd (1) rows or columns of y, and where their tiles begin in x.
  int phase(int parity) const { return (parity + p_.padding) % kStride; }
  int64_t origin(int parity) const { return kTransposed ? (parity + p_.padding) / kStride - (Taps::kTaps - 1) : -p_.padding; }
  float* tiles(int row, int column) const {
    return p_.workspace + (row * kSums + column) * (plan_.blocks / (kSums * kSums)) * kPoints * plan_.pitch(rows_);
  }

  void transform_images(int row, int column) const {
    TileParams t;
    t.x = p_.x, t.row = origin(row), t.column = origin(column);
    t.image_rows = image_rows_, t.tile_columns = plan_.tile_columns, t.first = first_, t.rows = rows_;
    t.pitch = plan_.pitch(rows_), t.y = tiles(row, column);
    (kStride == 1 ? four_tap_tiles : kTransposed ? two_tap_tiles : phase_tiles)(t, executor_);
  }

  void run_part(int64_t row, int64_t rows, int parity, int64_t lane, float* memory) const {
    constexpr int kDepth = kStride == 1 || kTransposed ? kWide : kPhaseLanes;
    float *weights = memory, *sums = memory + plan_.weight_floats();
    const int64_t pitch = plan_.pitch(rows_), sum_pitch = plan_.pitch(rows), tiles_before = row * plan_.tile_columns;
    Filters f{p_.weight, p_.y.c, p_.x.c * kFilter, p_.x.c, kFilter};
    if (kTransposed) f = {p_.weight, p_.y.c, kFilter, p_.x.c, p_.y.c * kFilter};
    for (int column = 0; column < kSums; ++column) {
      const float* x = tiles(parity, column) + tiles_before * kWide;
      for (int64_t depth = 0; depth < p_.x.c; depth += kDepth, x += kPoints * pitch) {
        transform_filters<Taps, kTransposed>(f, lane, depth, phase(parity), phase(column), weights);
        for (int point = 0; point < kPoints; ++point) {
          sum_channels(x + point * pitch, weights + point * kWinogradWeights, rows * plan_.tile_columns, depth == 0,
                       sums + (column * kPoints + point) * sum_pitch);
        }
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t tile = 0; tile < plan_.tile_columns; tile += kTileColumns) {
        for (int64_t at = 0; at < kWide && lane + at < p_.y.c; at += kLanes) {
          emit(sums + (i * plan_.tile_columns + tile) * kWide + at, sum_pitch, first_ + row + i, tile, parity, lane + at);
        }
      }
    }
  }

  void emit(const float* sums, int64_t pitch, int64_t tile_row, int64_t tile, int parity, int64_t channel) const {
    constexpr int kPitch = kTileColumnsMax * kLanes;
    alignas(64) float window[Taps::kOutputs * kPitch];
    const int64_t count = plan_.at_most(kTileColumns, plan_.tile_columns - tile);
    const Vec bias = p_.bias == nullptr ? Vec{} : load_first(p_.bias + channel, p_.y.c - channel);
    for (int64_t t = 0; t < count; ++t, sums += kWide) {
      for (int column = 0; column < kSums; ++column) {
        const float* from = sums + column * kPoints * pitch;
        float* to = window + (t * Taps::kOutputs * kSums + column) * kLanes;
        transform<Taps::kOutput>([&](int i, int j) GANCOMP_FORCE { return load(from + (i * Taps::kPoints + j) * pitch); },
                                 [&](int i, int j, Vec value)
                                     GANCOMP_FORCE { store(to + i * kPitch + j * kSums * kLanes, value + bias); });
      }
    }
    const int64_t image = tile_row / image_rows_, first = tile_row % image_rows_ * Taps::kOutputs;
    for (int i = 0; i < Taps::kOutputs && (first + i) * kSums + parity < p_.y.h; ++i) {
      scatter_row(window + i * kPitch, count * Taps::kOutputs * kSums, p_.y, image, channel, (first + i) * kSums + parity,
                  tile * Taps::kOutputs * kSums);
    }
  }

  const WinogradConvParams& p_;
  const WinogradPlan plan_;
  const Executor& executor_;
  const int64_t image_rows_;
  int64_t first_ = 0, rows_ = 0;
};

}  // namespace

void winograd_conv(const WinogradConvParams& p, const Executor& executor) {
  const WinogradPlan plan = winograd_conv_plan(p);
  p.stride == 1 ? Convolution<FourTaps, false>(p, plan, executor).run() : Convolution<TwoTaps, false>(p, plan, executor).run();
}

void winograd_conv_transpose(const WinogradConvParams& p, const Executor& executor) {
  const WinogradPlan plan = winograd_conv_transpose_plan(p);
  p.stride == 1 ? Convolution<FourTaps, true>(p, plan, executor).run() : Convolution<TwoTaps, true>(p, plan, executor).run();
}

}  // namespace gancomp::GANCOMP_ISA_NAME
