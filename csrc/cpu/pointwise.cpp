// Matrix products in tiles of registers: output channels times vectors, from panels that stay in the nearest caches.
//
// Planes lie 16 KB apart at 64 x 64 pixels, so that the same pixels of many channels meet in a few sets of the caches: they are
// copied into panels first, a strip of pixels of all channels at a time.
#include "pointwise.h"

#include "plane.h"
#include "products.h"

namespace gancomp::GANCOMP_ISA_NAME {
namespace {

constexpr int kRows = kRegisters == 32 ? 8 : 4;
constexpr int kVecs = kRegisters == 32 || kLanes == 8 ? 3 : 2;
constexpr int kTile = kVecs * kLanes;  // lanes of a tile, which divide kPointwiseColumns
static_assert(kPointwiseRows % kRows == 0 && kPointwiseColumns % kTile == 0, "the sums' size is that of every instruction set");

// --- y = weight * x ---------------------------------------------------------------------------------------------------

constexpr int64_t kStripTiles = 2;  // tiles of pixels that a task packs at a time
constexpr int64_t kStrip = kStripTiles * kTile;
constexpr int64_t kDepth = 256;  // input channels that are packed at a time

// What the next strip is made of, asked for while this one is worked on, some rows of pixels at a time.
struct Ahead {
  const float* x = nullptr;
  int64_t stride = 0, left = 0, each = 0;

