// Parameters of the 4x4 convolutions by Winograd's method, and the memory that they work in.
#pragma once

#include <cstdint>

#include "gancomp/tensor.h"

namespace gancomp {

constexpr int kWinogradTaps = 4;  // of a side of the kernel

// y[n, o] = bias[o] + sum over c and taps of weight[o, c] times x[n, c] under the window, zeros around; see
// gancomp.ops.winograd_conv2d. Transposed (the gradient of the input): x is the gradient of the output, y that of the input.
struct WinogradConvParams {
  ConstImages x;
  const float* weight = nullptr;  // [O, C, 4, 4], dense
  const float* bias = nullptr;    // [O], null: zero; not in the transposed form
  Images y;
  int stride = 1;              // 1 or 2
  int padding = 0;             // 0 to 3
  int64_t slots = 1;           // tasks that may run at a time: each has its own part of the workspace
  float* workspace = nullptr;  // winograd_conv_plan().floats(slots), aligned to 64 bytes
};

// grad_weight[o, c] = sum over images and positions of grad[n, o] times what of x[n, c] is under the window.
struct WinogradConvWeightGradientParams {
  ConstImages x, grad;
  float* grad_weight = nullptr;  // [O, C, 4, 4], dense
  int stride = 1;
  int padding = 0;
  int64_t slots = 1;
  float* workspace = nullptr;  // winograd_weight_gradient_plan().floats(slots), aligned to 64 bytes
};

// Lanes of a block of channels; those of the last block that are no channels hold zeros.
constexpr int64_t kWinogradLanes = 64;
// Floats between two points of a block of weights: a row more than needed, for the same reason as in WinogradPlan::pitch().
constexpr int64_t kWinogradWeights = (kWinogradLanes + 1) * kWinogradLanes;
// Floats of transformed images at a time: few enough to stay in the last-level cache beside the weights that pass through; and
// more for the weights' gradient, which is read and written once for all of them.
constexpr int64_t kWinogradFloats = 9 << 19, kWinogradGradientFloats = 9 << 20;
// Tiles that a task multiplies by the weights it has transformed at most, and tasks that there should be at least.
constexpr int64_t kWinogradTiles = 256, kWinogradTasks = 8;

#define GANCOMP_PLAN inline __attribute__((always_inline))  // compiled for one instruction set, it may run on no other

// How the work is cut: as many rows of tiles as the memory takes are transformed, then tasks multiply parts of them.
struct WinogradPlan {
  int64_t points = 0;                       // products of a tile
  int64_t tile_rows = 0, tile_columns = 0;  // of all images together, and of one image
  int64_t blocks = 0;                       // of lanes, of everything that is transformed
  int64_t sums = 0;                         // blocks that a task sums up at a time
  int64_t rows = 0, part = 0;               // tile rows that are transformed at a time, and those of a task
  int64_t tasks = 0;                        // at a time at most: more slots are of no use

  // Lanes between two points' values of so many tile rows: an odd number of blocks, so that they meet in no few sets of caches.
  GANCOMP_PLAN int64_t pitch(int64_t count) const { return (count * tile_columns | 1) * kWinogradLanes; }
  GANCOMP_PLAN int64_t weight_floats() const { return points * kWinogradWeights; }
  GANCOMP_PLAN int64_t slot_floats() const { return weight_floats() + sums * points * pitch(part); }
  GANCOMP_PLAN int64_t floats(int64_t slots) const { return blocks * points * pitch(rows) + slots * slot_floats(); }

  static GANCOMP_PLAN int64_t pieces(int64_t a, int64_t b) { return (a + b - 1) / b; }
  static GANCOMP_PLAN int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
  // Nearly equal pieces of `total` of at most `limit`: the size of the largest.
  static GANCOMP_PLAN int64_t even(int64_t total, int64_t limit) {
    return pieces(total, pieces(total, limit > 1 ? at_most(limit, total) : 1));
  }

  // For outputs of this height and width in n images, with so many tasks for a part, and so many floats at a time.
  GANCOMP_PLAN void cut(int64_t n, int64_t height, int64_t width, int stride, int64_t each, int64_t limit) {
    const int64_t outputs = stride == 1 ? 3 : 4;
    points = stride == 1 ? 36 : 25;
    tile_columns = pieces(width, outputs), tile_rows = n * pieces(height, outputs);
    if (tile_rows == 0) return;
    rows = even(tile_rows, limit / (blocks * points * tile_columns * kWinogradLanes));
    part = even(rows, at_most(kWinogradTiles / tile_columns, rows * each / kWinogradTasks));
    tasks = each * pieces(rows, part);
  }
};

GANCOMP_PLAN WinogradPlan winograd_conv_plan(const WinogradConvParams& p) {
  WinogradPlan plan;
  plan.blocks = plan.pieces(p.x.c, p.stride == 1 ? kWinogradLanes : kWinogradLanes / 4), plan.sums = 1;
  plan.cut(p.x.n, p.y.h, p.y.w, p.stride, plan.pieces(p.y.c, kWinogradLanes), kWinogradFloats);
  return plan;
}

// With a stride of 2 even and odd rows and columns of y are sums of their own, of tiles that begin at other pixels of x.
GANCOMP_PLAN WinogradPlan winograd_conv_transpose_plan(const WinogradConvParams& p) {
  WinogradPlan plan;
  const int64_t lanes = plan.pieces(p.y.c, kWinogradLanes);
  plan.blocks = plan.pieces(p.x.c, kWinogradLanes) * p.stride * p.stride, plan.sums = p.stride;
  plan.cut(p.x.n, plan.pieces(p.y.h, p.stride), plan.pieces(p.y.w, p.stride), p.stride, lanes * p.stride, kWinogradFloats);
  return plan;
}

GANCOMP_PLAN WinogradPlan winograd_weight_gradient_plan(const WinogradConvWeightGradientParams& p) {
  WinogradPlan plan;
  const int64_t depths = plan.pieces(p.x.c, p.stride == 1 ? kWinogradLanes : kWinogradLanes / 4);
  const int64_t lanes = plan.pieces(p.grad.c, kWinogradLanes);
  plan.blocks = depths + lanes;
  plan.cut(p.grad.n, p.grad.h, p.grad.w, p.stride, depths * lanes, kWinogradGradientFloats);
  return plan;
}
#undef GANCOMP_PLAN

}  // namespace gancomp
