// The transforms of Winograd's F(4x4, 3x3): four by four outputs of a 3x3 convolution from 36 products instead of 144.
// Source: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks", with the points 0, 1, -1, 2, -2.
#include "vec.h"

namespace gancomp::GANCOMP_ISA_NAME {
namespace {

constexpr int kTile = kWinogradTile;  // outputs of a side
constexpr int kSide = kTile + 2;      // inputs, and products, of a side

// One dimension of the input transform; neighbours are `step` apart.
GANCOMP_INLINE void input_1d(const Vec* d, Vec* t, int step) {
  const Vec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  const Vec even = d4 - 4.0f * d2, odd = d3 - 4.0f * d1, difference = d4 - d2, twice = 2.0f * (d3 - d1);
  t[0] = 4.0f * d0 - 5.0f * d2 + d4;
  t[step] = even + odd;
  t[2 * step] = even - odd;
  t[3 * step] = difference + twice;
  t[4 * step] = difference - twice;
  t[5 * step] = 4.0f * d1 - 5.0f * d3 + d5;
}

// One dimension of the output transform, six to four.
GANCOMP_INLINE void output_1d(const Vec* m, int step, Vec* y, int y_step) {
  const Vec sum = m[step] + m[2 * step], difference = m[step] - m[2 * step];
  const Vec far_sum = m[3 * step] + m[4 * step], far_difference = m[3 * step] - m[4 * step];
  y[0] = m[0] + sum + far_sum;
  y[y_step] = difference + 2.0f * far_difference;
  y[2 * y_step] = sum + 4.0f * far_sum;
  y[3 * y_step] = difference + 8.0f * far_difference + m[5 * step];
}

}  // namespace

void winograd_input(const WinogradInputParams& p) {
  for (int i = 0; i < p.tile_rows; ++i) {
    for (int j = 0; j < p.tile_columns; ++j) {
      for (int lane = 0; lane < kBlock; lane += kLanes) {
        const float* x = p.x + i * kTile * p.x_row + j * kTile * kBlock + lane;
        float* y = p.y + (static_cast<int64_t>(i) * p.tile_columns + j) * kBlock + lane;
        Vec d[kSide * kSide];
        for (int r = 0; r < kSide; ++r) {
          GANCOMP_UNROLL
          for (int c = 0; c < kSide; ++c) d[r * kSide + c] = load(x + r * p.x_row + c * kBlock);
          input_1d(d + r * kSide, d + r * kSide, 1);
        }
        for (int c = 0; c < kSide; ++c) {
          input_1d(d + c, d + c, kSide);
          GANCOMP_UNROLL
          for (int r = 0; r < kSide; ++r) store(y + (r * kSide + c) * p.y_product, d[r * kSide + c]);
        }
      }
    }
  }
}

void winograd_output(const WinogradOutputParams& p) {
  for (int lane = 0; lane < kBlock; lane += kLanes) {
    const Vec bias = p.bias == nullptr ? Vec{} : load(p.bias + lane);
    Statistics sums;
    for (int i = 0; i * kTile < p.rows; ++i) {
      for (int j = 0; j < p.tile_columns; ++j) {
        const float* x = p.x + (static_cast<int64_t>(i) * p.tile_columns + j) * kBlock + lane;
        Vec m[kSide * kSide], t[kTile * kSide], y[kTile * kTile];
        for (int c = 0; c < kSide; ++c) {
          GANCOMP_UNROLL
          for (int r = 0; r < kSide; ++r) m[r * kSide + c] = load(x + (r * kSide + c) * p.x_product);
          output_1d(m + c, kSide, t + c, kSide);
        }
        for (int r = 0; r < kTile; ++r) output_1d(t + r * kSide, 1, y + r * kTile, 1);
        const int rows = p.rows - i * kTile < kTile ? p.rows - i * kTile : kTile;
        const int columns = p.width - j * kTile < kTile ? p.width - j * kTile : kTile;
        float* const at = p.y + i * kTile * p.y_row + j * kTile * kBlock + lane;
        if (p.add) {
          for (int r = 0; r < rows; ++r) {
            for (int c = 0; c < columns; ++c) y[r * kTile + c] += load(at + r * p.y_row + c * kBlock);
          }
        }
        if (i == 0 && j == 0) {
          for (const Vec& value : y) sums.pivot += value * (1.0f / (kTile * kTile));
          sums.pivot += bias;
        }
        Statistics tile;
        tile.pivot = sums.pivot;
        for (int r = 0; r < rows; ++r) {
          float* to = at + r * p.y_row;
          for (int c = 0; c < columns; ++c) {
            const Vec value = y[r * kTile + c] + bias;
            store(to + c * kBlock, value);
            tile.add(value);
            tile.add_extremes(value);
          }
        }
        sums.add(tile);
      }
      if (i == 0) sums.recentre(static_cast<int64_t>(p.rows < kTile ? p.rows : kTile) * p.width);
    }
    if (p.sums.pivot != nullptr) sums.store_to(p.sums, lane);
  }
}

}  // namespace gancomp::GANCOMP_ISA_NAME
