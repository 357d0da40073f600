// SPADE's modulation in the blocked layout, with the doubling in front of it.
#include "vec.h"

namespace gancomp::GANCOMP_ISA_NAME {
namespace {

template <bool kDoubled>
void modulate(const BlockedModulateParams& p) {
  const Vec slope = splat(p.slope);
  for (int block = 0; block < p.blocks; ++block) {
    for (int lane = 0; lane < kBlock; lane += kLanes) {
      const Vec mean = load(p.mean + block * kBlock + lane), factor = load(p.factor + block * kBlock + lane);
      for (int i = 0; i < p.rows; ++i) {
        const int64_t row = kDoubled ? (p.row + i) / 2 : p.row + i;
        const float* x = p.x + block * p.x_block + row * p.x_row + lane;
        const float* scale = p.scale + block * p.side_block + i * p.side_row + lane;
        const float* shift = p.shift + block * p.side_block + i * p.side_row + lane;
        float* y = p.y + block * p.y_block + i * p.y_row + lane;
        for (int64_t j = 0; j < p.width; ++j) {
          const int64_t column = kDoubled ? (p.column + j) / 2 : p.column + j;
          const Vec value = (load(x + column * kBlock) - mean) * factor * load(scale + j * kBlock) + load(shift + j * kBlock);
          store(y + j * kBlock, max(value, value * slope));
        }
      }
    }
  }
}

}  // namespace

void blocked_modulate(const BlockedModulateParams& p) { p.doubled ? modulate<true>(p) : modulate<false>(p); }

}  // namespace gancomp::GANCOMP_ISA_NAME
