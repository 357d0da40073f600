// What kernels do with whole planes that lie in the nearest caches: sums and statistics over them, and 3x3 convolutions over
// rows that are extended at their borders.
#pragma once

#include <cmath>

#include "vec.h"

namespace gancomp::GANCOMP_ISA_NAME {

// --- elements, as vectors and as the single ones that are left over ---------------------------------------------------

template <typename T>
GANCOMP_INLINE T load_as(const float* p) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return *p;
  } else {
    return load(p);
  }
}
GANCOMP_INLINE void store(float* p, float value) { *p = value; }

// 0 for what is below it; keeps a NaN.
template <typename T>
GANCOMP_INLINE T rectified(T value) {
  return value < 0.0f ? T{} : value;
}

// The first `count` of kLanes elements, the others zero; and their counterpart.
GANCOMP_INLINE Vec load_first(const float* p, int64_t count) {
  if (count >= kLanes) return load(p);
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}
GANCOMP_INLINE void store_first(float* p, Vec v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  float lanes[kLanes];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}
GANCOMP_INLINE Vec first_lanes(Vec v, int64_t count) {
  if (count >= kLanes) return v;
  float lanes[kLanes];
  store(lanes, v);
  return load_first(lanes, count);
}

// GCC makes a slow string instruction of a loop that it sees to copy or to fill; through these it does not.
template <typename T>
GANCOMP_INLINE T copy_as(const float* p) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return *p;
  } else {
    return load_once(p);
  }
}
// Data that comes from far away, asked for a little ahead: hardware does so up to the end of a page alone, of which a plane has
// several.
constexpr int kAhead = 512;
GANCOMP_INLINE void ask_ahead(const float* p) { __builtin_prefetch(p + kAhead); }
template <typename T>
GANCOMP_INLINE T stream_as(const float* p) {
  ask_ahead(p);
  return copy_as<T>(p);
}
GANCOMP_INLINE void fill_zeros(float* p, int64_t size) {  // whole vectors
  const float zeros[kLanes] = {};
  const Vec zero = load_once(zeros);
  for (int64_t i = 0; i < size; i += kLanes) store(p + i, zero);
}

// Calls element(i, T{}) for vectors of elements (T is Vec) and then for single ones (float) until all of `size` had their turn.
template <typename Element>
GANCOMP_INLINE void each_element(int64_t size, const Element& element) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) element(i, Vec{});
  for (; i < size; ++i) element(i, 0.0f);
}

// The sum of the lanes in double, and the sum of a vector of them with others.
GANCOMP_INLINE double lane_total(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  double total = 0;
  for (int i = 0; i < kLanes; ++i) total += static_cast<double>(lanes[i]);
  return total;
}

template <typename T, int kSums>
struct Terms {
  T at[kSums];
};

// Adds to kSums sums over the elements of a plane: terms(i, T{}) gives the Terms<T, kSums> of element i or of the vector that
// begins there. A lane adds up at most kFlush numbers in float32 before they go on in double: a sum over any plane keeps its
// digits, at the speed of float32.
constexpr int kChains = 4;  // sums that do not wait for each other
constexpr int64_t kFlush = 16;
using VecDouble = double __attribute__((vector_size(kLanes * sizeof(double))));
template <int kSums, typename Element>
GANCOMP_INLINE void add_terms(int64_t size, double (&totals)[kSums], const Element& terms) {
  VecDouble lanes[kSums] = {};
  int64_t i = 0;
  while (i + kLanes <= size) {
    const int64_t whole = (size - i) / kLanes, vectors = whole < kFlush * kChains ? whole : kFlush * kChains;
    Vec sums[kSums][kChains] = {};
    int64_t v = 0;
    for (; v + kChains <= vectors; v += kChains, i += kChains * kLanes) {
      GANCOMP_UNROLL
      for (int c = 0; c < kChains; ++c) {
        const Terms<Vec, kSums> t = terms(i + c * kLanes, Vec{});
        GANCOMP_UNROLL
        for (int s = 0; s < kSums; ++s) sums[s][c] += t.at[s];
      }
    }
    for (; v < vectors; ++v, i += kLanes) {
      const Terms<Vec, kSums> t = terms(i, Vec{});
      GANCOMP_UNROLL
      for (int s = 0; s < kSums; ++s) sums[s][0] += t.at[s];
    }
    GANCOMP_UNROLL
    for (int s = 0; s < kSums; ++s) {
      lanes[s] += __builtin_convertvector((sums[s][0] + sums[s][1]) + (sums[s][2] + sums[s][3]), VecDouble);
    }
  }
  for (int s = 0; s < kSums; ++s) {
    for (int lane = 0; lane < kLanes; ++lane) totals[s] += lanes[s][lane];
  }
  for (; i < size; ++i) {
    const Terms<float, kSums> t = terms(i, 0.0f);
    for (int s = 0; s < kSums; ++s) totals[s] += static_cast<double>(t.at[s]);
  }
}

// --- statistics -------------------------------------------------------------------------------------------------------

// Sums of distances of `size` elements from a number near their mean, and of their squares.
struct Distances {
  double sum = 0, squares = 0;

  GANCOMP_INLINE void add(const float* x, int64_t size, float pivot) {
    double totals[2] = {};
    add_terms<2>(size, totals, [=](int64_t i, auto kind) {
      const auto d = load_as<decltype(kind)>(x + i) - pivot;
      return Terms<decltype(kind), 2>{{d, d * d}};
    });
    sum += totals[0];
    squares += totals[1];
  }
};

struct Moments {
  double mean, variance;
};

// In two passes: the second one measures from the first one's mean and takes off what that was wrong by, so that neither a mean
// far from zero nor an element far from all others costs accuracy.
GANCOMP_INLINE Moments moments(const Distances& distances, float pivot, double count) {
  const double rest = distances.sum / count, variance = distances.squares / count - rest * rest;
  return {static_cast<double>(pivot) + rest, variance < 0.0 ? 0.0 : variance};  // keeps a NaN
}
GANCOMP_INLINE double sum(const float* x, int64_t size) {
  double totals[1] = {};
  add_terms<1>(size, totals,
               [=](int64_t i, auto kind) { return Terms<decltype(kind), 1>{{stream_as<decltype(kind)>(x + i)}}; });
  return totals[0];
}
GANCOMP_INLINE Moments moments_around(const float* x, int64_t size, float pivot) {
  Distances distances;
  distances.add(x, size, pivot);
  return moments(distances, pivot, static_cast<double>(size));
}
GANCOMP_INLINE Moments moments(const float* x, int64_t size) {
  return moments_around(x, size, static_cast<float>(sum(x, size) / static_cast<double>(size)));
}
GANCOMP_INLINE float rstd(double variance, float eps) {
  return static_cast<float>(1.0 / std::sqrt(variance + static_cast<double>(eps)));
}

// --- rows with borders ------------------------------------------------------------------------------------------------

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
  const auto vectors = [&](int64_t j, int64_t count) __attribute__((always_inline)) {
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

}  // namespace gancomp::GANCOMP_ISA_NAME
