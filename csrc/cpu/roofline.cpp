// What one core does at most: the measure of every other kernel.
#include "vec.h"

namespace gancomp::GANCOMP_ISA_NAME {
namespace {

// Sums that do not wait for each other, with the two factors in registers too. Two units of four cycles each need eight.
constexpr int kSums = kRegisters == 32 ? 24 : 12;

}  // namespace

int64_t multiply_adds(int64_t rounds, float* sink) {
  Vec sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = splat(sink[0]);
  // Towards 1, so that nothing overflows and nothing becomes tiny; read from memory, so that the compiler knows nothing.
  const Vec factor = splat(sink[1]), addend = splat(sink[2]);
  for (int64_t round = 0; round < rounds; ++round) {
    GANCOMP_UNROLL
    for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * factor + addend;
  }
  Vec total{};
  for (int i = 0; i < kSums; ++i) total += sums[i];
  float lanes[kLanes];
  store(lanes, total);
  sink[0] = lanes[0] / kSums;
  return rounds * kSums * kLanes;
}

void copy_floats(const float* x, float* y, int64_t size) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= size; i += 4 * kLanes) {
    Vec v[4];
    GANCOMP_UNROLL
    for (int k = 0; k < 4; ++k) v[k] = load(x + i + k * kLanes);
    GANCOMP_UNROLL
    for (int k = 0; k < 4; ++k) store(y + i + k * kLanes, v[k]);
  }
  for (; i < size; ++i) y[i] = x[i];
}

}  // namespace gancomp::GANCOMP_ISA_NAME
