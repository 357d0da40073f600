// Images to transformed tiles and back, and the matrix products between.
#include "plane.h"
#include "winograd_conv.h"

namespace gancomp::GANCOMP_ISA_NAME {
namespace {

// Pixels of a row as vectors of kLanes channels, those outside the image as zeros. `y` takes kLanes pixels more.
void gather_row(const ConstImages& x, int64_t n, int64_t channel, int64_t row, int64_t column, int64_t count, float* y) {
  const int64_t begin = column < 0 ? (-column < count ? -column : count) : 0;
  const int64_t inside_end = x.w - column < count ? x.w - column : count;
  const int64_t end = row < 0 || row >= x.h || channel >= x.c || inside_end < begin ? begin : inside_end;
  fill_zeros(y, begin * kLanes);
  const float* from = x.plane(n, channel < x.c ? channel : 0) + row * x.w + column;
  const int64_t channels = x.c - channel < kLanes ? x.c - channel : kLanes;
  for (int64_t i = begin; i < end; i += kLanes) {
    // The last ones together with some before them, where there are any: a part of a vector is slow to read.
    if (end - i < kLanes && end - begin >= kLanes) i = end - kLanes;
    Vec square[kLanes];
    GANCOMP_UNROLL
    for (int lane = 0; lane < kLanes; ++lane) {
      square[lane] = lane < channels ? load_first(from + lane * x.stride_c + i, end - i) : Vec{};
    }
    transpose(square);
    GANCOMP_UNROLL
    for (int j = 0; j < kLanes; ++j) store(y + (i + j) * kLanes, square[j]);
  }
  fill_zeros(y + end * kLanes, (count - end) * kLanes);
}

// kStep: 1, or 2 for the phases of a window of twice as many rows and columns.
template <typename Taps, const auto& kMatrix, int kStep>
void tiles(const TileParams& p, const Executor& executor) {
  constexpr int kWindow = std::decay_t<decltype(kMatrix)>::kColumns, kPoints = Taps::kPoints;
  constexpr int kChannels = kStep == 1 ? kWide : kPhaseLanes, kRows = kWindow * kStep;
  constexpr int kPitch = kTileColumnsMax * kLanes;
  static_assert(kRows <= kTileRowsMax, "the rows of a tile fit the buffer");
  const int64_t blocks = pieces(p.x.c, kChannels), chunks = pieces(p.tile_columns, kTileColumns);
  executor.parallel_for(blocks * p.rows, [&](int64_t begin, int64_t end) {
    alignas(64) float window[kRows * kPitch];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / p.rows, row = task % p.rows, at = p.first + row;
      const int64_t top = p.row + at % p.image_rows * Taps::kOutputs * kStep;
      for (int64_t unit = 0; unit < chunks * (kChannels / kLanes); ++unit) {
        const int64_t lane = unit % (kChannels / kLanes) * kLanes, tile = unit / (kChannels / kLanes) * kTileColumns;
        const int64_t count = p.tile_columns - tile < kTileColumns ? p.tile_columns - tile : kTileColumns;
        const int64_t columns = ((count - 1) * Taps::kOutputs + kWindow) * kStep;
        for (int i = 0; i < kRows; ++i) {
          gather_row(p.x, at / p.image_rows, block * kChannels + lane, top + i, p.column + tile * Taps::kOutputs * kStep,
                     columns, window + i * kPitch);
        }
        float* y = p.y + block * kPoints * kPoints * p.pitch + (row * p.tile_columns + tile) * kWide + lane;
        for (int64_t t = 0; t < count; ++t, y += kWide) {
          for (int phase = 0; phase < kStep * kStep; ++phase) {
            const float* from = window + (phase / 2) * kPitch + (t * Taps::kOutputs * kStep + phase % 2) * kLanes;
            transform<kMatrix>(
                [&](int i, int j) { return load(from + i * kStep * kPitch + j * kStep * kLanes); },
                [&](int i, int j, Vec value) { store(y + (i * kPoints + j) * p.pitch + phase * kPhaseLanes, value); });
          }
        }
      }
    }
  });
}

// y[r][0 .. kWide) (+)= sum over k < depth of a(r, k) * b[k][0 .. kWide); nothing is read from y where `first`.
struct BlockProduct {
  const float *a, *b;
  int64_t depth;
  bool first;
  float* y;
  const float *next_a, *next_b;
};

constexpr int kRowsAtOnce = 6, kVecsAtOnce = kRegisters == 32 ? 4 : 2;

// Rows [row, row + kR) of a block, and what will be needed after them: of the sums over channels the next rows, of those over
// tiles a part of the next block.
template <bool kByRow, int kR>
void multiply_rows(const BlockProduct& p, int64_t row) {
  const float* a = p.a + row * (kByRow ? kWide : 1);
  float* y = p.y + row * kWide;
  for (int lane = 0; lane < kWide; lane += kVecsAtOnce * kLanes) {
    Vec sums[kR][kVecsAtOnce] = {};
    if constexpr (kByRow) {
      constexpr int kHalf = kWide / 2;
      multiply<true, kWide, true>(a, kWide, p.b + lane, kHalf, sums, a + kR * kWide);
      multiply<true, kWide, true>(a + kHalf, kWide, p.b + kHalf * kWide + lane, kHalf, sums, y + kR * kWide);
    } else {
      constexpr int kParts = 2 * kWide / kLine;  // that the rows of both blocks are lines of
      const int64_t part = row / kRowsAtOnce % kParts * p.depth * kLine;
      const float* ahead = part < p.depth * kWide ? p.next_a + part : p.next_b + part - p.depth * kWide;
      multiply<false, kWide, true>(a, kWide, p.b + lane, p.depth, sums, ahead);
    }
    GANCOMP_UNROLL
    for (int r = 0; r < kR; ++r) {
      GANCOMP_UNROLL
      for (int v = 0; v < kVecsAtOnce; ++v) {
        float* to = y + r * kWide + lane + v * kLanes;
        store(to, p.first ? sums[r][v] : load(to) + sums[r][v]);
      }
    }
  }
}

template <bool kByRow>
void multiply_block(const BlockProduct& p, int64_t rows) {
  for_parts(rows, kRowsAtOnce, [&](int64_t row, int64_t count) {
    switch (count) {
      case 1:
        return multiply_rows<kByRow, 1>(p, row);
      case 2:
        return multiply_rows<kByRow, 2>(p, row);
      case 3:
        return multiply_rows<kByRow, 3>(p, row);
      case 4:
        return multiply_rows<kByRow, 4>(p, row);
      case 5:
        return multiply_rows<kByRow, 5>(p, row);
      default:
        return multiply_rows<kByRow, 6>(p, row);
    }
  });
}

}  // namespace

