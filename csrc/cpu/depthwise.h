// Depthwise 3x3 convolutions with reflection over planes, forward and backward, a block of rows at a time. Where rows come from
// and where results go is the caller's: norms and activations are applied on the way.
#pragma once

#include <utility>

#include "plane.h"

namespace gancomp::GANCOMP_ISA_NAME {

constexpr int kStripe = 512;  // columns that a window holds; a wider plane is worked on in stripes
constexpr int kPitch = kStripe + 2 * kLanes;
constexpr int kRowBlock = kRegisters == 32 ? 4 : 2;  // rows that are worked on together; they need one more on both sides

// Columns [begin, begin + width) of a plane of so many rows and columns.
struct Stripe {
  int64_t begin, width, rows, columns;
};

// Calls body(stripe) for all columns of a plane.
template <typename Body>
GANCOMP_INLINE void each_stripe(int64_t rows, int64_t columns, const Body& body) {
  for (int64_t begin = 0; begin < columns; begin += kStripe) {
    body(Stripe{begin, columns - begin < kStripe ? columns - begin : kStripe, rows, columns});
  }
}

enum class Border { reflected, zero };

// A window that slides down a stripe of a plane, with what lies on both sides of its rows. Rows lie kPitch floats apart, so
// that those of a block are at one address and fixed distances.
template <Border kBorder>
class Window {
 public:
  GANCOMP_INLINE void begin() { top_ = filled_ = -1; }

  // The rows from i - 1 to `last`, with column s.begin at [0], aligned. Rows never go back. source(row, column, count, to)
  // writes `count` elements of a row of the plane to `to`.
  template <typename Source>
  GANCOMP_INLINE const float* rows(int64_t i, int64_t last, const Stripe& s, const Source& source) {
    if (last - top_ >= kHeld) {
      int64_t to = 0;
      for (int64_t from = i - 1; from < filled_; ++from, ++to) {
        for (int64_t j = -kLanes; j < s.width + kLanes; j += kLanes) store(row(top_ + to) + j, load_once(row(from) + j));
      }
      top_ = i - 1;
    }
    for (; filled_ <= last; ++filled_) fill(row(filled_), filled_, s, source);
    return row(i - 1);
  }

 private:
  static constexpr int64_t kHeld = 4 * kRowBlock + 2;

  GANCOMP_INLINE float* row(int64_t i) { return memory_[i - top_] + kLanes; }

  template <typename Source>
  GANCOMP_INLINE void fill(float* to, int64_t i, const Stripe& s, const Source& source) {
    const bool inside = i >= 0 && i < s.rows, left = s.begin > 0, right = s.begin + s.width < s.columns;
    if (kBorder == Border::zero && !inside) return fill_zeros(to - kLanes, s.width + 2 * kLanes);
    source(inside ? i : i < 0 ? 1 : s.rows - 2, s.begin - left, s.width + left + right, to - left);
    if (!left) to[-1] = kBorder == Border::zero ? 0.0f : to[1];
    if (right) return;
    to[s.width] = kBorder == Border::zero ? 0.0f : to[s.width - 2];
    if (kBorder == Border::zero) {
      for (int64_t j = s.width; j % kLanes != 0; ++j) to[j] = 0;  // whole vectors are read
    }
  }

