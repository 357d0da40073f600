// Convolutions that read the first channels of a full weight through its strides, as products of matrices whose right operand,
// the image, is gathered while it is loaded. How many channels there are may lie in device memory.
#include "sliced_conv2d.cuh"

namespace gancomp::cuda {
namespace {

// One axis of a convolution: position i of `count` outputs, at first + i * pitch in the image, takes tap t of `taps` (which is
// tap first_tap + t * tap_pitch of the filter) from input position i * step + t * direction + offset.
struct Axis {
  int count, first, pitch;
  int step, direction, offset;
  int taps, first_tap, tap_pitch;
};

__device__ inline Axis plain_axis(int outputs, int kernel, int stride, int padding) {
  return {outputs, 0, 1, stride, 1, -padding, kernel, 0, 1};
}

// The outputs phase, phase + stride, ... of a transposed convolution: they take the same taps, so none is multiplied by a zero.
__device__ inline Axis transposed_axis(int outputs, int kernel, int stride, int padding, int phase) {
  const int first_tap = (phase + padding) % stride;
  const int taps = first_tap < kernel ? (kernel - first_tap + stride - 1) / stride : 0;
  const int count = phase < outputs ? (outputs - phase + stride - 1) / stride : 0;
  return {count, phase, stride, 1, -1, (phase + padding - first_tap) / stride, taps, first_tap, stride};
}

// Where a thread is in the summed index: tap after tap, in each the input's channels.
struct Position {
  int channel, tap_y = 0, tap_x = 0;

  __device__ explicit Position(int at) : channel(at) {}

  // Whether the tap changed.
  __device__ bool advance(int by, int channels, int taps_x) {
    channel += by;
    bool moved = false;
    while (channel >= channels) {
      channel -= channels;
      moved = true;
      if (++tap_x == taps_x) {
        tap_x = 0;
        ++tap_y;
      }
    }
    return moved;
  }
};

// What a thread loads of the image: one pixel, of which it follows the summed index.
template <typename T>
struct PixelWalk {
  const T* image;
  const T* at = nullptr;  // the tap's pixel in the first channel; null where it lies outside
  int row, column;        // of tap 0
  Position position;

  __device__ PixelWalk(const Gather& p, const Axis& rows, const Axis& columns, int pixel, int pixels, int start)
      : position(start) {
    const int per_image = rows.count * columns.count;
    const int n = pixel / per_image, rest = pixel % per_image;
    image = pixel < pixels ? plane_of<T>(p.x, n, 0) : nullptr;
    row = rest / columns.count * rows.step + rows.offset;
    column = rest % columns.count * columns.step + columns.offset;
  }