void four_tap_tiles(const TileParams& p, const Executor& executor) { tiles<FourTaps, FourTaps::kInput, 1>(p, executor); }
void two_tap_tiles(const TileParams& p, const Executor& executor) { tiles<TwoTaps, TwoTaps::kInput, 1>(p, executor); }
void phase_tiles(const TileParams& p, const Executor& executor) { tiles<TwoTaps, TwoTaps::kInput, 2>(p, executor); }
void four_tap_gradients(const TileParams& p, const Executor& executor) { tiles<FourTaps, FourTaps::kGradient, 1>(p, executor); }
void two_tap_gradients(const TileParams& p, const Executor& executor) { tiles<TwoTaps, TwoTaps::kGradient, 1>(p, executor); }

void scatter_row(const float* from, int64_t count, const Images& y, int64_t n, int64_t channel, int64_t row, int64_t column) {
  const int64_t end = y.w - column < count ? y.w - column : count;
  const int64_t channels = y.c - channel < kLanes ? y.c - channel : kLanes;
  float* to = y.plane(n, channel) + row * y.w + column;
  for (int64_t i = 0; i < end; i += kLanes) {
    if (end - i < kLanes && end >= kLanes) i = end - kLanes;
    Vec square[kLanes];
    GANCOMP_UNROLL
    for (int j = 0; j < kLanes; ++j) square[j] = load(from + (i + j) * kLanes);
    transpose(square);
    GANCOMP_UNROLL
    for (int lane = 0; lane < kLanes; ++lane) {
      if (lane < channels) store_first(to + lane * y.stride_c + i, square[lane], end - i);
    }
  }
}

void sum_channels(const float* a, const float* b, int64_t tiles, bool first, float* y) {
  multiply_block<true>({a, b, kWide, first, y, nullptr, nullptr}, tiles);
}

void sum_tiles(const float* a, const float* b, int64_t tiles, int64_t next, bool first, float* y) {
  multiply_block<false>({a, b, tiles, first, y, a + next, b + next}, kWide);
}

}  // namespace gancomp::GANCOMP_ISA_NAME