  int64_t top_ = -1, filled_ = -1;  // the first row held, and the first not there yet
  alignas(64) float memory_[kHeld][kPitch] = {};
};

// Calls element(j, T{}) for the elements of a row as each_element does, but with vectors alone where one fits: the last one
// overlaps the one before. What it writes must not be what it reads.
template <typename Element>
GANCOMP_INLINE void each_in_row(int64_t width, const Element& element) {
  int64_t j = 0;
  for (; j + kLanes <= width; j += kLanes) element(j, Vec{});
  if (j < width && width >= kLanes) return element(width - kLanes, Vec{});
  for (; j < width; ++j) element(j, 0.0f);
}

// kRows rows of a 3x3 correlation with the kRows + 2 rows of a window: emit(row, column, value, count) takes a vector of which
// `count` lanes count. `start`: what each row's sums begin with, kPitch apart; null: zero.
template <int kRows, bool kStart, typename Emit>
GANCOMP_INLINE void correlate(const float* in, const float* kernel, int64_t width, const float* start, const Emit& emit) {
  Vec k[9];
  GANCOMP_UNROLL
  for (int t = 0; t < 9; ++t) k[t] = splat(kernel[t]);
  const auto vectors = [&](int64_t j, int64_t count) GANCOMP_FORCE {
    Vec sums[kRows];
    GANCOMP_UNROLL
    for (int o = 0; o < kRows; ++o) sums[o] = kStart ? load(start + o * kPitch + j) : Vec{};
    GANCOMP_UNROLL
    for (int r = 0; r < kRows + 2; ++r) {
      const float* row = in + r * kPitch + j;
      const Vec left = load_once(row - 1), middle = load_once(row), right = load_once(row + 1);
      GANCOMP_UNROLL
      for (int o = 0; o < kRows; ++o) {
        const int u = r - o;
        if (u < 0 || u > 2) continue;
        sums[o] += k[3 * u] * left;
        sums[o] += k[3 * u + 1] * middle;
        sums[o] += k[3 * u + 2] * right;
      }
    }
    GANCOMP_UNROLL
    for (int o = 0; o < kRows; ++o) emit(o, j, sums[o], count);
  };
  int64_t j = 0;
  for (; j + kLanes <= width; j += kLanes) vectors(j, kLanes);
  if (j < width) vectors(j, width - j);
}

// Adds the nine sums of products of kRows rows of a gradient with the kRows + 2 input rows round them, both in windows. The
// gradient is zero beyond its width, up to a whole vector.
template <int kRows>
GANCOMP_INLINE void add_weight_gradient(const float* grad, const float* in, int64_t width, Vec (&sums)[9]) {
  for (int64_t j = 0; j < width; j += kLanes) {
    Vec g[kRows];
    GANCOMP_UNROLL
    for (int o = 0; o < kRows; ++o) g[o] = load_once(grad + o * kPitch + j);
    GANCOMP_UNROLL
    for (int r = 0; r < kRows + 2; ++r) {
      const float* row = in + r * kPitch + j;
      const Vec left = load_once(row - 1), middle = load_once(row), right = load_once(row + 1);
      GANCOMP_UNROLL
      for (int o = 0; o < kRows; ++o) {
        const int u = r - o;
        if (u < 0 || u > 2) continue;
        sums[3 * u] += g[o] * left;
        sums[3 * u + 1] += g[o] * middle;
        sums[3 * u + 2] += g[o] * right;
      }
    }
  }
}

// Asks for kRows rows of memory, a vector of each at a time.
template <int kRows>
GANCOMP_INLINE void ask_rows(const float* rows, int64_t column) {
  GANCOMP_UNROLL
  for (int r = 0; r < kRows; ++r) __builtin_prefetch(rows + kRows * column + r * kLanes);
}

// Rows as they are. What they are made of is asked for while the rows before are worked on.
struct Copied {
  const float* plane;
  int64_t width;

  template <int kRows>
  GANCOMP_INLINE void ask(int64_t row, int64_t column) const {
    ask_rows<kRows>(plane + row * width, column);
  }

  GANCOMP_INLINE void operator()(int64_t row, int64_t column, int64_t count, float* to) const {
    const float* from = plane + row * width + column;
    each_in_row(count, [=](int64_t j, auto kind) GANCOMP_FORCE { store(to + j, copy_as<decltype(kind)>(from + j)); });
  }
};

using Input = Window<Border::reflected>;

// The depthwise convolution of a plane: emit(row, row of its block, column, value, count).
template <typename Source, typename Emit>
GANCOMP_INLINE void depthwise(Input& window, const Source& source, const float* kernel, int64_t height, int64_t width,
                              const Emit& emit) {
  each_stripe(height, width, [&](const Stripe& s) GANCOMP_FORCE {
    window.begin();
    const auto block = [&](auto rows, int64_t i) GANCOMP_FORCE {
      constexpr int kRows = decltype(rows)::value;
      const float* in = window.rows(i, i + kRows, s, source);
      correlate<kRows, false>(in, kernel, s.width, nullptr, [&](int o, int64_t j, Vec value, int64_t count) GANCOMP_FORCE {
        if (o == 0) source.template ask<kRows>(i + kRows + 1, j);
        emit(i + o, o, s.begin + j, value, count);
      });
    };
    int64_t i = 0;
    for (; i + kRowBlock <= height; i += kRowBlock) block(std::integral_constant<int, kRowBlock>{}, i);
    for (; i < height; ++i) block(std::integral_constant<int, 1>{}, i);
  });
}

// What the backward pass of a depthwise convolution works with, one per task.
struct Windows {
  Window<Border::zero> grad;
  Input input;
};

// What the sums of a stripe's rows begin with in a gradient: the padding rows are copies of rows 1 and rows - 2, the padding
// columns of columns 1 and columns - 2, and what reaches them belongs there. All other sums begin with zero.
class Folded {
 public:
  GANCOMP_INLINE Folded(const float* flipped, const Stripe& s)
      : flipped_(flipped), stripe_(s), second_(1 - s.begin), last_but_one_(s.columns - 2 - s.begin) {
    for (int o = 0; o < kRowBlock; ++o) fill_zeros(memory_[o], s.width);
  }

