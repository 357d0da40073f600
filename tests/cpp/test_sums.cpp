// How many digits the sums of the engine's convolutions keep.
//
// Statistics are as exact as those in double, also where a plane begins with pixels unlike the others: a variance that lost
// digits makes every pixel of its channel wrong, which no test of random images shows. Products are summed in parts.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "gancomp/ops.h"

namespace {

using namespace gancomp;

constexpr int kRows = 8, kWidth = 61, kStrips = 3, kHeight = kStrips * kRows, kBorder = 1;
constexpr int64_t kInRow = (kWidth + 2 * kBorder) * kBlock, kOutRow = kWidth * kBlock;

// Gathered rows of one block with a border: noise, in every row brighter from the left end on, like a wall beside a street.
std::vector<float> image(float step) {
  std::mt19937 random(1);
  std::normal_distribution<float> noise(0.5f, 0.1f);
  std::vector<float> x((kHeight + 2 * kBorder) * kInRow);
  for (size_t i = 0; i < x.size(); ++i) x[i] = noise(random) + (i % kInRow / kBlock < 7 ? step : 0.0f);
  return x;
}

// Runs `strip` over the plane, and compares mean and 1 / deviation of what it wrote with those in double.
void check_statistics(const CpuKernels& kernels, int blocks,
                      const std::function<void(const float* x, float* y, int row, const ChannelSums& sums)>& strip) {
  const int channels = blocks * kBlock;
  for (const float step : {0.0f, 1.0f, -3.0f}) {
    const std::vector<float> x = image(step);
    std::vector<float> y(static_cast<size_t>(blocks) * kHeight * kOutRow, NAN), sums(kStrips * kSumRows * channels, NAN);
    std::vector<int64_t> counts;
    for (int s = 0; s < kStrips; ++s) {
      ChannelSums at;
      at.pivot = sums.data() + s * kSumRows * channels;
      at.sum = at.pivot + channels, at.squares = at.sum + channels;
      strip(x.data(), y.data(), s * kRows, at);
      counts.push_back(kRows * kWidth);
    }
    std::vector<float> found(3 * channels);
    MergeSumsParams merge;
    merge.sums = sums.data(), merge.counts = counts.data(), merge.strips = kStrips, merge.channels = channels;
    merge.eps = 1e-5f;
    merge.mean = found.data(), merge.scale = merge.mean + channels, merge.shift = merge.scale + channels;
    kernels.merge_sums(merge);
    double worst_mean = 0, worst_scale = 0;
    for (int c = 0; c < channels; ++c) {
      const float* plane = y.data() + c / kBlock * kHeight * kOutRow + c % kBlock;
      double mean = 0, variance = 0;
      for (int i = 0; i < kHeight * kWidth; ++i) mean += plane[i * kBlock] / double{kHeight * kWidth};
      for (int i = 0; i < kHeight * kWidth; ++i) {
        variance += (plane[i * kBlock] - mean) * (plane[i * kBlock] - mean) / double{kHeight * kWidth};
      }
      const double deviation = std::sqrt(variance + double{merge.eps});
      worst_mean = std::max(worst_mean, std::fabs(merge.mean[c] - mean) / (deviation + std::fabs(mean)));
      worst_scale = std::max(worst_scale, std::fabs(merge.scale[c] * deviation - 1));
    }
    CHECK(worst_mean <= 2 * FLT_EPSILON, "step %g: the mean is off by %g", step, worst_mean);
    CHECK(worst_scale <= 4 * FLT_EPSILON, "step %g: the deviation is off by %g", step, worst_scale);
  }
}

std::vector<float> weights(size_t size) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> values(size);
  for (float& value : values) value = normal(random);
  return values;
}

// A pointwise convolution of many channels against double, with one chain of fused multiply-adds as the measure.
void check_parts(const CpuKernels& kernels) {
  constexpr int kInBlocks = 32, kChannels = kInBlocks * kBlock;
  const std::vector<float> filters = weights(kChannels * kBlock);
  std::vector<float> x(kInBlocks * kOutRow), y(kOutRow, NAN);
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::fabs(filters[i % filters.size()]);
  BlockedConvParams c;
  c.x = x.data(), c.x_block = kOutRow;
  c.in_channels = kChannels;
  c.weight = filters.data();
  c.out_blocks = 1;
  c.y = y.data();
  c.rows = 1, c.width = kWidth;
  kernels.blocked_conv(c);
  double squares = 0, chain_squares = 0;
  for (int i = 0; i < kWidth; ++i) {
    for (int o = 0; o < kBlock; ++o) {
      double exact = 0;
      float chain = 0;
      for (int k = 0; k < kChannels; ++k) {
        const float weight = filters[k * kBlock + o], pixel = x[k / kBlock * kOutRow + i * kBlock + k % kBlock];
        exact += double{weight} * pixel;
        chain = std::fma(weight, pixel, chain);
      }
      squares += (y[i * kBlock + o] - exact) * (y[i * kBlock + o] - exact);
      chain_squares += (chain - exact) * (chain - exact);
    }
  }
  CHECK(squares < chain_squares / 2, "squared errors %g, those of one chain %g", squares, chain_squares);
}

void test(const CpuKernels& kernels) {
  where = std::string(kernels.isa) + " products";
  check_parts(kernels);
  where = std::string(kernels.isa) + " depthwise";
  const std::vector<float> filters = weights(9 * kBlock);
  check_statistics(kernels, 1, [&](const float* x, float* y, int row, const ChannelSums& sums) {
    BlockedDepthwiseParams d;
    d.x = x + row * kInRow, d.x_row = kInRow;
    d.weight = filters.data();
    d.y = y + row * kOutRow, d.y_row = kOutRow;
    d.rows = kRows, d.width = kWidth;
    d.sums = sums;
    kernels.blocked_depthwise(d);
  });

  where = std::string(kernels.isa) + " convolution";
  constexpr int kOutBlocks = 3;
  const std::vector<float> dense = weights(9 * kBlock * kOutBlocks * kBlock);
  check_statistics(kernels, kOutBlocks, [&](const float* x, float* y, int row, const ChannelSums& sums) {
    BlockedConvParams c;
    c.x = x + row * kInRow, c.x_row = kInRow;
    c.in_channels = kBlock, c.taps_h = c.taps_w = 3;
    c.weight = dense.data();
    c.out_blocks = kOutBlocks;
    c.y = y + row * kOutRow, c.y_block = kHeight * kOutRow, c.y_row = kOutRow;
    c.rows = kRows, c.width = kWidth;
    c.sums = sums;
    kernels.blocked_conv(c);
  });
}

}  // namespace

int main() {
  for (const char* const* isa = built_isas(); *isa != nullptr; ++isa) {
    if (const CpuKernels* const kernels = cpu_kernels_for(*isa)) test(*kernels);
  }
  return report();
}
