// What the passes of 4x4 convolutions by Winograd's method share: F(3x3, 4x4) for a stride of 1, and for a stride of 2
// F(4x4, 2x2) on the four phases of the image (even and odd rows and columns), of which it is a sum of 2x2 convolutions.
//
// Source: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks": y = A^T ((G g G^T) * (B^T d B)) A. The
// gradients are those of this very formula. Lanes are channels, in blocks of kWinogradLanes, and the sums over channels matrix
// products, one for each point: [block][point][tile][lane] times [point][channel][lane].
#pragma once

#include <atomic>

#include "products.h"
#include "sliced_conv.h"

namespace gancomp::GANCOMP_ISA_NAME {

template <int kR, int kC>
struct Constants {
  static constexpr int kRows = kR, kColumns = kC;
  float at[kR][kC];
};

template <int kR, int kC>
constexpr Constants<kC, kR> transposed(const Constants<kR, kC>& m) {
  Constants<kC, kR> result{};
  for (int i = 0; i < kR; ++i) {
    for (int j = 0; j < kC; ++j) result.at[j][i] = m.at[i][j];
  }
  return result;
}

// F(3, 4) with the points 0, 1, -1, 2, -1/2 and infinity: 2 and -2 would lose half as many digits again.
struct FourTaps {
  static constexpr int kTaps = 4, kOutputs = 3, kPoints = 6;
  static constexpr Constants<3, 6> kOutput = {{{1, 1, 1, 1, 1, 0}, {0, 1, -1, 2, -0.5f, 0}, {0, 1, 1, 4, 0.25f, 1}}};
  static constexpr Constants<6, 6> kInput = {{{1, 1.5f, -2, -1.5f, 1, 0},
                                              {0, -1, -2.5f, -0.5f, 1, 0},
                                              {0, 1, 0.5f, -2.5f, 1, 0},
                                              {0, -0.5f, -1, 0.5f, 1, 0},
                                              {0, 2, -1, -2, 1, 0},
                                              {0, 1, 1.5f, -2, -1.5f, 1}}};
  static constexpr Constants<6, 4> kWeight = {{{1, 0, 0, 0},
                                               {-1 / 3.0f, -1 / 3.0f, -1 / 3.0f, -1 / 3.0f},
                                               {1 / 3.0f, -1 / 3.0f, 1 / 3.0f, -1 / 3.0f},
                                               {1 / 15.0f, 2 / 15.0f, 4 / 15.0f, 8 / 15.0f},
                                               {-16 / 15.0f, 8 / 15.0f, -4 / 15.0f, 2 / 15.0f},
                                               {0, 0, 0, 1}}};
  static constexpr Constants<6, 3> kGradient = transposed(kOutput);
  static constexpr Constants<4, 6> kWeightGradient = transposed(kWeight);
};

// F(4, 2) with the points 0, 1, -1, 2 and infinity.
struct TwoTaps {
  static constexpr int kTaps = 2, kOutputs = 4, kPoints = 5;
  static constexpr Constants<4, 5> kOutput = {{{1, 1, 1, 1, 0}, {0, 1, -1, 2, 0}, {0, 1, 1, 4, 0}, {0, 1, -1, 8, 1}}};
  static constexpr Constants<5, 5> kInput = {
      {{2, -1, -2, 1, 0}, {0, -2, -1, 1, 0}, {0, 2, -3, 1, 0}, {0, -1, 0, 1, 0}, {0, 2, -1, -2, 1}}};
  static constexpr Constants<5, 2> kWeight = {{{0.5f, 0}, {-0.5f, -0.5f}, {-1 / 6.0f, 1 / 6.0f}, {1 / 6.0f, 1 / 3.0f}, {0, 1}}};
  static constexpr Constants<5, 4> kGradient = transposed(kOutput);
  static constexpr Constants<2, 5> kWeightGradient = transposed(kWeight);
};

// Row kRow of a matrix times a vector whose elements lie `step` apart, without the products with zero.
template <const auto& kMatrix, int kRow, int kColumn = 0>
GANCOMP_INLINE void add_row_product(const Vec* v, int step, Vec& sum) {
  if constexpr (kColumn < std::decay_t<decltype(kMatrix)>::kColumns) {
    constexpr float factor = kMatrix.at[kRow][kColumn];
    if constexpr (factor == 1.0f) {
      sum += v[kColumn * step];
    } else if constexpr (factor != 0.0f) {
      sum += factor * v[kColumn * step];
    }
    add_row_product<kMatrix, kRow, kColumn + 1>(v, step, sum);
  }
}
template <const auto& kMatrix, int kRow, int kColumn = 0>
GANCOMP_INLINE Vec row_product(const Vec* v, int step) {
  constexpr float factor = kMatrix.at[kRow][kColumn];
  if constexpr (factor == 0.0f) {
    return row_product<kMatrix, kRow, kColumn + 1>(v, step);
  } else {
    Vec sum = factor * v[kColumn * step];
    add_row_product<kMatrix, kRow, kColumn + 1>(v, step, sum);
    return sum;
  }
}
template <const auto& kMatrix, int... kRow>
GANCOMP_INLINE void product(const Vec* v, int step, Vec* result, int result_step, std::integer_sequence<int, kRow...>) {
  ((result[kRow * result_step] = row_product<kMatrix, kRow>(v, step)), ...);
}

// store_at(i, j, value) for every element of M T M^T, where load_at(i, j) gives those of T.
template <const auto& kMatrix, typename Load, typename Store>
GANCOMP_INLINE void transform(const Load& load_at, const Store& store_at) {
  using M = std::decay_t<decltype(kMatrix)>;
  constexpr auto rows = std::make_integer_sequence<int, M::kRows>{};
  Vec half[M::kRows * M::kColumns];
  GANCOMP_UNROLL
  for (int j = 0; j < M::kColumns; ++j) {
    Vec column[M::kColumns];
    GANCOMP_UNROLL
    for (int i = 0; i < M::kColumns; ++i) column[i] = load_at(i, j);
    product<kMatrix>(column, 1, half + j, M::kColumns, rows);
  }
  GANCOMP_UNROLL
  for (int i = 0; i < M::kRows; ++i) {
    Vec row[M::kRows];
    product<kMatrix>(half + i * M::kColumns, 1, row, 1, rows);
    GANCOMP_UNROLL
    for (int j = 0; j < M::kRows; ++j) store_at(i, j, row[j]);
  }
}

constexpr int kWide = kWinogradLanes;
constexpr int kPhaseLanes = kWide / 4;  // channels of a block that has four phases of each
static_assert(kPhaseLanes % kLanes == 0, "a vector is of one phase");

// Images as tiles, [block][point][tile][kWide]: channel c is lane c % kWide of block c / kWide, or, with phases,
// lane (row phase * 2 + column phase) * kPhaseLanes + c % kPhaseLanes of block c / kPhaseLanes.
struct TileParams {
  ConstImages x;
  int64_t row = 0, column = 0;  // of the image's first tile; outside the image are zeros
  int64_t image_rows = 0, tile_columns = 0;
  int64_t first = 0, rows = 0;  // tile rows, counted through all images
  int64_t pitch = 0;            // floats between two points
  float* y = nullptr;
};
void four_tap_tiles(const TileParams& p, const Executor& executor);      // windows of a convolution of stride 1
void two_tap_tiles(const TileParams& p, const Executor& executor);       // the same of two taps
void phase_tiles(const TileParams& p, const Executor& executor);         // the same of each phase
void four_tap_gradients(const TileParams& p, const Executor& executor);  // gradients of its outputs
void two_tap_gradients(const TileParams& p, const Executor& executor);

// Columns of tiles that are worked on at a time, and the rows and columns of pixels under them.
constexpr int kTileColumns = 16;
constexpr int kTileRowsMax = 10, kTileColumnsMax = (kTileColumns * TwoTaps::kOutputs + 1) * 2 + kLanes;

// kLanes channels of `count` pixels of a row to rows of `y`, of which those below the border of the image are left out.
void scatter_row(const float* from, int64_t count, const Images& y, int64_t n, int64_t channel, int64_t row, int64_t column);

// Taps of kLanes filters, of which the first `count` exist, in lanes; and back.
constexpr int kFiltersAhead = 4;  // that are asked for: they lie one after the other in each of kLanes places
constexpr int kFilter = kWinogradTaps * kWinogradTaps;
GANCOMP_INLINE void load_filters(const float* weight, int64_t stride, int64_t count, Vec (&taps)[kFilter]) {
  GANCOMP_UNROLL
  for (int part = 0; part < kFilter; part += kLanes) {
    Vec square[kLanes];
    GANCOMP_UNROLL
    for (int lane = 0; lane < kLanes; ++lane) __builtin_prefetch(weight + lane * stride + part + kFiltersAhead * kFilter);
    GANCOMP_UNROLL
    for (int lane = 0; lane < kLanes; ++lane) square[lane] = lane < count ? load(weight + lane * stride + part) : Vec{};
    transpose(square);
    GANCOMP_UNROLL
    for (int i = 0; i < kLanes; ++i) taps[part + i] = square[i];
  }
}

// Runs function(slot, task) for every task; no two at a time get the same slot.
template <typename Function>
void for_tasks(int64_t tasks, int64_t slots, const Executor& executor, const Function& function) {
  std::atomic<int64_t> next{0};
  executor.parallel_for(slots < tasks ? slots : tasks, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) function(slot, task);
    }
  });
}

// y[tile][lane] (+)= sum over c < kWide of a[tile][c] * b[c][lane], all of kWide lanes; nothing is read from y where `first`.
void sum_channels(const float* a, const float* b, int64_t tiles, bool first, float* y);
// y[c][lane] (+)= sum over tiles of a[tile][c] * b[tile][lane], for c < kWide; a and b of the next call lie `next` floats on.
void sum_tiles(const float* a, const float* b, int64_t tiles, int64_t next, bool first, float* y);

}  // namespace gancomp::GANCOMP_ISA_NAME
