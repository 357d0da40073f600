// Convolution of bytes: unsigned activations times signed weights, four input channels in one instruction, sums of 32 bits.
#include "vec.h"

#if defined(GANCOMP_HAS_INT8)
#include <immintrin.h>

namespace gancomp::GANCOMP_ISA_NAME {
namespace {

constexpr int kQuad = 4;  // input channels of a dot product
constexpr int kMaxPixels = 14;

struct Tile {
  const uint8_t* x;
  int64_t x_block, x_row;
  int x_pixel, in_channels, taps_h, taps_w;
  const int8_t* weight;
  int weight_quad;  // bytes between the weights of two quads
  const float* out_unit;
  float* y;
  int64_t y_block;
  const ChannelSums* sums;
  bool first;
};

template <int kVecs, int kPixels, int kStep>
void tile(const Tile& t) {
  __m512i acc[kVecs][kPixels];
  GANCOMP_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    GANCOMP_UNROLL
    for (int p = 0; p < kPixels; ++p) acc[v][p] = _mm512_setzero_si512();
  }
  const int8_t* w = t.weight;
  for (int channel = 0; channel < t.in_channels; channel += kBlock) {
    const int channels = t.in_channels - channel < kBlock ? t.in_channels - channel : kBlock;
    const uint8_t* block = t.x + channel / kBlock * t.x_block;
    for (int i = 0; i < t.taps_h; ++i) {
      for (int j = 0; j < t.taps_w; ++j) {
        const uint8_t* x = block + i * t.x_row + j * t.x_pixel;
        for (int c = 0; c < channels; c += kQuad, x += kQuad, w += t.weight_quad) {
          __m512i weight[kVecs];
          GANCOMP_UNROLL
          for (int v = 0; v < kVecs; ++v) weight[v] = _mm512_loadu_si512(w + v * kLanes * kQuad);
          GANCOMP_UNROLL
          for (int p = 0; p < kPixels; ++p) {
            int32_t quad;
            std::memcpy(&quad, x + p * kStep, sizeof(quad));
            const __m512i pixel = _mm512_set1_epi32(quad);
            GANCOMP_UNROLL
            for (int v = 0; v < kVecs; ++v) acc[v][p] = _mm512_dpbusd_epi32(acc[v][p], pixel, weight[v]);
          }
        }
      }
    }
  }
  Vec values[kVecs][kPixels];
  GANCOMP_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    const Vec unit = load(t.out_unit + v * kLanes);
    GANCOMP_UNROLL
    for (int p = 0; p < kPixels; ++p) {
      values[v][p] = reinterpret_cast<Vec>(_mm512_cvtepi32_ps(acc[v][p])) * unit;
      store(t.y + v * t.y_block + p * kBlock, values[v][p]);
    }
  }
  if (t.sums != nullptr) add_tile<kVecs, kPixels>(values, *t.sums, t.first);
}

template <int kVecs, int kStep, int kPixels>
void row(Tile& t, int width) {
  while (width >= kPixels) {
    tile<kVecs, kPixels, kStep>(t);
    t.x += kPixels * kStep;
    t.y += kPixels * kBlock;
    t.first = false;
    width -= kPixels;
  }
  if constexpr (kPixels > 1) {
    if (width > 0) row<kVecs, kStep, kPixels == kMaxPixels ? 8 : kPixels / 2>(t, width);
  }
}

template <int kVecs, int kStep>
void strip(const Int8ConvParams& p, int out_block, const int8_t* weight) {
  RowSums<kVecs> sums(p.sums.from(out_block * kBlock), true);
  Tile t{};
  t.x_block = p.x_block, t.x_row = p.x_row, t.x_pixel = p.x_pixel;
  t.in_channels = p.in_channels, t.taps_h = p.taps_h, t.taps_w = p.taps_w;
  t.weight = weight, t.weight_quad = kVecs * kLanes * kQuad;
  t.out_unit = p.out_unit + out_block * kBlock;
  t.y_block = p.y_block;
  t.sums = sums.row();
  t.first = true;
  for (int r = 0; r < p.rows; ++r) {
    t.x = p.x + r * p.stride * p.x_row;
    t.y = p.y + out_block * p.y_block + r * p.y_row;
    sums.begin();
    row<kVecs, kStep, kMaxPixels>(t, p.width);
    sums.end(p.width);
  }
}

