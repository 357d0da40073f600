// Convolution and transposed convolution of NCHW images by the first channels of a full weight.
#include "sliced_conv.h"

#include <algorithm>

namespace gancomp::GANCOMP_ISA_NAME {

namespace {

// What one phase of a row takes: columns [begin, end) of [0, count) lie inside the plane, from `from` on.
struct PhaseColumns {
  int64_t begin, end, count, from;
};

template <int kStep>
void gather_row(const GatherTile& t, const PhaseColumns& c, const float* x, float* y) {
  const int64_t step = kStep == 0 ? t.phases : kStep;
  const auto border = [&](int64_t j) {
    return t.mode == BorderMode::zero ? 0.0f : x[inside(c.from + j * step, t.width, t.mode)];
  };
  for (int64_t j = 0; j < c.begin; ++j) y[j] = border(j);
  const float* from = x + c.from;
  GANCOMP_SIMD
  for (int64_t j = c.begin; j < c.end; ++j) y[j] = from[j * step];
  for (int64_t j = c.end; j < c.count; ++j) y[j] = border(j);
  for (int64_t j = c.count; j < t.pitch; ++j) y[j] = 0.0f;
}

// Both phases of a row of stride two: what lies inside for both is read once.
void gather_two(const GatherTile& t, const PhaseColumns (&columns)[kMaxStride], const float* x, float* y) {
  float *even = y, *odd = y + t.pitch;
  const PhaseColumns &a = columns[0], &b = columns[1];
  const int64_t begin = std::max(a.begin, b.begin), end = std::max(std::min(a.end, b.end), begin);
  const float* from = x + a.from;
  GANCOMP_SIMD
  for (int64_t j = begin; j < end; ++j) even[j] = from[2 * j], odd[j] = from[2 * j + 1];
  for (const PhaseColumns* c : {&a, &b}) {
    float* to = c == &a ? even : odd;
    const auto one = [&](int64_t j) {
      const int64_t at = c->from + 2 * j;
      if (j >= c->begin && j < c->end) return x[at];
      return t.mode == BorderMode::zero ? 0.0f : x[inside(at, t.width, t.mode)];
    };
    for (int64_t j = 0; j < std::min(begin, c->count); ++j) to[j] = one(j);
    for (int64_t j = end; j < c->count; ++j) to[j] = one(j);
    for (int64_t j = c->count; j < t.pitch; ++j) to[j] = 0.0f;
  }
}

}  // namespace

void gather(const GatherTile& t) {
  const auto row_of = t.phases == 1 ? gather_row<1> : gather_row<0>;
  PhaseColumns columns[kMaxStride];
  for (int phase = 0; phase < t.phases; ++phase) {
    PhaseColumns& c = columns[phase];
    c.from = t.column0 + phase;
    const auto first_at = [&](int64_t column) { return column > c.from ? pieces(column - c.from, t.phases) : 0; };
    c.count = first_at(t.column0 + t.columns);
    c.begin = std::min(first_at(0), c.count);
    c.end = std::clamp(first_at(t.width), c.begin, c.count);
  }
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t at = t.row0 + r, row = at >= 0 && at < t.height ? at : inside(at, t.height, t.mode);
    float* y = t.y + r * t.row_floats();
    if (row != at && t.mode == BorderMode::zero) {
      for (int64_t c = 0; c < t.channels; ++c) std::fill_n(y + c * t.channel_floats(), t.row_floats(), 0.0f);
      continue;
    }
    for (int64_t c = 0; c < t.channels; ++c) {
      const float* x = t.x + c * t.stride_c + row * t.width;
      if (t.phases == 2) {
        gather_two(t, columns, x, y + c * t.channel_floats());
        continue;
      }
      for (int phase = 0; phase < t.phases; ++phase) {
        row_of(t, columns[phase], x, y + c * t.channel_floats() + phase * t.pitch);
      }
    }
  }
}