  GANCOMP_INLINE void step() {
    int64_t count = left < each ? left : each;
    left -= count;
    for (; count > 0; --count, x += stride) {
      GANCOMP_UNROLL
      for (int v = 0; v < kVecs; ++v) __builtin_prefetch(x + v * kLanes, 0, 2);
    }
  }
};

struct Product {
  const float* a;  // first row
  int64_t a_stride;
  const float* b;
  int64_t depth;
  const float* bias;  // of the first row; null: zero
  float* y;           // of the first row
  int64_t y_stride;
  int64_t width;  // pixels
  bool add;       // to what y holds, instead of the bias
  Ahead ahead;
};

template <bool kByRow, int kR, int kV>
void tile(const Product& p) {
  Vec sums[kR][kV];
  const int64_t last = p.width - (kV - 1) * kLanes;  // pixels of the last vector
  GANCOMP_UNROLL
  for (int r = 0; r < kR; ++r) {
    const float* y = p.y + r * p.y_stride;
    const Vec start = p.add || p.bias == nullptr ? Vec{} : splat(p.bias[r]);
    GANCOMP_UNROLL
    for (int v = 0; v < kV; ++v) {
      sums[r][v] = !p.add ? start : v + 1 < kV ? load(y + v * kLanes) : load_first(y + v * kLanes, last);
    }
  }
  multiply<kByRow, kTile>(p.a, p.a_stride, p.b, p.depth, sums);
  GANCOMP_UNROLL
  for (int r = 0; r < kR; ++r) {
    float* y = p.y + r * p.y_stride;
    GANCOMP_UNROLL
    for (int v = 0; v + 1 < kV; ++v) store(y + v * kLanes, sums[r][v]);
    store_first(y + (kV - 1) * kLanes, sums[r][kV - 1], last);
  }
}

template <bool kByRow, int kR>
void tile_of_width(const Product& p) {
  if (kVecs == 3 && p.width > 2 * kLanes) return tile<kByRow, kR, kVecs>(p);
  p.width > kLanes ? tile<kByRow, kR, 2>(p) : tile<kByRow, kR, 1>(p);
}

// All output channels of a tile of pixels, kR at a time and the rest in halves.
template <bool kByRow, int kR>
void rows(Product& p, int64_t count) {
  for (; count >= kR; count -= kR) {
    p.ahead.step();
    tile_of_width<kByRow, kR>(p);
    p.a += kR * (kByRow ? p.a_stride : 1);
    p.y += kR * p.y_stride;
    if (p.bias != nullptr) p.bias += kR;
  }
  if constexpr (kR > 1) {
    if (count > 0) rows<kByRow, kR / 2>(p, count);
  }
}

// A tile of pixels of some channels, side by side, filled up with zeros to whole vectors.
void pack(const float* x, int64_t stride, int64_t channels, int64_t width, float* panel) {
  for (int64_t c = 0; c < channels; ++c, x += stride, panel += kTile) {
    if (width == kTile) {
      GANCOMP_UNROLL
      for (int v = 0; v < kVecs; ++v) store(panel + v * kLanes, load(x + v * kLanes));
    } else {
      for (int64_t i = 0; i < width; i += kLanes) store(panel + i, load_first(x + i, width - i));
    }
  }
}

template <bool kByRow>
void strip(const ConstImages& x, const ConstMatrix& weight, const float* bias, const Images& y, int64_t n, int64_t begin) {
  alignas(64) float panel[kStripTiles][kDepth * kTile];
  const int64_t pixels = x.plane_size(), width = pixels - begin < kStrip ? pixels - begin : kStrip;
  for (int64_t first = 0; first < x.c; first += kDepth) {
    const int64_t depth = x.c - first < kDepth ? x.c - first : kDepth;
    for (int64_t at = 0; at < width; at += kTile) {
      const int64_t wide = width - at < kTile ? width - at : kTile;
      pack(x.plane(n, first) + begin + at, x.stride_c, depth, wide, panel[at / kTile]);
    }
    for (int64_t at = 0; at < width; at += kTile) {
      Product p{};
      p.a = weight.data + first * weight.column_stride;
      p.a_stride = kByRow ? weight.row_stride : weight.column_stride;
      p.b = panel[at / kTile], p.depth = depth, p.bias = bias;
      p.y = y.plane(n, 0) + begin + at, p.y_stride = y.stride_c;
      p.width = width - at < kTile ? width - at : kTile;
      p.add = first > 0;
      if (begin + at + kStrip + kTile <= pixels) {
        p.ahead = {x.plane(n, first) + begin + at + kStrip, x.stride_c, depth, (depth * kRows + y.c - 1) / y.c};
      }
      rows<kByRow, kRows>(p, y.c);
    }
  }
}

// --- sums of grad * x^T -----------------------------------------------------------------------------------------------

constexpr int64_t kPixels = 128;     // that are packed at a time
constexpr int64_t kColumnTiles = 4;  // input channels that are packed at a time, in tiles
constexpr int64_t kTileSums = kRows * kTile;

// panel[pixel][lane] = x[channel = lane][pixel], with zeros where channels are missing in the last vector.
void pack_pixels(const float* x, int64_t stride, int64_t channels, int64_t pixels, float* panel) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    for (int64_t i = 0; i < pixels; i += kLanes) {
      Vec square[kLanes];
      GANCOMP_UNROLL
      for (int lane = 0; lane < kLanes; ++lane) {
        square[lane] = c + lane < channels ? load_first(x + (c + lane) * stride + i, pixels - i) : Vec{};
      }
      transpose(square);
      GANCOMP_UNROLL
      for (int lane = 0; lane < kLanes; ++lane) {
        if (i + lane < pixels) store(panel + (i + lane) * kTile + c, square[lane]);
      }
    }
  }
}

// A strip's sums are made on their own before they are added to those of the strips before: one long sum would lose digits.
template <int kV>
void sum_tile(const float* left, const float* right, int64_t pixels, bool first, float* at) {
  Vec sums[kRows][kV] = {};
  multiply<true, kTile>(left, kPixels, right, pixels, sums);
  GANCOMP_UNROLL
  for (int r = 0; r < kRows; ++r) {
    GANCOMP_UNROLL
    for (int v = 0; v < kV; ++v) {
      float* to = at + r * kTile + v * kLanes;
      store(to, first ? sums[r][v] : load(to) + sums[r][v]);
    }
  }
}

