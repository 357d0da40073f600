// What the convolutions of NCHW images share: an input tile of all channels is gathered with its borders into scratch that
// stays in cache, pixels are the lanes, and weights are read where they lie, by strides, so a slice of a full weight costs
// nothing.
#pragma once

#include "vec.h"

namespace gancomp::GANCOMP_ISA_NAME {

// Floats of scratch of a task, on its stack: half of the smallest second-level cache of the processors in use.
constexpr int64_t kScratchFloats = 64 * 1024;
constexpr int kMaxVecs = kRegisters == 32 ? 4 : 3;  // pixels of a register tile

// Ceiling of a / b for a >= 0.
inline int64_t pieces(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls function(first, count) for nearly equal parts of [0, total) of at most `limit`.
template <typename Function>
void for_parts(int64_t total, int64_t limit, Function&& function) {
  const int64_t parts = pieces(total, limit);
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t first = total * i / parts;
    function(first, total * (i + 1) / parts - first);
  }
}

inline int64_t round_up(int64_t value) { return pieces(value, kLanes) * kLanes; }

// A rectangle of the padded plane of every channel in [c0, c1), as rows of `phases` de-interleaved pieces of `pitch` floats:
// position (row, column) lies at [row - row0][(column - column0) % phases][(column - column0) / phases].
struct GatherTile {
  const float* x;  // plane of channel 0
  int64_t stride_c, height, width;
  int64_t channels;
  int64_t row0, rows, column0, columns;  // in plane coordinates: negative and beyond is border
  int phases;
  int64_t pitch;
  BorderMode mode;
  float* y;

  int64_t row_floats() const { return phases * pitch; }
  int64_t channel_floats() const { return rows * phases * pitch; }
};

void gather(const GatherTile& t);

}  // namespace gancomp::GANCOMP_ISA_NAME