namespace {

constexpr int kMaxOut = kRegisters == 32 ? 6 : 4;  // channels of a register tile
constexpr int kMaxTaps = kMaxKernel * kMaxKernel;

struct Tap {
  int64_t x, weight;  // offsets in floats
};

// One row of outputs of up to kMaxOut channels: sums over gathered channels and taps.
struct Products {
  const float* x;
  int64_t x_channel;
  int64_t channels;
  const Tap* taps;
  int64_t tap_count;
  const float* weight;
  int64_t weight_out, weight_in;
  float* y;  // added to
  int64_t y_out;
};

// One sum of thousands of products would lose digits: they are added up in parts.
constexpr int64_t kTerms = 256;

template <int kOut, int kVecs>
GANCOMP_INLINE void add_products(const Products& p, const float* x_channel, const float* weight_channel, int64_t channels,
                                 Vec (&acc)[kOut][kVecs]) {
  for (int64_t c = 0; c < channels; ++c, x_channel += p.x_channel, weight_channel += p.weight_in) {
    for (int64_t t = 0; t < p.tap_count; ++t) {
      const float *x = x_channel + p.taps[t].x, *w = weight_channel + p.taps[t].weight;
      Vec pixels[kVecs];
      GANCOMP_UNROLL
      for (int v = 0; v < kVecs; ++v) pixels[v] = load_once(x + v * kLanes);
      GANCOMP_UNROLL
      for (int o = 0; o < kOut; ++o) {
        const Vec weight = splat(w[o * p.weight_out]);
        GANCOMP_UNROLL
        for (int v = 0; v < kVecs; ++v) acc[o][v] += weight * pixels[v];
      }
    }
  }
}

template <int kOut, int kVecs>
void products(const Products& p, int64_t column) {
  const int64_t part = std::max(kTerms / std::max(p.tap_count, int64_t{1}), int64_t{1});
  for (int64_t first = 0; first < p.channels; first += part) {
    Vec acc[kOut][kVecs];
    GANCOMP_UNROLL
    for (int o = 0; o < kOut; ++o) {
      GANCOMP_UNROLL
      for (int v = 0; v < kVecs; ++v) acc[o][v] = Vec{};
    }
    add_products(p, p.x + column + first * p.x_channel, p.weight + first * p.weight_in, std::min(part, p.channels - first),
                 acc);
    GANCOMP_UNROLL
    for (int o = 0; o < kOut; ++o) {
      float* y = p.y + o * p.y_out + column;
      GANCOMP_UNROLL
      for (int v = 0; v < kVecs; ++v) store(y + v * kLanes, load(y + v * kLanes) + acc[o][v]);
    }
  }
}

template <int kOut>
void product_row(const Products& p, int64_t vecs) {
  int64_t column = 0;
  // Four vectors that are left make two tiles of two rather than three and one, and so on.
  for (; vecs > 0;) {
    const int64_t tiles = pieces(vecs, kMaxVecs), now = pieces(vecs, tiles);
    if constexpr (kMaxVecs >= 4) {
      if (now == 4) products<kOut, 4>(p, column);
    }
    if (now == 3) products<kOut, 3>(p, column);
    if (now == 2) products<kOut, 2>(p, column);
    if (now == 1) products<kOut, 1>(p, column);
    column += now * kLanes;
    vecs -= now;
  }
}

using ProductRow = void (*)(const Products&, int64_t);
template <int... kOut>
constexpr ProductRow product_rows(int64_t out, std::integer_sequence<int, kOut...>) {
  constexpr ProductRow table[] = {product_row<kOut + 1>...};
  return table[out - 1];
}
ProductRow product_row_of(int64_t out) { return product_rows(out, std::make_integer_sequence<int, kMaxOut>{}); }

constexpr int64_t kNarrow = kMaxVecs * kLanes, kWide = 4 * kNarrow;  // columns of a tile
static_assert(kWide >= kMaxKernel, "a border must fit a tile");
constexpr int64_t kLineFloats = kWide + 2 * kMaxStride * kLanes;  // a row of one channel, every phase filled up

// How the positions of an image are cut into tiles whose gathered input fits the scratch, if one row of all channels does.
struct Tiling {
  int64_t rows, columns;
};

// A tile of r rows and c columns needs r * step + extra rows of row_floats(c) per channel.
template <typename RowFloats>
Tiling tiling(int64_t height, int64_t width, int64_t widest, int64_t channels, int64_t step, int64_t extra,
              const RowFloats& row_floats) {
  Tiling t{1, widest};
  const auto rows_that_fit = [&] { return (kScratchFloats / (channels * row_floats(t.columns)) - extra) / step; };
  while (t.columns > kNarrow && rows_that_fit() < std::min(height, extra + 1)) t.columns /= 2;
  t.columns = std::min(t.columns, width);
  t.rows = std::clamp(rows_that_fit(), int64_t{1}, height);
  return t;
}

// Runs function(image, first row, rows, first column, columns) for every tile of n images; those of small images are cut
// further, so that several threads find work.
template <typename Function>
void for_tiles(Tiling t, const Images& y, const Executor& executor, const Function& function) {
  const int64_t across = pieces(y.w, t.columns);
  while (t.rows > 1 && y.n * across * pieces(y.h, t.rows) < 8) t.rows = pieces(t.rows, 2);
  const int64_t down = pieces(y.h, t.rows);
  executor.parallel_for(y.n * down * across, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / across % down * t.rows, column = i % across * t.columns;
      function(i / across / down, row, std::min(t.rows, y.h - row), column, std::min(t.columns, y.w - column));
    }
  });
}