template <int kStep>
void group_strips(const Int8ConvParams& p) {
  const int8_t* weight = p.weight;
  for (int block = 0; block < p.out_blocks; block += kGroup) {
    const int blocks = p.out_blocks - block < kGroup ? p.out_blocks - block : kGroup;
    blocks == kGroup ? strip<kGroup, kStep>(p, block, weight) : strip<1, kStep>(p, block, weight);
    weight += int8_weight_bytes(p.in_channels, p.taps_h * p.taps_w, blocks);
  }
}

}  // namespace

static_assert(kLanes == kBlock, "a vector is a block of output channels");

void int8_conv(const Int8ConvParams& p) {
  switch (p.x_pixel * p.stride) {
    case 1:
      return group_strips<1>(p);
    case 2:
      return group_strips<2>(p);
    case 3:
      return group_strips<3>(p);
    case 4:
      return group_strips<4>(p);
    case 6:
      return group_strips<6>(p);
    case 8:
      return group_strips<8>(p);
    case kBlock:
      return group_strips<kBlock>(p);
    default:
      return group_strips<2 * kBlock>(p);
  }
}

void blocked_quantize(const BlockedQuantizeParams& p) {
  const __m512i zero = _mm512_set1_epi32(p.zero), none = _mm512_setzero_si512();
  for (int block = 0; block < p.blocks; ++block) {
    const Vec mean = p.mean == nullptr ? Vec{} : load(p.mean + block * kBlock);
    const Vec inverse = load(p.inverse + block * kBlock);
    for (int i = 0; i < p.rows; ++i) {
      const float* x = p.x + block * p.x_block + i * p.x_row;
      uint8_t* y = p.y + block * p.y_block + i * p.y_row;
      for (int64_t j = 0; j < p.width; ++j) {
        const Vec scaled = (load(x + j * kBlock) - mean) * inverse;
        const __m512i level = _mm512_add_epi32(_mm512_cvtps_epi32(reinterpret_cast<__m512>(scaled)), zero);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(y + j * kBlock), _mm512_cvtusepi32_epi8(_mm512_max_epi32(level, none)));
      }
    }
  }
}

void int8_weights(const Int8WeightsParams& p) {
  const float* weight = p.weight;
  int8_t* y = p.y;
  const auto unit_of = [&](int channel) { return p.in_unit == nullptr ? 1.0f : p.in_unit[channel]; };
  for (int out = 0; out < p.out_blocks; out += kGroup) {
    const int vecs = p.out_blocks - out < kGroup ? p.out_blocks - out : kGroup, width = vecs * kBlock;
    // Largest scaled weight of every output channel.
    Vec largest[kGroup] = {};
    const float* at = weight;
    for (int block = 0; block < p.in_channels; block += kBlock) {
      const int channels = p.in_channels - block < kBlock ? p.in_channels - block : kBlock;
      for (int tap = 0; tap < p.taps; ++tap) {
        for (int c = 0; c < channels; ++c, at += width) {
          for (int v = 0; v < vecs; ++v) {
            const Vec value = load(at + v * kLanes) * unit_of(block + c);
            largest[v] = max(largest[v], max(value, -value));
          }
        }
      }
    }
    Vec inverse[kGroup];
    for (int v = 0; v < vecs; ++v) {
      const Vec unit = max(largest[v], splat(1e-30f)) / 127.0f;
      store(p.out_unit + (out + v) * kBlock, unit);
      inverse[v] = 1.0f / unit;
    }
    at = weight;
    for (int block = 0; block < p.in_channels; block += kBlock) {
      const int channels = p.in_channels - block < kBlock ? p.in_channels - block : kBlock;
      for (int tap = 0; tap < p.taps; ++tap) {
        for (int c = 0; c < channels; c += kQuad) {
          for (int v = 0; v < vecs; ++v) {
            __m512i quad = _mm512_setzero_si512();
            for (int q = 0; q < kQuad && c + q < channels; ++q) {
              const Vec value = load(at + q * width + v * kLanes) * (unit_of(block + c + q) * inverse[v]);
              const __m512i level =
                  _mm512_and_si512(_mm512_cvtps_epi32(reinterpret_cast<__m512>(value)), _mm512_set1_epi32(255));
              quad = _mm512_or_si512(quad, _mm512_sllv_epi32(level, _mm512_set1_epi32(8 * q)));
            }
            _mm512_storeu_si512(y, quad);
            y += kLanes * kQuad;
          }
          at += static_cast<int64_t>(channels - c < kQuad ? channels - c : kQuad) * width;
        }
      }
    }
    weight = at;
  }
}

}  // namespace gancomp::GANCOMP_ISA_NAME
#endif
