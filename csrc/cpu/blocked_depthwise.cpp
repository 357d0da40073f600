// Depthwise 3x3 of one channel block, with the statistics of its output.
#include "vec.h"

namespace gancomp::GANCOMP_ISA_NAME {
namespace {

constexpr int kPixels = kRegisters == 32 ? 4 : 2;
constexpr int kSamples = 8;

template <int kCount, bool kExtremes>
GANCOMP_INLINE void pixels(const float* x, int64_t x_row, const Vec (&weight)[9], Vec start, Vec mean, float* y,
                           Statistics& sums) {
  Vec acc[kCount];
  GANCOMP_UNROLL
  for (int p = 0; p < kCount; ++p) acc[p] = start;
  GANCOMP_UNROLL
  for (int i = 0; i < 3; ++i) {
    Vec row[kCount + 2];
    GANCOMP_UNROLL
    for (int p = 0; p < kCount + 2; ++p) row[p] = load(x + i * x_row + p * kBlock);
    GANCOMP_UNROLL
    for (int j = 0; j < 3; ++j) {
      GANCOMP_UNROLL
      for (int p = 0; p < kCount; ++p) acc[p] += weight[3 * i + j] * row[p + j];
    }
  }
  GANCOMP_UNROLL
  for (int p = 0; p < kCount; ++p) {
    acc[p] -= mean;
    store(y + p * kBlock, acc[p]);
    sums.add(acc[p]);
    if (kExtremes) sums.add_extremes(acc[p]);
  }
}

template <bool kExtremes>
void strip(const BlockedDepthwiseParams& p) {
  for (int part = 0; part < kParts; ++part) {
    const int lane = part * kLanes;
    Vec weight[9];
    for (int k = 0; k < 9; ++k) weight[k] = load(p.weight + k * kBlock + lane);
    const Vec start = p.bias == nullptr ? Vec{} : load(p.bias + lane);
    const Vec mean = p.mean == nullptr ? Vec{} : load(p.mean + lane);
    Statistics sums, unused;
    // The pivot is the mean of a few outputs all over the strip: one of them may be far from the others, at a border for
    // example, and the variance would lose the digits of that distance.
    for (int64_t i = 0; i < kSamples; ++i) {
      float sample[kLanes];
      const int64_t row = i * p.rows / kSamples, column = (2 * i + 1) * p.width / (2 * kSamples);
      pixels<1, false>(p.x + row * p.x_row + column * kBlock + lane, p.x_row, weight, start, mean, sample, unused);
      sums.pivot += load(sample) * (1.0f / kSamples);
    }
    for (int i = 0; i < p.rows; ++i) {
      const float* x = p.x + i * p.x_row + lane;
      float* y = p.y + i * p.y_row + lane;
      Statistics row;
      row.pivot = sums.pivot;
      int j = 0;
      for (; j + kPixels <= p.width; j += kPixels) {
        pixels<kPixels, kExtremes>(x + j * kBlock, p.x_row, weight, start, mean, y + j * kBlock, row);
      }
      for (; j < p.width; ++j) pixels<1, kExtremes>(x + j * kBlock, p.x_row, weight, start, mean, y + j * kBlock, row);
      sums.add(row);
    }
    if (p.sums.pivot != nullptr) sums.store_to(p.sums, lane);
  }
}

}  // namespace

void blocked_depthwise(const BlockedDepthwiseParams& p) { p.sums.low == nullptr ? strip<false>(p) : strip<true>(p); }

}  // namespace gancomp::GANCOMP_ISA_NAME