  // One row kPitch after the other.
  GANCOMP_INLINE const float* rows() const { return memory_[0]; }

  // Prepares row o of the block, row i of the plane; `grad` is row i - 1 in the window of the gradient.
  GANCOMP_INLINE void prepare(int o, int64_t i, const float* grad) {
    float* row = memory_[o];
    if (whole_[o]) fill_zeros(row, stripe_.width);
    const bool above = i == 1, below = i == stripe_.rows - 2;
    whole_[o] = above || below;
    const bool has_second = second_ >= 0, has_last_but_one = last_but_one_ >= 0 && last_but_one_ < stripe_.width;
    float left = 0, right = 0;
    for (int u = 0; u < 3; ++u) {
      const float *line = grad + u * kPitch, *kernel = flipped_ + 3 * u;
      if (has_second) left += kernel[2] * line[0];
      if (has_last_but_one) right += kernel[0] * line[last_but_one_ + 1];
    }
    if (has_second) row[second_] = 0;
    if (has_last_but_one) row[last_but_one_] = 0;
    if (above) add(grad, flipped_ + 6, row, left, right);
    if (below) add(grad + 2 * kPitch, flipped_, row, left, right);
    if (has_second) row[second_] += left;
    if (has_last_but_one) row[last_but_one_] += right;
  }

 private:
  // What the line at the border gives to the padding row beside it, and what of that reaches the padding columns.
  void add(const float* line, const float* kernel, float* row, float& left, float& right) const {
    const Vec k[3] = {splat(kernel[0]), splat(kernel[1]), splat(kernel[2])};
    for (int64_t j = 0; j < stripe_.width; j += kLanes) {
      store(row + j, load(row + j) + k[0] * load(line + j - 1) + k[1] * load(line + j) + k[2] * load(line + j + 1));
    }
    left += kernel[2] * line[0];
    if (last_but_one_ >= 0 && last_but_one_ < stripe_.width) right += kernel[0] * line[last_but_one_ + 1];
  }

  const float* flipped_;
  const Stripe stripe_;
  const int64_t second_, last_but_one_;
  bool whole_[kRowBlock] = {};
  alignas(64) float memory_[kRowBlock][kPitch];
};

// Gradients of a depthwise convolution with reflection. Adds the weight's to `weight_sums`, and hands the input's on:
// emit(row, row of the block, column, value, count, the same place of the input).
template <typename Grad, typename Source, typename Emit>
GANCOMP_INLINE void depthwise_backward(Windows& windows, const Grad& grad, const Source& source, const float* w, int64_t height,
                                       int64_t width, double (&weight_sums)[9], const Emit& emit) {
  // The gradient is a correlation with the flipped filter.
  float flipped[9];
  for (int t = 0; t < 9; ++t) flipped[t] = w[8 - t];
  Vec totals[9] = {};
  each_stripe(height, width, [&](const Stripe& s) GANCOMP_FORCE {
    windows.grad.begin();
    windows.input.begin();
    Folded folded(flipped, s);
    const auto block = [&](auto rows, int64_t i) GANCOMP_FORCE {
      constexpr int kRows = decltype(rows)::value;
      const float* g = windows.grad.rows(i, i + kRows, s, grad);
      const float* in = windows.input.rows(i, i + kRows, s, source);
      for (int o = 0; o < kRows; ++o) folded.prepare(o, i + o, g + o * kPitch);
      Vec sums[9] = {};
      add_weight_gradient<kRows>(g + kPitch, in, s.width, sums);
      GANCOMP_UNROLL
      for (int t = 0; t < 9; ++t) totals[t] += sums[t];
      correlate<kRows, true>(g, flipped, s.width, folded.rows(), [&](int o, int64_t j, Vec value, int64_t count) GANCOMP_FORCE {
        if (o == 0) grad.template ask<kRows>(i + kRows + 1, j), source.template ask<kRows>(i + kRows + 1, j);
        emit(i + o, o, s.begin + j, value, count, in + (o + 1) * kPitch + j);
      });
    };
    int64_t i = 0;
    for (; i + kRowBlock <= height; i += kRowBlock) block(std::integral_constant<int, kRowBlock>{}, i);
    for (; i < height; ++i) block(std::integral_constant<int, 1>{}, i);
  });
  for (int t = 0; t < 9; ++t) weight_sums[t] += lane_total(totals[t]);
}

}  // namespace gancomp::GANCOMP_ISA_NAME
