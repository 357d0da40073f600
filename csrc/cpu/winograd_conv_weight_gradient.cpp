// The gradient of a 4x4 convolution's weight by Winograd's method: what the forward pass multiplies, for a block of weights
// at a time, summed over tiles instead of channels.
#include <algorithm>

#include "winograd_conv.h"

namespace gancomp::GANCOMP_ISA_NAME {
namespace {

// kLanes filters, of which the first `count` exist.
void store_filters(const Vec (&taps)[kFilter], float* weight, int64_t stride, int64_t count, bool add) {
  GANCOMP_UNROLL
  for (int part = 0; part < kFilter; part += kLanes) {
    Vec square[kLanes];
    GANCOMP_UNROLL
    for (int i = 0; i < kLanes; ++i) square[i] = taps[part + i];
    GANCOMP_UNROLL
    for (int lane = 0; lane < kLanes; ++lane) __builtin_prefetch(weight + lane * stride + part + kFiltersAhead * kFilter, 1);
    transpose(square);
    GANCOMP_UNROLL
    for (int lane = 0; lane < kLanes; ++lane) {
      float* to = weight + lane * stride + part;
      if (lane < count) store(to, add ? load(to) + square[lane] : square[lane]);
    }
  }
}

// Floats of transformed x that stay in cache while all of grad passes.
constexpr int64_t kGroupFloats = 1 << 20;

template <typename Taps>
class WeightGradient {
  static constexpr int kStride = kWinogradTaps / Taps::kTaps;
  static constexpr int kPoints = Taps::kPoints * Taps::kPoints;
  static constexpr int kDepth = kStride == 1 ? kWide : kPhaseLanes;  // channels of x in a block

 public:
  WeightGradient(const WinogradConvWeightGradientParams& p, const Executor& executor)
      : p_(p), plan_(winograd_weight_gradient_plan(p)), executor_(executor) {}

  void run() {
    const int64_t depths = pieces(p_.x.c, kDepth), lanes = pieces(p_.grad.c, kWide);
    for (first_ = 0; first_ < plan_.tile_rows; first_ += plan_.rows) {
      TileParams t;
      t.rows = plan_.at_most(plan_.rows, plan_.tile_rows - first_);
      t.image_rows = plan_.pieces(p_.grad.h, Taps::kOutputs), t.tile_columns = plan_.tile_columns, t.first = first_;
      t.pitch = plan_.pitch(t.rows), t.y = p_.workspace;
      t.x = p_.x, t.row = t.column = -p_.padding;
      (kStride == 1 ? four_tap_tiles : phase_tiles)(t, executor_);
      t.x = p_.grad, t.row = t.column = 0, t.y += depths * kPoints * t.pitch;
      (kStride == 1 ? four_tap_gradients : two_tap_gradients)(t, executor_);
      const int64_t group = std::clamp(kGroupFloats / (kPoints * t.pitch), int64_t{1}, depths);
      for_tasks(lanes * depths, p_.slots, executor_, [&](int64_t slot, int64_t task) {
        float* sums = p_.workspace + plan_.blocks * kPoints * plan_.pitch(plan_.rows) + slot * plan_.slot_floats();
        // In groups, all channels of grad for some of x, which stay in cache meanwhile.
        const int64_t first = task / (group * lanes) * group, count = plan_.at_most(group, depths - first);
        const int64_t depth = first + task % (group * lanes) % count, lane = task % (group * lanes) / count;
        sum_block(p_.workspace + depth * kPoints * t.pitch, t.y + lane * kPoints * t.pitch, t.rows * t.tile_columns, t.pitch,
                  sums);
        for (int64_t at = 0; at < kWide && lane * kWide + at < p_.grad.c; at += kLanes) {
          for (int64_t c = 0; c < kDepth && depth * kDepth + c < p_.x.c; ++c) {
            emit(sums + c * kWide + at, depth * kDepth + c, lane * kWide + at);
          }
        }
      });
    }
  }

 private:
  // [point][channel of x][channel of grad], made of parts, since one long sum would lose digits.
  static void sum_block(const float* x, const float* grad, int64_t count, int64_t pitch, float* sums) {
    for (int point = 0; point < kPoints; ++point, x += pitch, grad += pitch, sums += kWinogradWeights) {
      for_parts(count, kWinogradTiles, [&](int64_t tile, int64_t tiles) {
        sum_tiles(x + tile * kWide, grad + tile * kWide, tiles, pitch, tile == 0, sums);
      });
    }
  }

  void emit(const float* sums, int64_t c, int64_t o) const {
    Vec taps[kFilter];
    for (int phase = 0; phase < kStride * kStride; ++phase) {
      transform<Taps::kWeightGradient>(
          [&](int i, int j) { return load(sums + (i * Taps::kPoints + j) * kWinogradWeights + phase * kPhaseLanes * kWide); },
          [&](int i, int j, Vec value) { taps[(i * kStride + phase / 2) * kWinogradTaps + j * kStride + phase % 2] = value; });
    }
    store_filters(taps, p_.grad_weight + (o * p_.x.c + c) * kFilter, p_.x.c * kFilter, p_.grad.c - o, first_ > 0);
  }

  const WinogradConvWeightGradientParams& p_;
  const WinogradPlan plan_;
  const Executor& executor_;
  int64_t first_ = 0;
};

}  // namespace

void winograd_conv_weight_gradient(const WinogradConvWeightGradientParams& p, const Executor& executor) {
  if (p.grad.n == 0) std::fill_n(p.grad_weight, p.grad.c * p.x.c * kFilter, 0.0f);
  p.stride == 1 ? WeightGradient<FourTaps>(p, executor).run() : WeightGradient<TwoTaps>(p, executor).run();
}

}  // namespace gancomp::GANCOMP_ISA_NAME