// The weights of a group of outputs over gathered channels. Where the weights of one channel for all outputs lie together and
// channels lie pages apart, a copy brings them together for all rows of a tile: nobody else would foresee where they come from.
class GroupWeights {
 public:
  GroupWeights(const SlicedWeight<const float>& weight, const ConvWindow& window)
      : weight_(weight),
        taps_(static_cast<int64_t>(window.taps_h) * window.taps_w),
        copied_(taps_ > 1 && weight.column == 1 && weight.row == window.taps_w && weight.out == taps_ &&
                weight.in > kMaxOut * taps_) {}

  // How many channels may be asked for at once.
  int64_t most_channels() const { return copied_ ? kFloats / (kMaxOut * taps_) : INT64_MAX; }

  // Sets where the products find the weights of outputs [out, out + outs) and channels [channel, channel + channels).
  void give(Products& products, int64_t out, int64_t outs, int64_t channel, int64_t channels) {
    const float* from = weight_.data + out * weight_.out + channel * weight_.in;
    products.weight = from, products.weight_out = weight_.out, products.weight_in = weight_.in;
    if (!copied_) return;
    const int64_t size = outs * taps_;
    for (int64_t c = 0; c < channels; ++c) {
      std::memcpy(copy_ + c * size, from + c * weight_.in, static_cast<size_t>(size) * sizeof(float));
    }
    products.weight = copy_, products.weight_in = size;
  }

 private:
  static constexpr int64_t kFloats = 16 * 1024;
  static_assert(kFloats >= kMaxOut * kMaxTaps);
  const SlicedWeight<const float>& weight_;
  const int64_t taps_;
  const bool copied_;
  float copy_[kFloats];
};

// A pointwise convolution takes an image as one long row.
SlicedConvParams without_rows(SlicedConvParams p) {
  const ConvWindow& k = p.window;
  if (k.taps_h == 1 && k.taps_w == 1 && k.stride == 1 && k.padding == 0) {
    p.x.w *= p.x.h, p.y.w *= p.y.h, p.x.h = p.y.h = 1;
  }
  return p;
}

// Rows of sums begin with the bias (null: zero).
void begin_lines(float* lines, int64_t outs, int64_t size, const float* bias) {
  for (int64_t o = 0; o < outs; ++o) std::fill_n(lines + o * kLineFloats, size, bias == nullptr ? 0.0f : bias[o]);
}

