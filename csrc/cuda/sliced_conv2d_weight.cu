// The gradient of a convolution's weight: a product of matrices whose summed index runs over the pixels of all images. That is
// long while the result is small, so it is split between blocks, whose parts are then added up in order.
#include "sliced_conv2d.cuh"

namespace gancomp::cuda {
namespace {

// Where a column of the product comes from: an input channel and a tap.
struct Column {
  int channel, tap_y, tap_x;  // channel -1: beyond the last
};

// A pixel of the summed index: an image, and a place in `rows`; n -1: beyond the last.
struct Pixel {
  int n, i, j;
};

template <typename T, typename Compute, typename Tile>
__global__ void __launch_bounds__(kMatmulThreads) sliced_conv2d_weight_kernel(WeightGradient p) {
  using Words = Stage<Tile, false>;
  constexpr int kPerWord = Compute::kPerWord, kLinesApart = kMatmulThreads / kStageWords;
  constexpr int kRowLines = Tile::kRows / kLinesApart, kColumnLines = Tile::kColumns / kLinesApart;
  GANCOMP_SHARED(shared);

  const ConvShape& shape = p.shape;
  const int taps = shape.kernel_h * shape.kernel_w, used_rows = active(shape.out), used_columns = active(shape.in) * taps;
  const int first_row = blockIdx.y * Tile::kRows, first_column = blockIdx.x * Tile::kColumns;
  if (first_row >= used_rows || first_column >= used_columns) return;
  const int per_image = shape.out_h * shape.out_w, pixels = shape.images * per_image;
  const int tid = threadIdx.x, my_line = tid / kStageWords, my_word = tid % kStageWords;

  uint32_t* words = reinterpret_cast<uint32_t*>(shared);
  Column* sources = reinterpret_cast<Column*>(shared + matmul_shared_bytes<Tile, false>());
  for (int column = tid; column < Tile::kColumns; column += kMatmulThreads) {
    const int at = first_column + column, tap = at % taps;
    sources[column] = {at < used_columns ? at / taps : -1, tap / shape.kernel_w, tap % shape.kernel_w};
  }
  __syncthreads();

  T row_values[kRowLines * kPerWord], column_values[kColumnLines * kPerWord];
  const auto fetch = [&](int stage) {
#pragma unroll
    for (int k = 0; k < kPerWord; ++k) {
      const int at = (stage * kStageWords + my_word) * kPerWord + k, rest = at % per_image;
      const bool exists = at < pixels;
      const int n = at / per_image, i = rest / shape.out_w, j = rest % shape.out_w;
#pragma unroll
      for (int line = 0; line < kRowLines; ++line) {
        const int row = first_row + my_line + line * kLinesApart;
        row_values[line * kPerWord + k] = exists && row < used_rows ? plane_of<T>(p.rows, n, row)[rest] : from_float<T>(0.0f);
      }
#pragma unroll
      for (int line = 0; line < kColumnLines; ++line) {
        const Column source = sources[my_line + line * kLinesApart];
        int y = i * shape.stride - shape.padding + source.tap_y, x = j * shape.stride - shape.padding + source.tap_x;
        bool inside = exists && source.channel >= 0;
        if (shape.mode == Padding::kReflect) {
          y = reflect(y, shape.h);
          x = reflect(x, shape.w);
        } else if (shape.mode == Padding::kReplicate) {
          y = max(0, min(y, shape.h - 1));
          x = max(0, min(x, shape.w - 1));
        } else {
          inside = inside && y >= 0 && y < shape.h && x >= 0 && x < shape.w;
        }
        column_values[line * kPerWord + k] =
            inside ? plane_of<T>(p.columns, n, source.channel)[static_cast<int64_t>(y) * shape.w + x] : from_float<T>(0.0f);
      }
    }
  };
  const auto pack = [&](const T* values) {
    if constexpr (kPerWord == 2) {
      return Compute::pack(values[0], values[1]);
    } else {
      return Compute::pack(values[0]);
    }
  };

  Accumulator<Compute, Tile, false> accumulator;
  const int stages = (pixels + kStageWords * kPerWord - 1) / (kStageWords * kPerWord);
  const int begin = blockIdx.z * p.stages_per_split, end = min(begin + p.stages_per_split, stages);
  if (begin < end) fetch(begin);
  for (int index = begin; index < end; ++index) {
    uint32_t* stage = words + index % 2 * Words::kSize;
#pragma unroll
    for (int line = 0; line < kRowLines; ++line) {
      Words::row(stage, my_line + line * kLinesApart, my_word) = pack(row_values + line * kPerWord);
    }
#pragma unroll
    for (int line = 0; line < kColumnLines; ++line) {
      Words::column(stage, my_line + line * kLinesApart, my_word) = pack(column_values + line * kPerWord);
    }
    __syncthreads();
    if (index + 1 < end) fetch(index + 1);
    accumulator.add(stage);
  }

  __syncthreads();
  float* result = reinterpret_cast<float*>(shared);
  accumulator.write(result);
  __syncthreads();
  const int pitch = shape.in.most * taps;
  float* partials = p.partials + static_cast<int64_t>(blockIdx.z) * shape.out.most * pitch;
  for (int at = tid; at < Tile::kRows * Tile::kColumns; at += kMatmulThreads) {
    const int row = at / Tile::kColumns, column = at % Tile::kColumns;
    if (first_row + row < used_rows && first_column + column < used_columns) {
      partials[static_cast<int64_t>(first_row + row) * pitch + first_column + column] =
          result[row * Result<Tile>::kPitch + column];
    }
  }
}

constexpr int kSumThreads = 256;

// The parts added up into the full gradient, zero where a channel is not in use.
template <typename T>
__global__ void __launch_bounds__(kSumThreads) sum_parts_kernel(WeightGradient p) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (at >= p.gradient.size) return;
  const int taps = p.shape.kernel_h * p.shape.kernel_w, pitch = p.shape.in.most * taps, full = p.gradient_columns * taps;
  const int64_t row = at / full;
  const int column = static_cast<int>(at % full);
  float total = 0;
  if (row < active(p.shape.out) && column < active(p.shape.in) * taps) {
    const float* part = p.partials + row * pitch + column;
    for (int split = 0; split < p.splits; ++split) total += part[static_cast<int64_t>(split) * p.shape.out.most * pitch];
  }
  write_gradient<T>(p.gradient, at, total);
}

// Blocks that a large GPU has room for about twice, and stages that a block should have at least.
constexpr int64_t kBlocks = 264, kFewestStages = 8;

template <typename Function>
auto with_tile(const ConvShape& shape, const Function& function) {
  return shape.out.most <= FlatTile::kRows ? function(FlatTile{}) : function(SquareTile{});
}

int64_t stages_of(const ConvShape& shape, Dtype dtype) {
  const int per_word = dtype == Dtype::kFloat32 ? 1 : 2;
  return ceil_div(static_cast<int64_t>(shape.images) * shape.out_h * shape.out_w, kStageWords * per_word);
}

int64_t stages_per_split(const ConvShape& shape, Dtype dtype) {
  const int64_t columns = static_cast<int64_t>(shape.in.most) * shape.kernel_h * shape.kernel_w;
  const int64_t tiles = with_tile(shape, [&](auto tile) {
    using Tile = decltype(tile);
    return ceil_div(shape.out.most, Tile::kRows) * ceil_div(columns, Tile::kColumns);
  });
  const int64_t stages = stages_of(shape, dtype), splits = ceil_div(kBlocks, tiles > 0 ? tiles : 1);
  const int64_t share = ceil_div(stages, splits);
  return share > kFewestStages ? share : kFewestStages;
}

int64_t splits_of(const ConvShape& shape, Dtype dtype) {
  return ceil_div(stages_of(shape, dtype), stages_per_split(shape, dtype));
}

}  // namespace

