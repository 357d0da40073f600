// The widest vector of the instruction set a source is compiled for, through the compilers' vector extensions.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels.h"

namespace gancomp::GANCOMP_ISA_NAME {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kRegisters = 16;
#elif defined(__ARM_NEON)
constexpr int kLanes = 4;
constexpr int kRegisters = 32;
#else
constexpr int kLanes = 4;
constexpr int kRegisters = 16;
#endif
constexpr int kParts = kBlock / kLanes;  // vectors of a channel block

using Vec = float __attribute__((vector_size(kLanes * sizeof(float))));
using VecInt = int32_t __attribute__((vector_size(kLanes * sizeof(float))));

#define GANCOMP_INLINE inline __attribute__((always_inline))
#define GANCOMP_UNROLL GANCOMP_PRAGMA(GCC unroll 32)

GANCOMP_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
// The vector is in a register here.
GANCOMP_INLINE void hold(Vec& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__ARM_NEON)
  asm("" : "+w"(v));
#else
  static_cast<void>(v);
#endif
}
// The same of a number or pointer; what the compiler knew of its value it does not know behind this.
template <typename T>
GANCOMP_INLINE void hold(T& value) {
  asm("" : "+r"(value));
}
// A vector that is used several times in a row: loaded once, where the compiler would read memory at every use.
GANCOMP_INLINE Vec load_once(const float* p) {
  Vec v = load(p);
  hold(v);
  return v;
}
GANCOMP_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof(v)); }
template <int... kLane>
GANCOMP_INLINE Vec splat(float value, std::integer_sequence<int, kLane...>) {
  return Vec{(static_cast<void>(kLane), value)...};
}
GANCOMP_INLINE Vec splat(float value) { return splat(value, std::make_integer_sequence<int, kLanes>{}); }
GANCOMP_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
GANCOMP_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }

// Sums in registers; see ChannelSums. A strip's are sums of its rows' and those of its tiles': adding thousands of pixels one
// after the other would lose digits that are needed.
struct Statistics {
  Vec pivot{}, sum{}, squares{}, low = splat(3.0e38f), high = splat(-3.0e38f);

  GANCOMP_INLINE void add(Vec value) {
    const Vec d = value - pivot;
    sum += d;
    squares += d * d;
  }
  GANCOMP_INLINE void add_extremes(Vec value) {
    low = min(low, value);
    high = max(high, value);
  }
  // Of another part around the same pivot.
  GANCOMP_INLINE void add(const Statistics& part) {
    sum += part.sum;
    squares += part.squares;
    low = min(low, part.low);
    high = max(high, part.high);
  }
  // Moves the pivot to the mean of the `count` values so far.
  GANCOMP_INLINE void recentre(int64_t count) {
    const float n = static_cast<float>(count);
    const Vec old = pivot;
    pivot += sum / n;
    const Vec moved = pivot - old;
    squares -= moved * (2.0f * sum - n * moved);
    sum -= n * moved;
  }
  GANCOMP_INLINE void load_from(const ChannelSums& at, int lane) {
    pivot = load(at.pivot + lane), sum = load(at.sum + lane), squares = load(at.squares + lane);
    if (at.low != nullptr) low = load(at.low + lane), high = load(at.high + lane);
  }
  GANCOMP_INLINE void store_to(const ChannelSums& at, int lane) const {
    store(at.pivot + lane, pivot);
    store(at.sum + lane, sum);
    store(at.squares + lane, squares);
    if (at.low != nullptr) {
      store(at.low + lane, low);
      store(at.high + lane, high);
    }
  }
};

// Adds a tile of pixels to the sums of its row; the first tile of a strip chooses the pivot.
template <int kVecs, int kPixels>
GANCOMP_INLINE void add_tile(const Vec (&values)[kVecs][kPixels], const ChannelSums& sums, bool first) {
  GANCOMP_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    Statistics s, row;
    if (first) {
      GANCOMP_UNROLL
      for (int p = 0; p < kPixels; ++p) s.pivot += values[v][p];
      s.pivot *= 1.0f / kPixels;
    } else {
      row.load_from(sums, v * kLanes);
      s.pivot = row.pivot;
    }
    GANCOMP_UNROLL
    for (int p = 0; p < kPixels; ++p) s.add(values[v][p]);
    if (sums.low != nullptr) {
      GANCOMP_UNROLL
      for (int p = 0; p < kPixels; ++p) s.add_extremes(values[v][p]);
    }
    s.add(row);
    s.store_to(sums, v * kLanes);
  }
}

