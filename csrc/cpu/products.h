// Products of matrices in tiles of registers, and squares of registers transposed.
#pragma once

#include "vec.h"

namespace gancomp::GANCOMP_ISA_NAME {

constexpr int kLine = 16;  // floats of a line of the caches

// sums[r][v] += sum over k < depth of a(r, k) * b[k][v]. Rows of `a` lie a_stride apart and their elements side by side where
// kByRow, else the other way round. Rows of `b` lie kPitch floats apart. kAhead: `depth` lines of memory from `ahead` on are
// asked for meanwhile.
template <bool kByRow, int kPitch, bool kAhead = false, int kR, int kV>
GANCOMP_INLINE void multiply(const float* a, int64_t a_stride, const float* b, int64_t depth, Vec (&sums)[kR][kV],
                             const float* ahead = nullptr) {
  for (int64_t k = 0; k < depth; ++k, b += kPitch) {
    if (kAhead) __builtin_prefetch(ahead + k * kLine, 0, 2);
    Vec right[kV];
    GANCOMP_UNROLL
    for (int v = 0; v < kV; ++v) right[v] = load_once(b + v * kLanes);
    GANCOMP_UNROLL
    for (int r = 0; r < kR; ++r) {
      const Vec left = splat(kByRow ? a[r * a_stride + k] : a[k * a_stride + r]);
      GANCOMP_UNROLL
      for (int v = 0; v < kV; ++v) sums[r][v] += left * right[v];
    }
  }
}

// rows[i][j] = rows[j][i], by exchanging the halves of ever smaller squares.
template <int kHalf, int... kLane>
GANCOMP_INLINE void transpose(Vec (&rows)[kLanes], std::integer_sequence<int, kLane...> lanes) {
  GANCOMP_UNROLL
  for (int i = 0; i < kLanes; ++i) {
    if (i & kHalf) continue;
    const Vec a = rows[i], b = rows[i + kHalf];
    rows[i] = __builtin_shufflevector(a, b, (kLane & kHalf ? kLanes + kLane - kHalf : kLane)...);
    rows[i + kHalf] = __builtin_shufflevector(a, b, (kLane & kHalf ? kLanes + kLane : kLane + kHalf)...);
  }
  if constexpr (kHalf > 1) transpose<kHalf / 2>(rows, lanes);
}
GANCOMP_INLINE void transpose(Vec (&rows)[kLanes]) { transpose<kLanes / 2>(rows, std::make_integer_sequence<int, kLanes>{}); }

}  // namespace gancomp::GANCOMP_ISA_NAME
