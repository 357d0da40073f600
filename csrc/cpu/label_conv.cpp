// A 3x3 convolution of a one-hot label map: nine rows of a table added up at every pixel.
#include "vec.h"

namespace gancomp::GANCOMP_ISA_NAME {
namespace {

constexpr int kTaps = 9;
constexpr int kPixels = 2;  // at once, so that additions need not wait for each other
constexpr int kSamples = 8;

// Float of a tap's row in the table of a block.
struct Table {
  const float* of_tap[kTaps];
};

template <int kCount>
GANCOMP_INLINE void pixels(const int32_t* codes, int64_t code_row, const Table& table, Vec bias, Vec slope,
                           Vec (&values)[kCount]) {
  GANCOMP_UNROLL
  for (int p = 0; p < kCount; ++p) values[p] = bias;
  GANCOMP_UNROLL
  for (int tap = 0; tap < kTaps; ++tap) {
    GANCOMP_UNROLL
    for (int p = 0; p < kCount; ++p) {
      values[p] += load(table.of_tap[tap] + int64_t{codes[tap / 3 * code_row + tap % 3 + p]} * kBlock);
    }
  }
  GANCOMP_UNROLL
  for (int p = 0; p < kCount; ++p) values[p] = max(values[p], values[p] * slope);
}

}  // namespace

void label_conv(const LabelConvParams& p) {
  for (int block = 0; block < p.blocks; ++block) {
    const ChannelSums at = p.sums.from(block * kBlock);
    for (int lane = 0; lane < kBlock; lane += kLanes) {
      Table table;
      for (int tap = 0; tap < kTaps; ++tap) {
        table.of_tap[tap] = p.table + static_cast<int64_t>(block * kTaps + tap) * p.codes_count * kBlock + lane;
      }
      const Vec bias = p.bias == nullptr ? Vec{} : load(p.bias + block * kBlock + lane), slope = splat(p.slope);
      Statistics sums;
      if (at.pivot != nullptr) {
        // The mean of a few outputs all over the strip, as of depthwise convolutions.
        for (int64_t i = 0; i < kSamples; ++i) {
          const int64_t row = i * p.rows / kSamples, column = (2 * i + 1) * p.width / (2 * kSamples);
          Vec sample[1];
          pixels<1>(p.codes + row * p.code_row + column, p.code_row, table, bias, slope, sample);
          sums.pivot += sample[0] * (1.0f / kSamples);
        }
      }
      for (int i = 0; i < p.rows; ++i) {
        const int32_t* codes = p.codes + i * p.code_row;
        float* y = p.y + block * p.y_block + i * p.y_row + lane;
        Statistics row;
        row.pivot = sums.pivot;
        int j = 0;
        for (; j + kPixels <= p.width; j += kPixels) {
          Vec values[kPixels];
          pixels<kPixels>(codes + j, p.code_row, table, bias, slope, values);
          GANCOMP_UNROLL
          for (int k = 0; k < kPixels; ++k) {
            store(y + (j + k) * kBlock, values[k]);
            row.add(values[k]);
          }
        }
        for (; j < p.width; ++j) {
          Vec values[1];
          pixels<1>(codes + j, p.code_row, table, bias, slope, values);
          store(y + j * kBlock, values[0]);
          row.add(values[0]);
        }
        sums.add(row);
      }
      if (at.pivot != nullptr) sums.store_to(at, lane);
    }
  }
}

}  // namespace gancomp::GANCOMP_ISA_NAME