int64_t weight_gradient_workspace(const ConvShape& shape, Dtype dtype) {
  return splits_of(shape, dtype) * shape.out.most * shape.in.most * shape.kernel_h * shape.kernel_w *
         static_cast<int64_t>(sizeof(float));
}

const char* weight_gradient(WeightGradient p, Dtype dtype, bool tf32, void* stream) {
  const ConvShape& shape = p.shape;
  p.stages_per_split = static_cast<int>(stages_per_split(shape, dtype));
  p.splits = static_cast<int>(splits_of(shape, dtype));
  const int64_t columns = static_cast<int64_t>(shape.in.most) * shape.kernel_h * shape.kernel_w;
  return with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const char* error = with_compute<T>(tf32, [&](auto compute) {
      using Compute = decltype(compute);
      return with_tile(shape, [&](auto tile) {
        using Tile = decltype(tile);
        const dim3 grid(ceil_div(columns, Tile::kColumns), ceil_div(shape.out.most, Tile::kRows), p.splits);
        constexpr size_t bytes = matmul_shared_bytes<Tile, false>() + Tile::kColumns * sizeof(Column);
        return launch(sliced_conv2d_weight_kernel<T, Compute, Tile>, grid, kMatmulThreads, bytes, stream, p);
      });
    });
    if (error != nullptr) return error;
    return launch(sum_parts_kernel<T>, dim3(ceil_div(p.gradient.size, kSumThreads)), kSumThreads, 0, stream, p);
  });
}

}  // namespace gancomp::cuda
