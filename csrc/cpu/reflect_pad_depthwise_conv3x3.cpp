// Depthwise 3x3 with reflection by index: the padded image is never made.
#include <initializer_list>

#include "kernels.h"

namespace gancomp::GANCOMP_ISA_NAME {
namespace {

// Index of position i in [-1, size] after reflection at the borders.
inline int64_t reflect(int64_t i, int64_t size) { return i < 0 ? 1 : i < size ? i : size - 2; }

inline float taps(const float* row, const float* k, int64_t left, int64_t middle, int64_t right) {
  return k[0] * row[left] + k[1] * row[middle] + k[2] * row[right];
}

void forward_row(const float* GANCOMP_RESTRICT r0, const float* GANCOMP_RESTRICT r1, const float* GANCOMP_RESTRICT r2,
                 const float* k, float bias, float* GANCOMP_RESTRICT y, int64_t width) {
  const float k0 = k[0], k1 = k[1], k2 = k[2], k3 = k[3], k4 = k[4], k5 = k[5], k6 = k[6], k7 = k[7], k8 = k[8];
  GANCOMP_SIMD
  for (int64_t j = 1; j < width - 1; ++j) {
    float value = bias + k0 * r0[j - 1];
    value += k1 * r0[j];
    value += k2 * r0[j + 1];
    value += k3 * r1[j - 1];
    value += k4 * r1[j];
    value += k5 * r1[j + 1];
    value += k6 * r2[j - 1];
    value += k7 * r2[j];
    value += k8 * r2[j + 1];
    y[j] = value;
  }
  for (const int64_t j : {int64_t{0}, width - 1}) {
    const int64_t left = reflect(j - 1, width), right = reflect(j + 1, width);
    y[j] = bias + taps(r0, k, left, j, right) + taps(r1, k + 3, left, j, right) + taps(r2, k + 6, left, j, right);
  }
}

// One row of the gradient. The padding row -1 is a copy of row 1, so what reaches it belongs to row 1: there the filter rows
// that see row 0 of `grad` are two, added up; likewise at the other end, and likewise for columns. k[r] is the filter row
// that `rows[r]` (grad rows i-1, i, i+1; null outside) is seen through, columns flipped.
float backward_at(const float* const rows[3], const float k[3][3], int64_t j, int64_t width) {
  float value = 0;
  for (int r = 0; r < 3; ++r) {
    if (rows[r] == nullptr) continue;
    if (j > 0) value += (k[r][2] + (j == 1 ? k[r][0] : 0.0f)) * rows[r][j - 1];
    value += k[r][1] * rows[r][j];
    if (j < width - 1) value += (k[r][0] + (j == width - 2 ? k[r][2] : 0.0f)) * rows[r][j + 1];
  }
  return value;
}

void backward_row(const float* const rows[3], const float k[3][3], float* GANCOMP_RESTRICT dx, int64_t width) {
  if (width < 8) {
    for (int64_t j = 0; j < width; ++j) dx[j] = backward_at(rows, k, j, width);
    return;
  }
  const float k00 = k[0][0], k01 = k[0][1], k02 = k[0][2];
  const float k10 = k[1][0], k11 = k[1][1], k12 = k[1][2];
  const float k20 = k[2][0], k21 = k[2][1], k22 = k[2][2];
  const float *GANCOMP_RESTRICT g0 = rows[0], *GANCOMP_RESTRICT g1 = rows[1], *GANCOMP_RESTRICT g2 = rows[2];
  if (g0 != nullptr && g2 != nullptr) {
    GANCOMP_SIMD
    for (int64_t j = 2; j < width - 2; ++j) {
      float value = k02 * g0[j - 1] + k01 * g0[j] + k00 * g0[j + 1];
      value += k12 * g1[j - 1] + k11 * g1[j] + k10 * g1[j + 1];
      value += k22 * g2[j - 1] + k21 * g2[j] + k20 * g2[j + 1];
      dx[j] = value;
    }
  } else {
    for (int64_t j = 2; j < width - 2; ++j) dx[j] = backward_at(rows, k, j, width);
  }
  for (const int64_t j : {int64_t{0}, int64_t{1}, width - 2, width - 1}) dx[j] = backward_at(rows, k, j, width);
}

void backward_input_plane(const float* grad, const float* weight, float* dx, int64_t height, int64_t width) {
  for (int64_t i = 0; i < height; ++i) {
    float k[3][3];
    for (int v = 0; v < 3; ++v) {
      k[0][v] = weight[6 + v] + (i == 1 ? weight[v] : 0.0f);
      k[1][v] = weight[3 + v];
      k[2][v] = weight[v] + (i == height - 2 ? weight[6 + v] : 0.0f);
    }
    const float* rows[3] = {i > 0 ? grad + (i - 1) * width : nullptr, grad + i * width,
                            i < height - 1 ? grad + (i + 1) * width : nullptr};
    backward_row(rows, k, dx + i * width, width);
  }
}

// Adds the correlation of one grad row with three input rows to nine sums (and the row's own sum to the tenth).
void backward_weight_row(const float* GANCOMP_RESTRICT g, const float* GANCOMP_RESTRICT r0, const float* GANCOMP_RESTRICT r1,
                         const float* GANCOMP_RESTRICT r2, int64_t width, double sums[10]) {
  float s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0, s8 = 0, s9 = 0;
  GANCOMP_SIMD_SUM(s0, s1, s2, s3, s4, s5, s6, s7, s8, s9)
  for (int64_t j = 1; j < width - 1; ++j) {
    const float d = g[j];
    s0 += d * r0[j - 1];
    s1 += d * r0[j];
    s2 += d * r0[j + 1];
    s3 += d * r1[j - 1];
    s4 += d * r1[j];
    s5 += d * r1[j + 1];
    s6 += d * r2[j - 1];
    s7 += d * r2[j];
    s8 += d * r2[j + 1];
    s9 += d;
  }
  const float row[10] = {s0, s1, s2, s3, s4, s5, s6, s7, s8, s9};
  for (int k = 0; k < 10; ++k) sums[k] += row[k];
  const float* rows[3] = {r0, r1, r2};
  for (const int64_t j : {int64_t{0}, width - 1}) {
    const int64_t columns[3] = {reflect(j - 1, width), j, reflect(j + 1, width)};
    for (int u = 0; u < 3; ++u) {
      for (int v = 0; v < 3; ++v) sums[3 * u + v] += static_cast<double>(g[j]) * rows[u][columns[v]];
    }
    sums[9] += g[j];
  }
}

}  // namespace

void reflect_pad_depthwise_conv3x3(const ReflectPadDepthwiseConv3x3Params& p, const Executor& executor) {
  const int64_t height = p.x.h, width = p.x.w;
  executor.parallel_for(p.x.n * p.x.c, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t n = index / p.x.c, c = index % p.x.c;
      const float* x = p.x.plane(n, c);
      float* y = p.y.plane(n, c);
      const float bias = p.bias == nullptr ? 0.0f : p.bias[c];
      for (int64_t i = 0; i < height; ++i) {
        forward_row(x + reflect(i - 1, height) * width, x + i * width, x + reflect(i + 1, height) * width, p.weight + 9 * c,
                    bias, y + i * width, width);
      }
    }
  });
}

void reflect_pad_depthwise_conv3x3_backward(const ReflectPadDepthwiseConv3x3BackwardParams& p, const Executor& executor) {
  const int64_t height = p.x.h, width = p.x.w;
  // One task owns a channel in all images, so that the sums over images are in a fixed order.
  executor.parallel_for(p.x.c, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double sums[10] = {};
      for (int64_t n = 0; n < p.x.n; ++n) {
        const float *grad = p.grad.plane(n, c), *x = p.x.plane(n, c);
        for (int64_t i = 0; i < height; ++i) {
          backward_weight_row(grad + i * width, x + reflect(i - 1, height) * width, x + i * width,
                              x + reflect(i + 1, height) * width, width, sums);
        }
        if (p.grad_x.data != nullptr) backward_input_plane(grad, p.weight + 9 * c, p.grad_x.plane(n, c), height, width);
      }
      for (int k = 0; k < 9; ++k) p.grad_weight[9 * c + k] = static_cast<float>(sums[k]);
      if (p.grad_bias != nullptr) p.grad_bias[c] = static_cast<float>(sums[9]);
    }
  });
}

}  // namespace gancomp::GANCOMP_ISA_NAME
