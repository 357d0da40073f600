// Depthwise 3x3 with reflection by index, on planes in global or shared memory. A thread works down a column of kStripRows
// pixels, so that it reads three pixels for each, not nine; neighbouring threads have neighbouring columns.
#pragma once

#include "common.cuh"

namespace gancomp::cuda {

constexpr int kStripRows = 8;
constexpr int kMostStrips = 2;  // that a thread keeps in registers

__host__ __device__ inline int strips_of(int h, int w) { return (h + kStripRows - 1) / kStripRows * w; }

template <typename T>
__device__ inline void read_filter(const Parameter& weight, int c, float (&taps)[9]) {
#pragma unroll
  for (int k = 0; k < 9; ++k) taps[k] = read_parameter<T>(weight, static_cast<int64_t>(c) * 9 + k);
}

template <typename T>
__device__ inline void read_row(const T* row, int left, int middle, int right, float (&values)[3]) {
  values[0] = to_float(row[left]);
  values[1] = to_float(row[middle]);
  values[2] = to_float(row[right]);
}

// body(r, above, at, below) for the rows r of a strip that starts at `top`: the pixels round (top + r, column) after
// reflection.
template <typename T, typename Body>
__device__ inline void walk_down(const T* plane, int h, int w, int top, int column, const Body& body) {
  const int left = reflect(column - 1, w), right = reflect(column + 1, w);
  float above[3], at[3], below[3];
  read_row(plane + reflect(top - 1, h) * w, left, column, right, above);
  read_row(plane + top * w, left, column, right, at);
#pragma unroll
  for (int r = 0; r < kStripRows; ++r) {
    if (top + r >= h) break;
    read_row(plane + reflect(top + r + 1, h) * w, left, column, right, below);
    body(r, above, at, below);
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      above[k] = at[k];
      at[k] = below[k];
    }
  }
}

__device__ inline float dot(const float* taps, const float (&values)[3]) {
  return fmaf(taps[2], values[2], fmaf(taps[1], values[1], taps[0] * values[0]));
}

// values[r] = the filtered image at (top + r, column).
template <typename T>
__device__ inline void correlate_strip(const T* plane, const float (&taps)[9], int h, int w, int top, int column,
                                       float (&values)[kStripRows]) {
  walk_down(plane, h, w, top, column, [&](int r, const float (&above)[3], const float (&at)[3], const float (&below)[3]) {
    values[r] = dot(taps, above) + dot(taps + 3, at) + dot(taps + 6, below);
  });
}

// values[r] = the gradient by pixel (top + r, column) of an image whose filtered form has the gradient `plane`. The padding at
// -1 is a copy of row 1 and that at h one of row h - 2: these rows also get what the ends of the image took from the padding.
// Likewise for columns.
template <typename T>
__device__ inline void adjoint_strip(const T* plane, const float (&taps)[9], int h, int w, int top, int column,
                                     float (&values)[kStripRows]) {
  const bool has_left = column > 0, has_right = column < w - 1;
  float filter[3][3];  // filter[u]: what filter row u gives to this column, from grad columns to the left, here, to the right
#pragma unroll
  for (int u = 0; u < 3; ++u) {
    filter[u][0] = taps[3 * u + 2] + (column == 1 ? taps[3 * u] : 0.0f);
    filter[u][1] = taps[3 * u + 1];
    filter[u][2] = taps[3 * u] + (column == w - 2 ? taps[3 * u + 2] : 0.0f);
  }
  const auto read = [&](int row, float (&to)[3]) {
    const bool exists = row >= 0 && row < h;
    const T* line = plane + row * w + column;
    to[0] = exists && has_left ? to_float(line[-1]) : 0.0f;
    to[1] = exists ? to_float(line[0]) : 0.0f;
    to[2] = exists && has_right ? to_float(line[1]) : 0.0f;
  };
  float above[3], at[3], below[3];
  read(top - 1, above);
  read(top, at);
#pragma unroll
  for (int r = 0; r < kStripRows; ++r) {
    const int row = top + r;
    if (row >= h) break;
    read(row + 1, below);
    float value = dot(filter[2], above) + dot(filter[1], at) + dot(filter[0], below);
    if (row == 1) value += dot(filter[0], above);
    if (row == h - 2) value += dot(filter[2], below);
    values[r] = value;
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      above[k] = at[k];
      at[k] = below[k];
    }
  }
}

// sums[3 u + v] += gradient at (row, column) times the image pixel that tap (u, v) saw; gradient(row) gives the former.
template <typename T, typename Gradient>
__device__ inline void add_filter_gradient(const T* image, int h, int w, int top, int column, const Gradient& gradient,
                                           float* sums) {
  walk_down(image, h, w, top, column, [&](int r, const float (&above)[3], const float (&at)[3], const float (&below)[3]) {
    const float g = gradient(top + r);
#pragma unroll
    for (int v = 0; v < 3; ++v) {
      sums[v] = fmaf(g, above[v], sums[v]);
      sums[3 + v] = fmaf(g, at[v], sums[3 + v]);
      sums[6 + v] = fmaf(g, below[v], sums[6 + v]);
    }
  });
}

// The strips of a plane that a thread of its block works on. compute(top, column, values) makes a strip; it is made once where
// the thread's strips fit into registers (kKept), else whenever it is looked at.
template <bool kKept, typename Compute>
struct Strips {
  int h, w;
  const Compute& compute;
  float kept[kKept ? kMostStrips : 1][kStripRows];

  __device__ Strips(int height, int width, const Compute& function) : h(height), w(width), compute(function) {
    if constexpr (kKept) {
#pragma unroll
      for (int s = 0; s < kMostStrips; ++s) {
        const int strip = threadIdx.x + s * blockDim.x;
        if (strip < strips_of(h, w)) compute(strip / w * kStripRows, strip % w, kept[s]);
      }
    }
  }

  // body(pixel, value) for every pixel of this thread's strips.
  template <typename Body>
  __device__ void each(const Body& body) {
    if constexpr (kKept) {
#pragma unroll
      for (int s = 0; s < kMostStrips; ++s) visit(threadIdx.x + s * blockDim.x, kept[s], body);
    } else {
      for (int strip = threadIdx.x; strip < strips_of(h, w); strip += blockDim.x) {
        float values[kStripRows];
        compute(strip / w * kStripRows, strip % w, values);
        visit(strip, values, body);
      }
    }
  }

  template <typename Body>
  __device__ void visit(int strip, const float (&values)[kStripRows], const Body& body) const {
    if (strip >= strips_of(h, w)) return;
    const int top = strip / w * kStripRows, column = strip % w;
#pragma unroll
    for (int r = 0; r < kStripRows; ++r) {
      if (top + r < h) body((top + r) * w + column, values[r]);
    }
  }
};

inline int strip_threads(int h, int w) {
  return strips_of(h, w) <= kMostStrips * 128 ? 128 : strips_of(h, w) <= kMostStrips * 256 ? 256 : kMostThreads;
}
inline bool strips_are_kept(int h, int w) { return strips_of(h, w) <= kMostStrips * kMostThreads; }

}  // namespace gancomp::cuda
