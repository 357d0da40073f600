// Mean and variance of planes from the sums of their strips (Chan, Golub and LeVeque 1983), in double.
#include <algorithm>
#include <cmath>

#include "vec.h"

namespace gancomp::GANCOMP_ISA_NAME {

void merge_sums(const MergeSumsParams& p) {
  for (int channel = 0; channel < p.channels; channel += kBlock) {
    double mean[kBlock] = {}, m2[kBlock] = {}, count = 0;
    for (int strip = 0; strip < p.strips; ++strip) {
      const float* pivot = p.sums + static_cast<int64_t>(strip) * kSumRows * p.channels + channel;
      const float *sum = pivot + p.channels, *squares = sum + p.channels;
      const double n = static_cast<double>(p.counts[strip]), total = count + n;
      GANCOMP_SIMD
      for (int c = 0; c < kBlock; ++c) {
        const double s = sum[c], strip_mean = pivot[c] + s / n, delta = strip_mean - mean[c];
        m2[c] += squares[c] - s * s / n + delta * delta * (count * n / total);
        mean[c] += delta * (n / total);
      }
      count = total;
    }
    if (p.low != nullptr) {
      const float* low = p.sums + 3 * p.channels + channel;
      for (int c = 0; c < kBlock; ++c) p.low[channel + c] = low[c], p.high[channel + c] = low[p.channels + c];
      for (int strip = 1; strip < p.strips; ++strip) {
        low += static_cast<int64_t>(kSumRows) * p.channels;
        for (int c = 0; c < kBlock; ++c) {
          p.low[channel + c] = std::min(p.low[channel + c], low[c]);
          p.high[channel + c] = std::max(p.high[channel + c], low[p.channels + c]);
        }
      }
    }
    GANCOMP_SIMD
    for (int c = 0; c < kBlock; ++c) {
      const double variance = m2[c] > 0 ? m2[c] / count : 0;
      const float rstd = static_cast<float>(1.0 / std::sqrt(variance + static_cast<double>(p.eps)));
      p.mean[channel + c] = static_cast<float>(mean[c]);
      p.scale[channel + c] = p.norm_scale == nullptr ? rstd : rstd * p.norm_scale[channel + c];
      p.shift[channel + c] = p.norm_shift == nullptr ? 0.0f : p.norm_shift[channel + c];
    }
  }
}

}  // namespace gancomp::GANCOMP_ISA_NAME
