// Brings rows into the form a convolution reads: normalised, activated, with their borders.
#include "vec.h"

namespace gancomp::GANCOMP_ISA_NAME {
namespace {

// The float of every 8-bit value: v / 127.5 - 1, rounded to the side from which the truncation of the way back (to_byte) gives
// v again. gancomp.data.to_tensor has the same.
struct Levels {
  float of[256] = {};

  constexpr Levels() {
    for (int v = 0; v < 256; ++v) {
      const float nearest = static_cast<float>(v / 127.5 - 1.0);
      float power = 1.0f;  // the largest power of two that is not above |nearest|
      while (power > (nearest < 0 ? -nearest : nearest)) power /= 2;
      const bool back = static_cast<int>((nearest + 1.0f) / 2.0f * 255.0f) == v;
      of[v] = back ? nearest : nearest + power / 8388608.0f;  // one step of the float up
    }
  }
};
constexpr Levels kLevels;

struct Row {
  const float *x, *residual, *mean, *scale, *shift;
  float *y, *kept;
  int width;
  float slope;
};

template <bool kNorm, bool kResidual, bool kKept>
void transform(const Row& r) {
  for (int part = 0; part < kParts; ++part) {
    const int lane = part * kLanes;
    const Vec mean = kNorm ? load(r.mean + lane) : Vec{};
    const Vec scale = kNorm ? load(r.scale + lane) : Vec{};
    const Vec shift = kNorm ? load(r.shift + lane) : Vec{};
    const Vec slope = splat(r.slope);
    const float *x = r.x + lane, *residual = kResidual ? r.residual + lane : nullptr;
    float *y = r.y + lane, *kept = kKept ? r.kept + lane : nullptr;
    for (int64_t i = 0; i < static_cast<int64_t>(r.width) * kBlock; i += kBlock) {
      Vec value = load(x + i);
      if (kNorm) value = (value - mean) * scale + shift;
      value = max(value, value * slope);
      if (kResidual) value += load(residual + i);
      store(y + i, value);
      if (kKept) store(kept + i, value);
    }
  }
}

void transform_row(const Row& r) {
  const bool norm = r.mean != nullptr, residual = r.residual != nullptr, kept = r.kept != nullptr;
  if (norm) {
    if (residual) {
      kept ? transform<true, true, true>(r) : transform<true, true, false>(r);
    } else {
      kept ? transform<true, false, true>(r) : transform<true, false, false>(r);
    }
  } else if (residual) {
    kept ? transform<false, true, true>(r) : transform<false, true, false>(r);
  } else {
    kept ? transform<false, false, true>(r) : transform<false, false, false>(r);
  }
}

void copy_pixel(float* to, const float* from) { std::memcpy(to, from, kBlock * sizeof(float)); }

// `row` is the first pixel behind the left border.
void borders(float* row, int width, int left, int right, BorderMode mode) {
  if (mode == BorderMode::zero) {
    std::memset(row - left * kBlock, 0, static_cast<size_t>(left) * kBlock * sizeof(float));
    std::memset(row + static_cast<int64_t>(width) * kBlock, 0, static_cast<size_t>(right) * kBlock * sizeof(float));
    return;
  }
  for (int64_t i = -left; i < 0; ++i) copy_pixel(row + i * kBlock, row + inside(i, width, mode) * kBlock);
  for (int64_t i = width; i < width + right; ++i) copy_pixel(row + i * kBlock, row + inside(i, width, mode) * kBlock);
}

}  // namespace

void blocked_gather(const BlockedGatherParams& p) {
  const int64_t pixels = p.border_left + p.width + p.border_right;
  for (int block = 0; block < p.blocks; ++block) {
    const int channel = block * kBlock;
    for (int i = p.row_begin; i < p.row_end; ++i) {
      float* y = p.y + block * p.y_block + (i - p.row_begin) * p.y_row;
      const bool outside = i < 0 || i >= p.height;
      if (outside && p.mode == BorderMode::zero) {
        std::memset(y, 0, static_cast<size_t>(pixels) * kBlock * sizeof(float));
        continue;
      }
      const int64_t from = outside ? inside(i, p.height, p.mode) : i;
      const int64_t at = block * p.x_block + from * p.x_row;
      Row r{};
      r.x = p.x + at;
      r.residual = p.residual == nullptr ? nullptr : p.residual + at;
      r.kept = p.kept != nullptr && i >= p.kept_begin && i < p.kept_end ? p.kept + at : nullptr;
      if (p.mean != nullptr) r.mean = p.mean + channel, r.scale = p.scale + channel, r.shift = p.shift + channel;
      r.y = y + p.border_left * kBlock;
      r.width = p.width;
      r.slope = p.slope;
      transform_row(r);
      borders(r.y, p.width, p.border_left, p.border_right, p.mode);
    }
  }
}

void image_gather(const ImageGatherParams& p) {
  const int blocks = (p.channels + p.pixel - 1) / p.pixel;
  for (int block = 0; block < blocks; ++block) {
    const int first = block * p.pixel;
    const int channels = p.channels - first < p.pixel ? p.channels - first : p.pixel;
    for (int i = 0; i < p.row_count; ++i) {
      float* y = p.y + block * p.y_block + i * p.y_row;
      std::memset(y, 0, static_cast<size_t>(p.column_count) * p.pixel * sizeof(float));
      if (p.rows[i] < 0) continue;
      for (int c = 0; c < channels; ++c) {
        const int64_t row = p.rows[i];
        if (p.planes != nullptr) {
          const float* x = p.planes + ((first + c) * static_cast<int64_t>(p.height) + row) * p.width;
          for (int j = 0; j < p.column_count; ++j) y[j * p.pixel + c] = p.columns[j] < 0 ? 0.0f : x[p.columns[j]];
        } else {
          const uint8_t* x = p.bytes + row * p.width * p.channels + first + c;
          for (int j = 0; j < p.column_count; ++j) {
            const int64_t column = p.columns[j];
            y[j * p.pixel + c] = column < 0 ? 0.0f : kLevels.of[x[column * p.channels]];
          }
        }
      }
    }
  }
}

}  // namespace gancomp::GANCOMP_ISA_NAME