// The sums of one row after the other of a strip, where its tiles add to them. The pivot is the mean of the first tile and then
// of the first row: far from the strip's mean, the variance would lose the digits of that distance.
template <int kVecs>
class RowSums {
 public:
  // `strip`: sums of the strip, which has none yet if `first`. `centred`: the pivot is zero.
  GANCOMP_INLINE RowSums(const ChannelSums& strip, bool first, bool centred = false)
      : strip_(strip), first_(first && !centred) {
    if (strip.pivot == nullptr) return;
    if (first && centred) {
      for (int lane = 0; lane < kVecs * kLanes; lane += kLanes) Statistics().store_to(strip, lane);
    }
    row_.pivot = values_[0], row_.sum = values_[1], row_.squares = values_[2];
    if (strip.low != nullptr) row_.low = values_[3], row_.high = values_[4];
  }

  // Whether the next tile chooses the pivot.
  GANCOMP_INLINE bool first() const { return first_; }
  // Null: no statistics are wanted.
  GANCOMP_INLINE const ChannelSums* row() const { return strip_.pivot == nullptr ? nullptr : &row_; }

  GANCOMP_INLINE void begin() {
    if (strip_.pivot == nullptr || first_) return;
    for (int lane = 0; lane < kVecs * kLanes; lane += kLanes) {
      Statistics fresh;
      fresh.pivot = load(strip_.pivot + lane);
      fresh.store_to(row_, lane);
    }
  }

  GANCOMP_INLINE void end(int64_t width) {
    if (strip_.pivot == nullptr) return;
    for (int lane = 0; lane < kVecs * kLanes; lane += kLanes) {
      Statistics total, row;
      row.load_from(row_, lane);
      if (first_) {
        row.recentre(width);
      } else {
        total.load_from(strip_, lane);
      }
      total.pivot = row.pivot;
      total.add(row);
      total.store_to(strip_, lane);
    }
    first_ = false;
  }

 private:
  const ChannelSums strip_;
  ChannelSums row_;
  bool first_;
  float values_[kSumRows][kVecs * kLanes];
};

// exp(x) for |x| <= 80: x = n ln 2 + r, then the exponential series of r to the seventh power, times 2^n.
GANCOMP_INLINE Vec exp(Vec x) {
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = x * 1.44269504f + magic;
  const Vec n = shifted - magic;
  const Vec r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  Vec p = splat(1.0f / 5040.0f);
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  VecInt bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits - 0x4B400000 + 127) << 23;
  Vec power;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
}

// Near zero by its odd polynomial, as e - 1 has lost what a small x was; beyond 9.1 the float32 tanh is one. NaN stays NaN.
// Source: Cephes library, tanhf (coefficients of the minimax polynomial below 0.625).
GANCOMP_INLINE Vec tanh(Vec x) {
  const Vec limited = max(splat(-9.1f), min(splat(9.1f), x));
  const Vec e = exp(limited * 2.0f);
  const Vec far = (e - 1.0f) / (e + 1.0f);
  const Vec square = x * x;
  Vec p = splat(-5.70498872745e-3f);
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const Vec near = p * square * x + x;
  return square < 0.39f ? near : far;
}

// Rounds as gancomp.data.to_uint8 does: clip((value + 1) / 2 * 255), truncated.
GANCOMP_INLINE uint8_t to_byte(float value) {
  const float level = (value + 1.0f) / 2.0f * 255.0f;
  return static_cast<uint8_t>(!(level > 0.0f) ? 0.0f : level > 255.0f ? 255.0f : level);
}

// Folds two vectors into one: of every run of 2 * kHalf lanes the first half plus the second, a's in the lower half of the
// result and b's in the upper.
template <int kHalf, int... kLane>
GANCOMP_INLINE Vec fold(Vec a, Vec b, std::integer_sequence<int, kLane...>) {
  constexpr auto first = [](int lane) {
    const int from = lane % (kLanes / 2), base = lane < kLanes / 2 ? 0 : kLanes;
    return base + from / kHalf * 2 * kHalf + from % kHalf;
  };
  return __builtin_shufflevector(a, b, first(kLane)...) + __builtin_shufflevector(a, b, (first(kLane) + kHalf)...);
}

// Sums of the lanes of each of kCount vectors (a power of two, at most 8), into as many consecutive floats. Halving all of
// them at once costs a quarter of summing one after the other.
template <int kCount, int kHalf = kLanes / 2>
GANCOMP_INLINE void lane_sums(const Vec* v, float* out) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes>{};
  if constexpr (kHalf == 0) {
    for (int i = 0; i < kCount; ++i) store(out + i * kLanes, v[i]);
  } else if constexpr (kCount == 1) {
    // One vector is left, with sums of 2 * kHalf neighbouring lanes to make.
    lane_sums<1, kHalf / 2>(&static_cast<const Vec&>(fold<kHalf>(v[0], v[0], lanes)), out);
  } else {
    Vec folded[kCount / 2];
    for (int i = 0; i < kCount / 2; ++i) folded[i] = fold<kHalf>(v[2 * i], v[2 * i + 1], lanes);
    lane_sums<kCount / 2, kHalf / 2>(folded, out);
  }
}

}  // namespace gancomp::GANCOMP_ISA_NAME