void write(const float* from, float* y, int64_t size, bool add) {
  if (!add) {
    std::memcpy(y, from, static_cast<size_t>(size) * sizeof(float));
    return;
  }
  GANCOMP_SIMD
  for (int64_t j = 0; j < size; ++j) y[j] += from[j];
}

}  // namespace

void sliced_conv(const SlicedConvParams& full, const Executor& executor) {
  const SlicedConvParams p = without_rows(full);
  const ConvWindow& k = p.window;
  const auto pitch_of = [&](int64_t columns) { return round_up(columns) + (k.taps_w - 1) / k.stride; };
  // What is gathered serves all groups of outputs; where there is one, tiles may as well be larger and of few channels.
  const int64_t together = p.y.c <= kMaxOut ? std::min(p.x.c, int64_t{8}) : p.x.c;
  const Tiling tiles = tiling(p.y.h, p.y.w, kWide, together, k.stride, k.taps_h - k.stride,
                              [&](int64_t columns) { return k.stride * pitch_of(columns); });
  const int64_t pitch = pitch_of(tiles.columns);
  Tap taps[kMaxTaps];
  for (int i = 0; i < k.taps_h; ++i) {
    for (int j = 0; j < k.taps_w; ++j) {
      taps[i * k.taps_w + j] = {(i * k.stride + j % k.stride) * pitch + j / k.stride, p.weight.row * i + p.weight.column * j};
    }
  }
  for_tiles(tiles, p.y, executor, [&](int64_t n, int64_t row, int64_t rows, int64_t column, int64_t columns) {
    alignas(64) float scratch[kScratchFloats + kWide];  // the last row is read in whole vectors
    alignas(64) float lines[kMaxOut * kLineFloats];
    GatherTile tile{};
    tile.stride_c = p.x.stride_c, tile.height = p.x.h, tile.width = p.x.w, tile.mode = k.mode;
    tile.row0 = row * k.stride - k.padding, tile.rows = (rows - 1) * k.stride + k.taps_h;
    tile.column0 = column * k.stride - k.padding, tile.columns = (columns - 1) * k.stride + k.taps_w;
    tile.phases = k.stride, tile.pitch = pitch, tile.y = scratch;
    const int64_t channels = std::clamp(kScratchFloats / tile.channel_floats(), int64_t{1}, p.x.c);
    for (int64_t c = 0; c < p.x.c; c += channels) {
      tile.x = p.x.plane(n, c), tile.channels = std::min(channels, p.x.c - c);
      gather(tile);
      Products sums{};
      sums.x_channel = tile.channel_floats(), sums.channels = tile.channels;
      sums.taps = taps, sums.tap_count = k.taps_h * k.taps_w;
      sums.weight_out = p.weight.out, sums.weight_in = p.weight.in;
      sums.y = lines, sums.y_out = kLineFloats;
      for_parts(p.y.c, kMaxOut, [&](int64_t out, int64_t outs) {
        sums.weight = p.weight.data + out * p.weight.out + c * p.weight.in;
        const float* bias = p.bias == nullptr || c > 0 ? nullptr : p.bias + out;
        for (int64_t i = 0; i < rows; ++i) {
          sums.x = scratch + i * k.stride * tile.row_floats();
          begin_lines(lines, outs, round_up(columns), bias);
          product_row_of(outs)(sums, pieces(columns, kLanes));
          for (int64_t o = 0; o < outs; ++o) {
            write(lines + o * kLineFloats, p.y.plane(n, out + o) + (row + i) * p.y.w + column, columns, c > 0);
          }
        }
      });
    }
  });
}

