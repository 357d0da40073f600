// A block's product of two matrices from shared memory. What fills the shared memory (images, weights) is the caller's.
//
// Operands are stored in words of one or two values of the summed index (mma.cuh), kStageWords at a time:
//   rows     [kRows][kRowPitch]                row-major, words consecutive
//   columns  [kStageWords][kColumnPitch]       (kWordsDown: a line per word), or [kColumns][kRowPitch] (a line per column)
// The pitches keep the reads of a warp in different banks.
#pragma once

#include "mma.cuh"

namespace gancomp::cuda {

constexpr int kMatmulThreads = 128;
constexpr int kStageWords = 16;
constexpr int kRowPitch = kStageWords + 4;

// 64 x 64 for many rows, 16 x 128 for few (the last layer has three). A warp owns kWarpRows x 32.
struct SquareTile {
  static constexpr int kRows = 64, kColumns = 64, kWarpRows = 32, kWarpsDown = 2;
};
struct FlatTile {
  static constexpr int kRows = 16, kColumns = 128, kWarpRows = 16, kWarpsDown = 1;
};

constexpr int kWarpColumns = 32;

template <typename Tile, bool kWordsDown>
struct Stage {
  static constexpr int kColumnPitch = Tile::kColumns + 8;
  static constexpr int kRowsSize = Tile::kRows * kRowPitch;
  static constexpr int kSize = kRowsSize + (kWordsDown ? kStageWords * kColumnPitch : Tile::kColumns * kRowPitch);

  __device__ static uint32_t& row(uint32_t* stage, int row, int word) { return stage[row * kRowPitch + word]; }
  __device__ static uint32_t& column(uint32_t* stage, int column, int word) {
    uint32_t* columns = stage + kRowsSize;
    return kWordsDown ? columns[word * kColumnPitch + column] : columns[column * kRowPitch + word];
  }
};

// The finished tile, row-major in the memory of the stages.
template <typename Tile>
struct Result {
  static constexpr int kPitch = Tile::kColumns + 4;
  static constexpr int kSize = Tile::kRows * kPitch;
};

template <typename Tile, bool kWordsDown>
__host__ __device__ constexpr size_t matmul_shared_bytes() {
  constexpr int stages = 2 * Stage<Tile, kWordsDown>::kSize, result = Result<Tile>::kSize;
  return sizeof(uint32_t) * (stages > result ? stages : result);
}

// The sums of one thread.
template <typename Compute, typename Tile, bool kWordsDown>
struct Accumulator {
  static constexpr int kTilesDown = Tile::kWarpRows / 16, kTilesAcross = kWarpColumns / 8;
  using Words = Stage<Tile, kWordsDown>;
  float sums[kTilesDown][kTilesAcross][4] = {};

  __device__ static int first_row() { return static_cast<int>(threadIdx.x) / 32 % Tile::kWarpsDown * Tile::kWarpRows; }
  __device__ static int first_column() { return static_cast<int>(threadIdx.x) / 32 / Tile::kWarpsDown * kWarpColumns; }

  __device__ void add(uint32_t* stage) {
    const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
    for (int word = 0; word < kStageWords; word += 8) {
      uint32_t a[kTilesDown][4], b[kTilesAcross][2];
#pragma unroll
      for (int i = 0; i < kTilesDown; ++i) {
        const int row = first_row() + 16 * i + group;
        a[i][0] = Words::row(stage, row, word + quad);
        a[i][1] = Words::row(stage, row + 8, word + quad);
        a[i][2] = Words::row(stage, row, word + quad + 4);
        a[i][3] = Words::row(stage, row + 8, word + quad + 4);
      }
#pragma unroll
      for (int j = 0; j < kTilesAcross; ++j) {
        const int column = first_column() + 8 * j + group;
        b[j][0] = Words::column(stage, column, word + quad);
        b[j][1] = Words::column(stage, column, word + quad + 4);
      }
#pragma unroll
      for (int i = 0; i < kTilesDown; ++i) {
#pragma unroll
        for (int j = 0; j < kTilesAcross; ++j) multiply_add<Compute>(sums[i][j], a[i], b[j]);
      }
    }
  }

  __device__ void write(float* result) const {
    const int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < kTilesDown; ++i) {
#pragma unroll
      for (int j = 0; j < kTilesAcross; ++j) {
        float* at = result + (first_row() + 16 * i + group) * Result<Tile>::kPitch + first_column() + 8 * j + 2 * quad;
        at[0] = sums[i][j][0];
        at[1] = sums[i][j][1];
        at[8 * Result<Tile>::kPitch] = sums[i][j][2];
        at[8 * Result<Tile>::kPitch + 1] = sums[i][j][3];
      }
    }
  }
};

// Float32 without rounding of the operands: a lane owns every fourth row and every eighth column of its warp's part.
template <typename Tile, bool kWordsDown>
struct Accumulator<Exact, Tile, kWordsDown> {
  static constexpr int kDown = Tile::kWarpRows / 4, kAcross = kWarpColumns / 8;
  using Words = Stage<Tile, kWordsDown>;
  float sums[kDown][kAcross] = {};

  __device__ static int first_row() {
    return static_cast<int>(threadIdx.x) / 32 % Tile::kWarpsDown * Tile::kWarpRows + static_cast<int>(threadIdx.x) % 32 / 8;
  }
  __device__ static int first_column() {
    return static_cast<int>(threadIdx.x) / 32 / Tile::kWarpsDown * kWarpColumns + static_cast<int>(threadIdx.x) % 8;
  }

  // A stage is summed up by itself first: of long sums, fewer digits are lost.
  __device__ void add(uint32_t* stage) {
    float part[kDown][kAcross] = {};
#pragma unroll 4
    for (int word = 0; word < kStageWords; ++word) {
      float a[kDown], b[kAcross];
#pragma unroll
      for (int i = 0; i < kDown; ++i) a[i] = __uint_as_float(Words::row(stage, first_row() + 4 * i, word));
#pragma unroll
      for (int j = 0; j < kAcross; ++j) b[j] = __uint_as_float(Words::column(stage, first_column() + 8 * j, word));
#pragma unroll
      for (int i = 0; i < kDown; ++i) {
#pragma unroll
        for (int j = 0; j < kAcross; ++j) part[i][j] = fmaf(a[i], b[j], part[i][j]);
      }
    }
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
      for (int j = 0; j < kAcross; ++j) sums[i][j] += part[i][j];
    }
  }

  __device__ void write(float* result) const {
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
      for (int j = 0; j < kAcross; ++j) {
        result[(first_row() + 4 * i) * Result<Tile>::kPitch + first_column() + 8 * j] = sums[i][j];
      }
    }
  }
};

// function(Compute{}) with the arithmetic for images of type T.
template <typename T, typename Function>
inline const char* with_compute(bool tf32, const Function& function) {
  if constexpr (std::is_same_v<T, float>) {
    return tf32 ? function(Tf32{}) : function(Exact{});
  } else {
    return function(Halves<T>{});
  }
}

}  // namespace gancomp::cuda
