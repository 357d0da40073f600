// What a program needs for images of one size: shapes, strips, and a place in memory for everything.
#pragma once

#include <cstdint>
#include <vector>

#include "compile.h"

namespace gancomp::engine {

struct ValuePlan {
  int height = 0, width = 0;
  int64_t data = -1;            // as the convolution left it, in floats from the start of the arena
  int64_t kept = -1;            // finished, where a step writes it
  int64_t sums = -1;            // [parts][kSumRows][blocks * 16] of a value with statistics; a part is a strip
  std::vector<int64_t> counts;  // [parts] elements of a channel

  int64_t row_stride() const { return static_cast<int64_t>(width) * kBlock; }
  int64_t block_stride() const { return height * row_stride(); }
};

struct StepPlan {
  int in_height = 0, in_width = 0, out_height = 0, out_width = 0;
  int rows = 0, strip_rows = 0, strips = 0;  // what is split among threads: output rows (transposed: input rows; winograd: rows
                                             // of tiles, or products)
  // Gathered rows of one strip: above and below its own, pixels at the sides.
  int above = 0, below = 0, left = 0, right = 0;
  int64_t gather_row = 0, gather_block = 0;    // strides of the scratch
  std::vector<int> image_rows, image_columns;  // steps that read the image or the labels: source of every gathered row and
                                               // column
  int tile_width = 0, tiles = 1;               // steps that embed codes: columns of a piece of a strip, pieces
  int64_t tile_pixels = 0;                     // likewise: of a whole piece
  // Of such a step, floats into a thread's scratch: a block of the embedded codes, filtered blocks, scales and shifts of a
  // group of blocks, weights with the norm folded in. Codes come first.
  int64_t embedded = 0, filtered = 0, sides = 0, weights = 0;
  int tile_rows = 0, tile_columns = 0;            // winograd
  int64_t factors = -1, products = -1;            // winograd: [product][block][tile][16] in the arena
  int64_t factor_stride = 0, product_stride = 0;  // floats between products
  // Of a step in bytes, floats into a thread's scratch: gathered rows as bytes, quantized weights, the units of the input
  // channels and their inverses, the units of the output channels.
  int64_t int8_rows = 0, int8_weights = 0, int8_in = 0, int8_inverse = 0, int8_out = 0;
  int64_t head_sums = 0;     // head: floats into a thread's scratch
  int64_t macs = 0;          // multiply-accumulates done
  int64_t network_macs = 0;  // as the network defines them
  int64_t bytes = 0;

  int64_t tile_floats() const { return static_cast<int64_t>(tile_rows) * tile_columns * kBlock; }
};

constexpr int kCodesAround = 2;  // rows and columns that steps look up around their own pixels
constexpr int kNormRows = 5;     // of a value's norm parameters, each [blocks * 16]

struct Plan {
  int height = 0, width = 0;                // of the images
  int padded_height = 0, padded_width = 0;  // that the network runs at
  std::vector<ValuePlan> values;
  std::vector<StepPlan> steps;
  int64_t codes = -1;   // of the label map: [height][width] numbers of 32 bits in the arena
  int64_t arena = 0;    // floats
  int64_t scratch = 0;  // floats of every thread
  int64_t params = 0;   // of that, floats of the norm parameters, which come first: mean, scale, shift, extremes
};

// Rows that a strip of so many output rows (transposed: input rows) reads.
int gathered_rows(const Step& step, const StepPlan& p, int strip_rows);

// Throws EngineError for a size that the network cannot take.
Plan make_plan(const Program& program, int64_t height, int64_t width);

// Multiply-accumulates of one image, without memory planning.
int64_t count_macs(const Program& program, int64_t height, int64_t width);

}  // namespace gancomp::engine
