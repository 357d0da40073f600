// The last convolution, into the few channels of an image: input channels are the lanes, so that none is wasted.
#include "vec.h"

namespace gancomp::GANCOMP_ISA_NAME {
namespace {

constexpr int kPixels = kLanes == 16 || kRegisters == 32 ? 8 : 4;

template <int kChannels, int kCount>
void tile(const BlockedHeadParams& p, const float* x, int64_t weight_channel, float* out, int64_t out_channel) {
  Vec acc[kChannels][kCount] = {};
  for (int block = 0; block < p.in_blocks; ++block) {
    for (int i = 0; i < p.taps; ++i) {
      for (int part = 0; part < kParts; ++part) {
        const float* row = x + block * p.x_block + i * p.x_row + part * kLanes;
        const float* w = p.weight + (block * p.taps + i) * p.taps * kBlock + part * kLanes;
        for (int j = 0; j < p.taps; ++j, row += kBlock, w += kBlock) {
          Vec weight[kChannels];
          GANCOMP_UNROLL
          for (int c = 0; c < kChannels; ++c) weight[c] = load(w + c * weight_channel);
          GANCOMP_UNROLL
          for (int q = 0; q < kCount; ++q) {
            const Vec pixel = load_once(row + q * kBlock);
            GANCOMP_UNROLL
            for (int c = 0; c < kChannels; ++c) acc[c][q] += weight[c] * pixel;
          }
        }
      }
    }
  }
  GANCOMP_UNROLL
  for (int c = 0; c < kChannels; ++c) lane_sums<kCount>(acc[c], out + c * out_channel);
}

// Sums of one row of pixels, without bias: [channel][width + 64].
template <int kChannels>
void row_sums(const BlockedHeadParams& p, const float* x) {
  const int64_t weight_channel = static_cast<int64_t>(p.in_blocks) * p.taps * p.taps * kBlock, out_channel = p.width + 64;
  int j = 0;
  for (; j + kPixels <= p.width; j += kPixels) {
    tile<kChannels, kPixels>(p, x + j * kBlock, weight_channel, p.scratch + j, out_channel);
  }
  for (; j < p.width; ++j) tile<kChannels, 1>(p, x + j * kBlock, weight_channel, p.scratch + j, out_channel);
}

void finish_row(const BlockedHeadParams& p, int row) {
  for (int c = 0; c < p.out_channels; ++c) {
    float* sums = p.scratch + c * (p.width + 64);
    const float bias = p.bias == nullptr ? 0.0f : p.bias[c];
    // The scratch has room behind the row for the last vector.
    for (int j = 0; j < p.width; j += kLanes) {
      const Vec value = load(sums + j) + bias;
      store(sums + j, p.tanh ? tanh(value) : value);
    }
    if (p.planes != nullptr) {
      std::memcpy(p.planes + c * p.plane + row * p.y_row, sums, static_cast<size_t>(p.width) * sizeof(float));
    } else {
      uint8_t* y = p.bytes + row * p.y_row + c;
      for (int64_t j = 0; j < p.width; ++j) y[j * p.out_channels] = to_byte(sums[j]);
    }
  }
}

}  // namespace

void blocked_head(const BlockedHeadParams& p) {
  using RowSums = void (*)(const BlockedHeadParams&, const float*);
  constexpr RowSums row_sums_of[kMaxHeadChannels] = {row_sums<1>, row_sums<2>, row_sums<3>, row_sums<4>};
  for (int i = 0; i < p.rows; ++i) {
#if defined(GANCOMP_HAS_INT8)
    p.x8 == nullptr ? row_sums_of[p.out_channels - 1](p, p.x + i * p.x_row) : int8_head_sums(p, i);
#else
    row_sums_of[p.out_channels - 1](p, p.x + i * p.x_row);
#endif
    finish_row(p, i);
  }
}

}  // namespace gancomp::GANCOMP_ISA_NAME
