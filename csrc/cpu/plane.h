// What kernels do with whole planes that lie in the nearest caches: passes over their elements, sums and statistics.
#pragma once

#include <cmath>

#include "vec.h"

#define GANCOMP_FORCE __attribute__((always_inline))  // of a lambda

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
template <typename T>
GANCOMP_INLINE T stream_as(const float* p) {
  __builtin_prefetch(p + kAhead);
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
    add_terms<2>(size, totals, [=](int64_t i, auto kind) GANCOMP_FORCE {
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
  add_terms<1>(size, totals, [=](int64_t i, auto kind) GANCOMP_FORCE {
    return Terms<decltype(kind), 1>{{stream_as<decltype(kind)>(x + i)}};
  });
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

}  // namespace gancomp::GANCOMP_ISA_NAME