namespace {

// A range of positions of the padded plane, and where they go in the plane: one after the other from `to` on, or, of a border,
// wherever the padding took them from.
struct Segment {
  int64_t first, count;
  bool border;
};

// The pieces of the padded axis whose values belong to positions [at, at + count) of an axis of `size`.
int segments(int64_t at, int64_t count, int64_t size, const ConvWindow& k, Segment* out) {
  out[0] = {at + k.padding, count, false};
  if (k.mode == BorderMode::zero) return 1;
  int found = 1;
  for (const int64_t first : {int64_t{0}, size + k.padding}) {
    bool here = false;
    for (int64_t q = first; q < first + k.padding; ++q) {
      const int64_t to = inside(q - k.padding, size, k.mode);
      here = here || (to >= at && to < at + count);
    }
    if (here) out[found++] = {first, k.padding, true};
  }
  return found;
}

struct Rectangle {
  int64_t row, rows, column, columns;
};

// Adds (or, first, sets) what the padded positions `rows` x `columns` get from the input to an output rectangle. With stride s
// they fall into s * s phases; position t * s + phase gets input t - m through tap phase + m * s.
class TransposedBlock {
 public:
  TransposedBlock(const SlicedConvParams& p, int64_t n, const Rectangle& target, const Segment& rows, const Segment& columns)
      : p_(p), n_(n), target_(target), rows_(rows), columns_(columns), stride_(p.window.stride) {
    const ConvWindow& k = p.window;
    const int64_t back_h = (k.taps_h - 1) / stride_, back_w = (k.taps_w - 1) / stride_;
    row0_ = rows.first / stride_, column0_ = columns.first / stride_;
    const int64_t row_end = (rows.first + rows.count - 1) / stride_ + 1;
    const int64_t column_end = (columns.first + columns.count - 1) / stride_ + 1;
    for (int b = 0; b < stride_; ++b) {
      first_[b] = column0_ + (b < columns.first % stride_ ? 1 : 0);
      const int64_t end = column_end - (b > (columns.first + columns.count - 1) % stride_ ? 1 : 0);
      vecs_[b] = pieces(std::max(end - first_[b], int64_t{0}), kLanes);
      reach_ = std::max(reach_, first_[b] - column0_ + vecs_[b] * kLanes);
    }
    tile_.stride_c = p.x.stride_c, tile_.height = p.x.h, tile_.width = p.x.w, tile_.mode = BorderMode::zero;
    tile_.row0 = row0_ - back_h, tile_.rows = row_end - tile_.row0;
    tile_.column0 = column0_ - back_w, tile_.columns = column_end - tile_.column0;
    tile_.phases = 1, tile_.pitch = reach_ + back_w;
    int used = 0;
    for (int a = 0; a < stride_; ++a) {
      for (int b = 0; b < stride_; ++b) {
        first_tap_[a][b] = used;
        for (int i = a; i < k.taps_h; i += stride_) {
          for (int j = b; j < k.taps_w; j += stride_) {
            taps_[used++] = {(back_h - i / stride_) * tile_.pitch + back_w - j / stride_,
                             p.weight.row * i + p.weight.column * j};
          }
        }
        tap_count_[a][b] = used - first_tap_[a][b];
      }
    }
  }

  void run(float* scratch, float* lines) {
    GroupWeights weights(p_.weight, p_.window);
    const int64_t fit = std::min(kScratchFloats / tile_.channel_floats(), weights.most_channels());
    const int64_t channels = std::clamp(fit, int64_t{1}, p_.x.c);
    tile_.y = scratch;
    for (int64_t c = 0; c < p_.x.c; c += channels) {
      tile_.x = p_.x.plane(n_, c), tile_.channels = std::min(channels, p_.x.c - c);
      gather(tile_);
      for_parts(p_.y.c, kMaxOut, [&](int64_t out, int64_t outs) {
        Products sums{};
        weights.give(sums, out, outs, c, tile_.channels);
        for (int64_t q = rows_.first; q < rows_.first + rows_.count; ++q) {
          const int64_t at = q - p_.window.padding, row = rows_.border ? inside(at, p_.y.h, p_.window.mode) : at;
          if (row < target_.row || row >= target_.row + target_.rows) continue;
          sum_row(sums, q, p_.bias != nullptr && c == 0 && !rows_.border && !columns_.border ? p_.bias + out : nullptr, outs,
                  lines);
          for (int64_t o = 0; o < outs; ++o) {
            emit(lines + o * kLineFloats, p_.y.plane(n_, out + o) + row * p_.y.w, c > 0 || rows_.border);
          }
        }
      });
    }
  }

