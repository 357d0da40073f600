// The last convolution in bytes: dot products run along the pixels of a row of taps.
#include "vec.h"

#if defined(GANCOMP_HAS_INT8)
#include <immintrin.h>

namespace gancomp::GANCOMP_ISA_NAME {
namespace {

constexpr int kPixels = 8;
constexpr int kBytes = 64;

template <int kChannels, int kCount>
void tile(const BlockedHeadParams& p, const uint8_t* x, float* out) {
  const int64_t row_bytes = int8_head_row_bytes(p.taps), channel_bytes = row_bytes * p.taps * p.in_blocks;
  __m512i acc[kChannels][kCount];
  GANCOMP_UNROLL
  for (int c = 0; c < kChannels; ++c) {
    GANCOMP_UNROLL
    for (int q = 0; q < kCount; ++q) acc[c][q] = _mm512_setzero_si512();
  }
  const int8_t* w = p.weight8;
  for (int block = 0; block < p.in_blocks; ++block) {
    for (int i = 0; i < p.taps; ++i) {
      const uint8_t* row = x + block * p.x_block + i * p.x_row;
      for (int64_t j = 0; j < row_bytes; j += kBytes, w += kBytes) {
        __m512i weight[kChannels];
        GANCOMP_UNROLL
        for (int c = 0; c < kChannels; ++c) weight[c] = _mm512_loadu_si512(w + c * channel_bytes);
        GANCOMP_UNROLL
        for (int q = 0; q < kCount; ++q) {
          const __m512i pixels = _mm512_loadu_si512(row + j + q * kBlock);
          GANCOMP_UNROLL
          for (int c = 0; c < kChannels; ++c) acc[c][q] = _mm512_dpbusd_epi32(acc[c][q], pixels, weight[c]);
        }
      }
    }
  }
  GANCOMP_UNROLL
  for (int c = 0; c < kChannels; ++c) {
    Vec sums[kCount];
    GANCOMP_UNROLL
    for (int q = 0; q < kCount; ++q) sums[q] = reinterpret_cast<Vec>(_mm512_cvtepi32_ps(acc[c][q])) * p.out_unit[c];
    lane_sums<kCount>(sums, out + c * (p.width + 64));
  }
}

template <int kChannels>
void row_sums(const BlockedHeadParams& p, const uint8_t* x) {
  int j = 0;
  for (; j + kPixels <= p.width; j += kPixels) tile<kChannels, kPixels>(p, x + j * kBlock, p.scratch + j);
  for (; j < p.width; ++j) tile<kChannels, 1>(p, x + j * kBlock, p.scratch + j);
}

}  // namespace

void int8_head_sums(const BlockedHeadParams& p, int row) {
  using RowSums = void (*)(const BlockedHeadParams&, const uint8_t*);
  constexpr RowSums row_sums_of[kMaxHeadChannels] = {row_sums<1>, row_sums<2>, row_sums<3>, row_sums<4>};
  row_sums_of[p.out_channels - 1](p, p.x8 + row * p.x_row);
}

void int8_head_weights(const Int8HeadWeightsParams& p) {
  const int64_t row_bytes = int8_head_row_bytes(p.taps);
  const float* weight = p.weight;
  int8_t* y = p.y;
  for (int o = 0; o < p.out_channels; ++o) {
    Vec largest{};
    for (int block = 0, at = 0; block < p.in_blocks; ++block) {
      const Vec unit = load(p.in_unit + block * kBlock);
      for (int tap = 0; tap < p.taps * p.taps; ++tap, at += kBlock) {
        const Vec value = load(weight + at) * unit;
        largest = max(largest, max(value, -value));
      }
    }
    float most = 1e-30f, lanes[kLanes];
    store(lanes, largest);
    for (const float lane : lanes) most = lane > most ? lane : most;
    p.out_unit[o] = most / 127.0f;
    const float inverse = 127.0f / most;
    for (int block = 0; block < p.in_blocks; ++block) {
      const Vec unit = load(p.in_unit + block * kBlock) * inverse;
      for (int i = 0; i < p.taps; ++i, y += row_bytes) {
        std::memset(y, 0, static_cast<size_t>(row_bytes));
        for (int j = 0; j < p.taps; ++j, weight += kBlock) {
          const Vec value = load(weight) * unit;
          const __m512i level = _mm512_cvtps_epi32(reinterpret_cast<__m512>(value));
          _mm_storeu_si128(reinterpret_cast<__m128i*>(y + j * kBlock), _mm512_cvtsepi32_epi8(level));
        }
      }
    }
  }
}

}  // namespace gancomp::GANCOMP_ISA_NAME
#endif
