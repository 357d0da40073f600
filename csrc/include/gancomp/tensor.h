// Views of image tensors: raw pointers, sizes and strides. Nothing here owns memory.
#pragma once

#include <cstdint>

namespace gancomp {

// [N, C, H, W] float32 whose (h, w) planes are contiguous; images and channels may lie apart (a channel slice of a
// wider tensor). Strides are in elements.
template <typename T>
struct PlanarView {
  T* data = nullptr;
  int64_t n = 0, c = 0, h = 0, w = 0;
  int64_t stride_n = 0, stride_c = 0;

  T* plane(int64_t image, int64_t channel) const { return data + image * stride_n + channel * stride_c; }
  int64_t plane_size() const { return h * w; }
};

using ConstImages = PlanarView<const float>;
using Images = PlanarView<float>;

// A matrix read through its strides: element (row, column) is data[row * row_stride + column * column_stride], and one of the
// strides is 1.
struct ConstMatrix {
  const float* data = nullptr;
  int64_t row_stride = 0, column_stride = 0;
};

}  // namespace gancomp