 private:
  void sum_row(Products sums, int64_t q, const float* bias, int64_t outs, float* lines) const {
    sums.x = tile_.y + (q / stride_ - row0_) * tile_.pitch;
    sums.x_channel = tile_.channel_floats(), sums.channels = tile_.channels;
    begin_lines(lines, outs, stride_ * reach_, bias);
    sums.y_out = kLineFloats;
    const float* x = sums.x;
    for (int b = 0; b < stride_; ++b) {
      sums.taps = taps_ + first_tap_[q % stride_][b], sums.tap_count = tap_count_[q % stride_][b];
      sums.x = x + first_[b] - column0_, sums.y = lines + b * reach_;
      product_row_of(outs)(sums, vecs_[b]);
    }
  }

  // The value of padded column q in a line.
  const float* at(const float* line, int64_t q) const {
    return line + q % stride_ * reach_ + q / stride_ - first_[q % stride_];
  }

  void emit(const float* line, float* y, bool add) const {
    const int64_t q = columns_.first;
    if (columns_.border) {
      for (int64_t j = 0; j < columns_.count; ++j) {
        const int64_t to = inside(q + j - p_.window.padding, p_.y.w, p_.window.mode);
        if (to >= target_.column && to < target_.column + target_.columns) y[to] += *at(line, q + j);
      }
      return;
    }
    y += q - p_.window.padding;
    if (stride_ == 1) {
      write(at(line, q), y, columns_.count, add);
    } else if (stride_ == 2 && !add) {
      const float *even = at(line, q), *odd = at(line, q + 1);
      GANCOMP_SIMD
      for (int64_t j = 0; j < columns_.count / 2; ++j) {
        y[2 * j] = even[j];
        y[2 * j + 1] = odd[j];
      }
      if (columns_.count % 2 != 0) y[columns_.count - 1] = even[columns_.count / 2];
    } else {
      for (int64_t j = 0; j < columns_.count; ++j) y[j] = *at(line, q + j) + (add ? y[j] : 0.0f);
    }
  }

  const SlicedConvParams& p_;
  const int64_t n_;
  const Rectangle target_;
  const Segment rows_, columns_;
  const int stride_;
  int64_t row0_, column0_;  // input positions that the phases begin at, or one column later:
  int64_t first_[kMaxStride], vecs_[kMaxStride], reach_ = 0;
  GatherTile tile_{};
  Tap taps_[kMaxTaps];
  int first_tap_[kMaxStride][kMaxStride], tap_count_[kMaxStride][kMaxStride];
};

}  // namespace

void sliced_conv_transpose(const SlicedConvParams& full, const Executor& executor) {
  const SlicedConvParams p = without_rows(full);
  const ConvWindow& k = p.window;
  const int64_t s = k.stride, back_h = (k.taps_h - 1) / s, back_w = (k.taps_w - 1) / s;
  Tiling tiles = tiling(pieces(p.y.h, s), pieces(p.y.w, s), kWide / s, p.x.c, 1, back_h + 1,
                        [&](int64_t columns) { return round_up(columns) + 1 + back_w; });
  tiles.rows = std::min(tiles.rows * s, p.y.h), tiles.columns = std::min(tiles.columns * s, p.y.w);
  for_tiles(tiles, p.y, executor, [&](int64_t n, int64_t row, int64_t rows, int64_t column, int64_t columns) {
    alignas(64) float scratch[kScratchFloats + kWide];
    alignas(64) float lines[kMaxOut * kLineFloats];
    Segment down[3], across[3];
    const int downs = segments(row, rows, p.y.h, k, down), acrosses = segments(column, columns, p.y.w, k, across);
    for (int i = 0; i < downs; ++i) {
      for (int j = 0; j < acrosses; ++j) {
        TransposedBlock(p, n, {row, rows, column, columns}, down[i], across[j]).run(scratch, lines);
      }
    }
  });
}

}  // namespace gancomp::GANCOMP_ISA_NAME
