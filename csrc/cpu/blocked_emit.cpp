// The end of a network whose last convolution has the blocked layout: activation, and channels back into planes or pixels.
#include "vec.h"

namespace gancomp::GANCOMP_ISA_NAME {

void blocked_emit(const BlockedEmitParams& p) {
  for (int channel = 0; channel < p.channels; channel += kLanes) {
    const int count = p.channels - channel < kLanes ? p.channels - channel : kLanes;
    const bool norm = p.mean != nullptr;
    const Vec mean = norm ? load(p.mean + channel) : Vec{};
    const Vec scale = norm ? load(p.scale + channel) : splat(1.0f);
    const Vec shift = norm ? load(p.shift + channel) : Vec{};
    for (int64_t i = 0; i < p.rows; ++i) {
      const float* x = p.x + channel / kBlock * p.x_block + channel % kBlock + i * p.x_row;
      for (int64_t j = 0; j < p.width; ++j) {
        Vec value = (load(x + j * kBlock) - mean) * scale + shift;
        if (p.tanh) value = tanh(value);
        float lanes[kLanes];
        store(lanes, value);
        for (int c = 0; c < count; ++c) {
          if (p.planes != nullptr) {
            p.planes[(channel + c) * p.plane + i * p.y_row + j] = lanes[c];
          } else {
            p.bytes[i * p.y_row + j * p.channels + channel + c] = to_byte(lanes[c]);
          }
        }
      }
    }
  }
}

}  // namespace gancomp::GANCOMP_ISA_NAME
