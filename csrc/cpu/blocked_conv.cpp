// Convolution in the blocked layout: output channels are the lanes, a tile of pixels is held in registers.
#include "vec.h"

namespace gancomp::GANCOMP_ISA_NAME {
namespace {

// A tile is kVecs vectors of output channels times kPixels pixels; with the vectors of one weight row and a broadcast pixel it
// has to fit the registers.
constexpr int kWideVecs = kLanes == 16 ? kGroup : kParts;
constexpr int kMaxPixels = kLanes == 16 ? 14 : kRegisters == 32 ? 6 : kLanes == 8 ? 6 : 2;

// One sum of hundreds of products would lose digits: parts of at most so many products, and one pixel's block, are added up.
constexpr int64_t kMaxTerms = 128;

struct Tile {
  const float* x;
  int64_t x_block, x_row;
  int x_pixel;  // between neighbouring taps
  int in_channels, taps_h, taps_w;
  int64_t terms;  // products of a part
  const float* weight;
  int weight_row;  // floats between the weights of two input channels
  const float* bias;
  float* y;
  int64_t y_block;
  int y_pixel;
  bool add;                 // whether y has a part of the result already
  const ChannelSums* sums;  // of the row; null: none
  bool first;
};

// Adds the outputs that are in memory to the sums (where there are any) and writes them there.
template <int kVecs, int kPixels>
GANCOMP_INLINE void write(const Tile& t, Vec (&acc)[kVecs][kPixels], bool add) {
  // Made unknown here, so that no address of these is kept in a register that the products need.
  float* y = t.y;
  int64_t y_pixel = t.y_pixel;
  hold(y);
  hold(y_pixel);
  GANCOMP_UNROLL
  for (int p = 0; p < kPixels; ++p, y += y_pixel) {
    GANCOMP_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      float* const at = y + v / kParts * t.y_block + v % kParts * kLanes;
      if (add) acc[v][p] += load(at);
      store(at, acc[v][p]);
    }
  }
}

template <int kVecs, int kPixels, int kStep>
void tile(const Tile& t) {
  Vec acc[kVecs][kPixels];
  GANCOMP_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    const Vec start = t.bias == nullptr ? Vec{} : load(t.bias + v * kLanes);
    GANCOMP_UNROLL
    for (int p = 0; p < kPixels; ++p) acc[v][p] = start;
  }
  bool parts = t.add;  // whether the outputs hold the sums of those before
  int64_t terms = 0;
  const float* w = t.weight;
  for (int channel = 0; channel < t.in_channels; channel += kBlock) {
    const int channels = t.in_channels - channel < kBlock ? t.in_channels - channel : kBlock;
    const float* block = t.x + channel / kBlock * t.x_block;
    for (int i = 0; i < t.taps_h; ++i) {
      for (int j = 0; j < t.taps_w; ++j, terms += channels) {
        if (terms >= t.terms) {
          write(t, acc, parts);
          parts = true;
          terms = 0;
          GANCOMP_UNROLL
          for (int v = 0; v < kVecs; ++v) {
            GANCOMP_UNROLL
            for (int p = 0; p < kPixels; ++p) acc[v][p] = Vec{};
          }
        }
        const float* x = block + i * t.x_row + j * t.x_pixel;
        for (int c = 0; c < channels; ++c, ++x, w += t.weight_row) {
          Vec weight[kVecs];
          GANCOMP_UNROLL
          for (int v = 0; v < kVecs; ++v) weight[v] = load(w + v * kLanes);
          GANCOMP_UNROLL
          for (int p = 0; p < kPixels; ++p) {
            const Vec pixel = splat(x[p * kStep]);
            GANCOMP_UNROLL
            for (int v = 0; v < kVecs; ++v) acc[v][p] += weight[v] * pixel;
          }
          // Of these loops no sum may live in memory: one that does makes every round wait for it.
          GANCOMP_UNROLL
          for (int p = 0; p < kPixels; ++p) {
            GANCOMP_UNROLL
            for (int v = 0; v < kVecs; ++v) hold(acc[v][p]);
          }
        }
      }
    }
  }
  write(t, acc, parts);
  if (t.sums != nullptr) add_tile<kVecs, kPixels>(acc, *t.sums, t.first);
}

// One row of output pixels, in tiles of kPixels and then of the smaller sizes.
template <int kVecs, int kStep, int kPixels>
void row(Tile& t, int width) {
  while (width >= kPixels) {
    tile<kVecs, kPixels, kStep>(t);
    t.x += kPixels * kStep;
    t.y += kPixels * t.y_pixel;
    t.first = false;
    width -= kPixels;
  }
  if constexpr (kPixels > 1) {
    if (width > 0) row<kVecs, kStep, kPixels == 14 ? 8 : kPixels == 6 ? 4 : kPixels / 2>(t, width);
  }
}

template <int kVecs, int kStep>
void strip(const BlockedConvParams& p, int out_channel, const float* weight, int weight_row) {
  const int out_block = out_channel / kBlock;
  RowSums<kVecs> sums(p.sums.from(out_channel), p.first, p.centred);
  Tile t{};
  t.x_block = p.x_block, t.x_row = p.x_row, t.x_pixel = p.x_pixel;
  t.in_channels = p.in_channels, t.taps_h = p.taps_h, t.taps_w = p.taps_w;
  const int64_t terms = static_cast<int64_t>(p.in_channels) * p.taps_h * p.taps_w;
  t.terms = terms / ((terms + kMaxTerms - 1) / kMaxTerms);
  t.weight = weight, t.weight_row = weight_row;
  t.bias = p.bias == nullptr ? nullptr : p.bias + out_channel;
  t.y_block = p.y_block, t.y_pixel = p.y_pixel;
  t.add = p.add;
  t.sums = sums.row();
  t.first = sums.first();
  for (int r = 0; r < p.rows; ++r) {
    t.x = p.x + r * p.stride * p.x_row;
    t.y = p.y + out_block * p.y_block + out_channel % kBlock + r * p.y_row;
    sums.begin();
    row<kVecs, kStep, kMaxPixels>(t, p.width);
    sums.end(p.width);
  }
}

template <int kStep>
void group_strips(const BlockedConvParams& p) {
  const int out_channels = p.out_blocks * kBlock;
  const int64_t rows = static_cast<int64_t>(p.in_channels) * p.taps_h * p.taps_w;
  const float* weight = p.weight;
  for (int channel = 0; channel < out_channels; channel += kGroup * kBlock) {
    const int group = out_channels - channel < kGroup * kBlock ? out_channels - channel : kGroup * kBlock;
    int done = 0;
    for (; done + kWideVecs * kLanes <= group; done += kWideVecs * kLanes) {
      strip<kWideVecs, kStep>(p, channel + done, weight + done, group);
    }
    for (; done < group; done += kBlock) strip<kParts, kStep>(p, channel + done, weight + done, group);
    weight += rows * group;
  }
}

}  // namespace

void blocked_conv(const BlockedConvParams& p) {
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

}  // namespace gancomp::GANCOMP_ISA_NAME