int64_t tiles(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

// Adds the pixels [begin, begin + pixels) of image n to one set of sums: [row tile][column tile][kRows][kTile].
void add_pixels(const ConstImages& grad, const ConstImages& x, int64_t n, int64_t begin, int64_t pixels, bool first,
                float* sums) {
  alignas(64) float right[kColumnTiles][kPixels * kTile];
  alignas(64) float left[kRows * kPixels];
  const int64_t row_tiles = tiles(grad.c, kRows), column_tiles = tiles(x.c, kTile);
  for (int64_t block = 0; block < column_tiles; block += kColumnTiles) {
    const int64_t end = block + kColumnTiles < column_tiles ? block + kColumnTiles : column_tiles;
    for (int64_t t = block; t < end; ++t) {
      const int64_t channels = x.c - t * kTile < kTile ? x.c - t * kTile : kTile;
      pack_pixels(x.plane(n, t * kTile) + begin, x.stride_c, channels, pixels, right[t - block]);
    }
    for (int64_t s = 0; s < row_tiles; ++s) {
      for (int64_t r = 0; r < kRows; ++r) {
        const bool missing = s * kRows + r >= grad.c;
        const float* row = missing ? nullptr : grad.plane(n, s * kRows + r) + begin;
        for (int64_t i = 0; i < pixels; i += kLanes) {
          store(left + r * kPixels + i, missing ? Vec{} : load_first(row + i, pixels - i));
        }
      }
      for (int64_t t = block; t < end; ++t) {
        float* at = sums + (s * column_tiles + t) * kTileSums;
        const int64_t channels = x.c - t * kTile;
        if (kVecs == 3 && channels > 2 * kLanes) {
          sum_tile<kVecs>(left, right[t - block], pixels, first, at);
        } else if (channels > kLanes) {
          sum_tile<2>(left, right[t - block], pixels, first, at);
        } else {
          sum_tile<1>(left, right[t - block], pixels, first, at);
        }
      }
    }
  }
}

}  // namespace

void pointwise(const ConstImages& x, const ConstMatrix& weight, const float* bias, const Images& y, const Executor& executor) {
  const int64_t strips = tiles(x.plane_size(), kStrip);
  const auto run = weight.column_stride == 1 ? strip<true> : strip<false>;
  executor.parallel_for(x.n * strips, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run(x, weight, bias, y, i / strips, i % strips * kStrip);
  });
}

void pointwise_weight_sums(const ConstImages& grad, const ConstImages& x, bool first, float* sums, const Executor& executor) {
  const int64_t pixels = x.plane_size(), strips = tiles(pixels, kPixels), all = x.n * strips;
  const int64_t size = tiles(grad.c, kRows) * tiles(x.c, kTile) * kTileSums;
  executor.parallel_for(kPointwiseParts, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t from = all * part / kPointwiseParts, to = all * (part + 1) / kPointwiseParts;
      float* mine = sums + part * size;
      if (first && from == to) {
        for (int64_t i = 0; i < size; ++i) mine[i] = 0;
      }
      for (int64_t i = from; i < to; ++i) {
        const int64_t at = i % strips * kPixels, count = pixels - at < kPixels ? pixels - at : kPixels;
        add_pixels(grad, x, i / strips, at, count, first && i == from, mine);
      }
    }
  });
}

void pointwise_weight(const float* sums, int64_t rows, int64_t columns, float* grad_weight, int64_t stride,
                      const Executor& executor) {
  const int64_t column_tiles = tiles(columns, kTile), size = tiles(rows, kRows) * column_tiles * kTileSums;
  executor.parallel_for(rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t column = 0; column < columns; column += kLanes) {
        const float* at =
            sums + (row / kRows * column_tiles + column / kTile) * kTileSums + row % kRows * kTile + column % kTile;
        Vec total{};
        for (int64_t part = 0; part < kPointwiseParts; ++part) total += load(at + part * size);
        store_first(grad_weight + row * stride + column, total, columns - column);
      }
    }
  });
}

}  // namespace gancomp::GANCOMP_ISA_NAME