  __device__ void locate(const Gather& p, const Axis& rows, const Axis& columns) {
    at = nullptr;
    if (image == nullptr || position.tap_y >= rows.taps) return;
    int y = row + position.tap_y * rows.direction, x = column + position.tap_x * columns.direction;
    if (p.shape.mode == Padding::kReflect) {
      y = reflect(y, p.shape.h);
      x = reflect(x, p.shape.w);
    } else if (p.shape.mode == Padding::kReplicate) {
      y = max(0, min(y, p.shape.h - 1));
      x = max(0, min(x, p.shape.w - 1));
    } else if (y < 0 || y >= p.shape.h || x < 0 || x >= p.shape.w) {
      return;
    }
    at = image + static_cast<int64_t>(y) * p.shape.w + x;
  }
};

template <typename T, typename Compute, typename Tile>
__global__ void __launch_bounds__(kMatmulThreads) sliced_conv2d_kernel(Gather p) {
  using Words = Stage<Tile, true>;
  constexpr int kPerWord = Compute::kPerWord;
  constexpr int kRowsApart = kMatmulThreads / kStageWords, kRowWords = Tile::kRows / kRowsApart;
  constexpr int kWordsApart = kMatmulThreads / Tile::kColumns, kColumnWords = kStageWords / kWordsApart;
  GANCOMP_SHARED(shared);

  const ConvShape& shape = p.shape;
  const int in = active(shape.in), out = active(shape.out), first_row = blockIdx.y * Tile::kRows;
  if (first_row >= out) return;
  const int phase_y = blockIdx.z / shape.stride, phase_x = blockIdx.z % shape.stride;
  const Axis rows = p.transposed ? transposed_axis(shape.out_h, shape.kernel_h, shape.stride, shape.padding, phase_y)
                                 : plain_axis(shape.out_h, shape.kernel_h, shape.stride, shape.padding);
  const Axis columns = p.transposed ? transposed_axis(shape.out_w, shape.kernel_w, shape.stride, shape.padding, phase_x)
                                    : plain_axis(shape.out_w, shape.kernel_w, shape.stride, shape.padding);
  const int per_image = rows.count * columns.count, pixels = shape.images * per_image;
  const int64_t first_pixel = static_cast<int64_t>(blockIdx.x) * Tile::kColumns;
  if (first_pixel >= pixels) return;

  const int tid = threadIdx.x, my_column = tid % Tile::kColumns, my_pixel = static_cast<int>(first_pixel) + my_column;
  const int my_row = tid / kStageWords, my_word = tid % kStageWords;
  PixelWalk<T> walk(p, rows, columns, my_pixel, pixels, tid / Tile::kColumns * kPerWord);
  Position filter(my_word * kPerWord);

  // Loaded while the stage before is computed, and only then converted, so that no thread waits for its loads at once.
  T image_values[kColumnWords * kPerWord];
  float weights[kRowWords * kPerWord];
  const auto fetch = [&] {
#pragma unroll
    for (int k = 0; k < kPerWord; ++k) {
      const bool exists = filter.tap_y < rows.taps;
      const int64_t offset = filter.channel * p.weight.stride_in +
                             (rows.first_tap + filter.tap_y * rows.tap_pitch) * p.weight.stride_h +
                             (columns.first_tap + filter.tap_x * columns.tap_pitch) * p.weight.stride_w;
#pragma unroll
      for (int j = 0; j < kRowWords; ++j) {
        const int row = first_row + my_row + j * kRowsApart;
        weights[j * kPerWord + k] =
            exists && row < out ? read_parameter<T>(p.weight.values, row * p.weight.stride_out + offset) : 0.0f;
      }
      filter.advance(k + 1 < kPerWord ? 1 : kPerWord * (kStageWords - 1) + 1, in, columns.taps);
    }
#pragma unroll
    for (int j = 0; j < kColumnWords; ++j) {
#pragma unroll
      for (int k = 0; k < kPerWord; ++k) {
        image_values[j * kPerWord + k] =
            walk.at == nullptr ? from_float<T>(0.0f) : walk.at[walk.position.channel * p.x.stride_c];
        if (walk.position.advance(k + 1 < kPerWord ? 1 : kPerWord * (kWordsApart - 1) + 1, in, columns.taps)) {
          walk.locate(p, rows, columns);
        }
      }
    }
  };
  const auto put = [&](uint32_t* stage) {
#pragma unroll
    for (int j = 0; j < kRowWords; ++j) {
      uint32_t& word = Words::row(stage, my_row + j * kRowsApart, my_word);
      if constexpr (kPerWord == 2) {
        word = Compute::pack(weights[2 * j], weights[2 * j + 1]);
      } else {
        word = Compute::pack(weights[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < kColumnWords; ++j) {
      uint32_t& word = Words::column(stage, my_column, tid / Tile::kColumns + j * kWordsApart);
      if constexpr (kPerWord == 2) {
        word = Compute::pack(image_values[2 * j], image_values[2 * j + 1]);
      } else {
        word = Compute::pack(image_values[j]);
      }
    }
  };

  Accumulator<Compute, Tile, true> accumulator;
  const int summed = rows.taps * columns.taps * max(in, 0);
  const int stages = (summed + kStageWords * kPerWord - 1) / (kStageWords * kPerWord);
  uint32_t* words = reinterpret_cast<uint32_t*>(shared);
  if (stages > 0) {
    if (walk.position.channel >= in) walk.position.advance(0, in, columns.taps);
    if (filter.channel >= in) filter.advance(0, in, columns.taps);
    walk.locate(p, rows, columns);
    fetch();
  }
  for (int index = 0; index < stages; ++index) {
    uint32_t* stage = words + index % 2 * Words::kSize;
    put(stage);
    __syncthreads();
    if (index + 1 < stages) fetch();
    accumulator.add(stage);
  }

  __syncthreads();
  float* result = reinterpret_cast<float*>(shared);
  accumulator.write(result);
  __syncthreads();
  if (my_pixel >= pixels) return;
  const int n = my_pixel / per_image, rest = my_pixel % per_image;
  const int64_t i = rows.first + static_cast<int64_t>(rest / columns.count) * rows.pitch;
  T* y = plane_of<T>(p.y, n, 0) + i * shape.out_w + columns.first + rest % columns.count * columns.pitch;
  for (int row = tid / Tile::kColumns; row < Tile::kRows && first_row + row < out; row += kWordsApart) {
    const float bias = p.bias.data == nullptr ? 0.0f : read_parameter<T>(p.bias, first_row + row);
    y[(first_row + row) * p.y.stride_c] = from_float<T>(result[row * Result<Tile>::kPitch + my_column] + bias);
  }
}

// What a padded image's gradient means for the image: every pixel takes what its copies in the padding got.
struct Fold {
  ConstPlanes padded;  // [N, C, h + 2 padding, w + 2 padding]
  Planes y;
  Channels channels;
  int images, h, w, padding;
  Padding mode;
};

// The k-th place (of 2 * padding + 1 to be asked for) in the padded line that holds pixel i, or -1.
__device__ inline int copy_of(int i, int k, int size, int padding, Padding mode) {
  if (mode == Padding::kReplicate) return max(0, min(i + k - padding, size - 1)) == i ? i + k : -1;
  if (k == 0) return i + padding;
  if (k == 1) return i >= 1 && i <= padding ? padding - i : -1;
  if (k == 2) return i <= size - 2 && i >= size - 1 - padding ? padding + 2 * (size - 1) - i : -1;
  return -1;
}

constexpr int kFoldThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kFoldThreads) fold_padding_kernel(Fold p) {
  const int pixel = blockIdx.x * kFoldThreads + threadIdx.x, c = blockIdx.y, n = blockIdx.z;
  if (pixel >= p.h * p.w || c >= active(p.channels)) return;
  const int i = pixel / p.w, j = pixel % p.w, copies = 2 * p.padding + 1;
  const T* padded = plane_of<T>(p.padded, n, c);
  float total = 0;
  for (int a = 0; a < copies; ++a) {
    const int row = copy_of(i, a, p.h, p.padding, p.mode);
    for (int b = 0; row >= 0 && b < copies; ++b) {
      const int column = copy_of(j, b, p.w, p.padding, p.mode);
      if (column >= 0) total += to_float(padded[static_cast<int64_t>(row) * (p.w + 2 * p.padding) + column]);
    }
  }
  plane_of<T>(p.y, n, c)[pixel] = from_float<T>(total);
}

// Sums of planes [N, C], of which the gradient of a bias is made.
struct PlaneSums {
  ConstPlanes x;
  Channels channels;
  int pixels;
  float* sums;
};

constexpr int kSumThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kSumThreads) plane_sums_kernel(PlaneSums p) {
  GANCOMP_SHARED(shared);
  const int n = blockIdx.x / p.channels.most, c = blockIdx.x % p.channels.most;
  if (c >= active(p.channels)) return;
  const T* x = plane_of<T>(p.x, n, c);
  float total[1] = {0};
  for (int i = threadIdx.x; i < p.pixels; i += kSumThreads) total[0] += to_float(x[i]);
  block_sum(total, reinterpret_cast<float*>(shared));
  if (threadIdx.x == 0) p.sums[blockIdx.x] = total[0];
}

const char* bias_gradient(const ConstPlanes& grad, const ConvShape& shape, const Gradient& gradient, float* partials,
                          Dtype dtype, void* stream) {
  const PlaneSums sums = {grad, shape.out, shape.out_h * shape.out_w, partials};
  const dim3 grid(static_cast<unsigned>(shape.images) * shape.out.most);
  const char* error = with_type(dtype, [&](auto type) {
    return launch(plane_sums_kernel<decltype(type)>, grid, kSumThreads, kSumScratch, stream, sums);
  });
  return error != nullptr ? error : sum_images({partials, shape.out, shape.images, 1, gradient}, dtype, stream);
}

// The shape of the convolution that takes the output's gradient to the input's.
ConvShape reversed(const ConvShape& shape) {
  ConvShape back = shape;
  back.in = shape.out;
  back.out = shape.in;
  back.h = shape.out_h;
  back.w = shape.out_w;
  back.out_h = shape.h;
  back.out_w = shape.w;
  return back;
}

bool folds(const ConvShape& shape) { return shape.mode != Padding::kZeros && shape.padding > 0; }

// The gradient by the input of a convolution with an image extended by its own pixels: first that of the extended image.
const char* gradient_through_padding(const SlicedConvBackward& p, void* stream) {
  const ConvShape& shape = p.shape;
  const int h = shape.h + 2 * shape.padding, w = shape.w + 2 * shape.padding;
  const int64_t plane = static_cast<int64_t>(h) * w;
  const Planes padded = {p.workspace, plane * shape.in.most, plane};
  ConvShape back = reversed(shape);
  back.out_h = h;
  back.out_w = w;
  back.padding = 0;
  back.mode = Padding::kZeros;
  if (const char* error = gather({back, p.grad, transposed(p.weight), {}, padded, true}, p.dtype, p.tf32, stream)) return error;
  const Fold fold = {{padded.data, padded.stride_n, padded.stride_c},
                     p.grad_x,
                     shape.in,
                     shape.images,
                     shape.h,
                     shape.w,
                     shape.padding,
                     shape.mode};
  const dim3 grid(ceil_div(static_cast<int64_t>(shape.h) * shape.w, kFoldThreads), shape.in.most, shape.images);
  return with_type(p.dtype,
                   [&](auto type) { return launch(fold_padding_kernel<decltype(type)>, grid, kFoldThreads, 0, stream, fold); });
}

int64_t bias_workspace(const SlicedConvBackward& p) {
  return p.grad_bias.data == nullptr ? 0 : static_cast<int64_t>(p.shape.images) * p.shape.out.most * sizeof(float);
}

int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace

const char* gather(const Gather& params, Dtype dtype, bool tf32, void* stream) {
  const ConvShape& shape = params.shape;
  const int phases = params.transposed ? shape.stride : 1;
  const int64_t pixels = shape.images * ceil_div(shape.out_h, phases) * ceil_div(shape.out_w, phases);
  return with_type(dtype, [&](auto type) {
    using T = decltype(type);
    return with_compute<T>(tf32, [&](auto compute) {
      using Compute = decltype(compute);
      const auto run = [&](auto tile) {
        using Tile = decltype(tile);
        const dim3 grid(ceil_div(pixels, Tile::kColumns), ceil_div(shape.out.most, Tile::kRows), phases * phases);
        return launch(sliced_conv2d_kernel<T, Compute, Tile>, grid, kMatmulThreads, matmul_shared_bytes<Tile, true>(), stream,
                      params);
      };
      return shape.out.most <= FlatTile::kRows ? run(FlatTile{}) : run(SquareTile{});
    });
  });
}

const char* sliced_conv2d(const SlicedConv& p, void* stream) {
  return gather({p.shape, p.x, p.weight, p.bias, p.y, false}, p.dtype, p.tf32, stream);
}

const char* sliced_conv_transpose2d(const SlicedConv& p, void* stream) {
  return gather({p.shape, p.x, p.weight, p.bias, p.y, true}, p.dtype, p.tf32, stream);
}

const char* sliced_conv2d_backward(const SlicedConvBackward& p, void* stream) {
  const char* error = nullptr;
  if (p.grad_x.data != nullptr) {
    error = folds(p.shape)
                ? gradient_through_padding(p, stream)
                : gather({reversed(p.shape), p.grad, transposed(p.weight), {}, p.grad_x, true}, p.dtype, p.tf32, stream);
  }
  float* partials = static_cast<float*>(p.workspace);
  if (error == nullptr && p.grad_weight.data != nullptr) {
    error = weight_gradient({p.shape, p.grad, p.x, p.grad_weight, p.weight_in, partials, 0, 0}, p.dtype, p.tf32, stream);
  }
  if (error == nullptr && p.grad_bias.data != nullptr) {
    error = bias_gradient(p.grad, p.shape, p.grad_bias, partials, p.dtype, stream);
  }
  return error;
}

int64_t sliced_conv2d_backward_workspace(const SlicedConvBackward& p) {
  const ConvShape& s = p.shape;
  int64_t bytes = bias_workspace(p);
  if (p.grad_x.data != nullptr && folds(s)) {
    bytes = larger(bytes, static_cast<int64_t>(s.images) * s.in.most * (s.h + 2 * s.padding) * (s.w + 2 * s.padding) *
                              element_size(p.dtype));
  }
  return p.grad_weight.data == nullptr ? bytes : larger(bytes, weight_gradient_workspace(s, p.dtype));
}

const char* sliced_conv_transpose2d_backward(const SlicedConvBackward& p, void* stream) {
  const char* error = nullptr;
  const ConvShape back = reversed(p.shape);
  if (p.grad_x.data != nullptr) {
    error = gather({back, p.grad, transposed(p.weight), {}, p.grad_x, false}, p.dtype, p.tf32, stream);
  }
  float* partials = static_cast<float*>(p.workspace);
  if (error == nullptr && p.grad_weight.data != nullptr) {
    error = weight_gradient({back, p.x, p.grad, p.grad_weight, p.weight_out, partials, 0, 0}, p.dtype, p.tf32, stream);
  }
  if (error == nullptr && p.grad_bias.data != nullptr) {
    error = bias_gradient(p.grad, p.shape, p.grad_bias, partials, p.dtype, stream);
  }
  return error;
}

int64_t sliced_conv_transpose2d_backward_workspace(const SlicedConvBackward& p) {
  const int64_t bytes = bias_workspace(p);
  return p.grad_weight.data == nullptr ? bytes : larger(bytes, weight_gradient_workspace(reversed(p.shape), p.dtype));
}

}  // namespace gancomp::cuda
