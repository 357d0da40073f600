// SPADE's modulation. With statistics of planes, one kernel; with those of a channel in all images, one that looks at every
// plane and one that merges what it found, which is the same in every block.
#include "common.cuh"

namespace gancomp::cuda {
namespace {

// What a plane contributes to the statistics of its channel, or to the gradient through them: two numbers, [N, C, 2].
struct Share {
  double first, second;
};

// The shares of a channel added up in order by one thread, and handed to all; two doubles of shared memory.
__device__ inline Share merged(const Share* shares, int images, int channels, int c, double* shared) {
  if (threadIdx.x == 0) {
    shared[0] = shared[1] = 0;
    for (int n = 0; n < images; ++n) {
      shared[0] += shares[static_cast<int64_t>(n) * channels + c].first;
      shared[1] += shares[static_cast<int64_t>(n) * channels + c].second;
    }
  }
  __syncthreads();
  return {shared[0], shared[1]};
}

template <typename T, int kVec, bool kKept>
__global__ void __launch_bounds__(kMostThreads) spade_plane_statistics_kernel(SpadeModulate p) {
  GANCOMP_SHARED(shared);
  const int n = blockIdx.x / p.channels.most, c = blockIdx.x % p.channels.most;
  if (c >= active(p.channels)) return;
  const Pixels<T, kVec, kKept> pixels(plane_of<T>(p.x, n, c), p.pixels);
  const Moments m = plane_moments(pixels, p.eps, reinterpret_cast<float*>(shared));
  if (threadIdx.x != 0) return;
  // 1 / rstd^2 - eps would lose a small variance.
  static_cast<Share*>(p.workspace)[blockIdx.x] = {m.mean(), static_cast<double>(m.variance)};
}

// Mean and variance of a channel from those of its planes, which have equally many pixels.
__device__ inline Moments channel_moments(const SpadeModulate& p, int c, double* shared) {
  if (threadIdx.x == 0) {
    const Share* shares = static_cast<const Share*>(p.workspace);
    double mean = 0, variance = 0;
    for (int n = 0; n < p.images; ++n) mean += shares[static_cast<int64_t>(n) * p.channels.most + c].first;
    mean /= p.images;
    for (int n = 0; n < p.images; ++n) {
      const Share& share = shares[static_cast<int64_t>(n) * p.channels.most + c];
      variance += share.second + (share.first - mean) * (share.first - mean);
    }
    shared[0] = mean;
    shared[1] = variance / p.images;
  }
  __syncthreads();
  const float variance = static_cast<float>(shared[1]);
  return moments_of(shared[0], variance, p.eps);
}

template <typename T, int kVec, bool kKept>
__global__ void __launch_bounds__(kMostThreads) spade_modulate_kernel(SpadeModulate p) {
  GANCOMP_SHARED(shared);
  const int n = blockIdx.x / p.channels.most, c = blockIdx.x % p.channels.most;
  if (c >= active(p.channels)) {
    // Running averages take these over, whole.
    if (p.norm == SpadeNorm::kBatch && n == 0 && threadIdx.x == 0) {
      p.mean[c] = 0;
      p.variance[c] = 0;
    }
    return;
  }
  const Pixels<T, kVec, kKept> pixels(plane_of<T>(p.x, n, c), p.pixels);
  Moments m;
  if (p.norm == SpadeNorm::kInstance) {
    m = plane_moments(pixels, p.eps, reinterpret_cast<float*>(shared));
  } else if (p.norm == SpadeNorm::kBatch) {
    m = channel_moments(p, c, reinterpret_cast<double*>(shared));
  } else {
    m = known_moments(p.mean[c], p.rstd[c]);
  }
  const int place = p.norm == SpadeNorm::kInstance ? blockIdx.x : c;
  if (threadIdx.x == 0 && p.norm != SpadeNorm::kGiven && (p.norm == SpadeNorm::kInstance || n == 0)) {
    p.mean[place] = m.mean();
    p.rstd[place] = m.rstd;
    if (p.norm == SpadeNorm::kBatch) p.variance[place] = m.variance;
  }
  const T *gamma = plane_of<T>(p.gamma, n, c), *beta = plane_of<T>(p.beta, n, c);
  T* y = plane_of<T>(p.y, n, c);
  pixels.each([&](int start, float (&values)[kVec]) {
    float scales[kVec], shifts[kVec];
    load<kVec>(gamma + start, scales);
    load<kVec>(beta + start, shifts);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const float value = fmaf(m.normalised(values[j]), 1.0f + scales[j], shifts[j]);
      values[j] = value > 0.0f ? value : value * p.slope;
    }
    store<kVec>(y + start, values);
  });
}

// Looks at a plane twice: for the sums over g, the gradient by the normalised value, and over its product with that value; and
// for the gradients. kSums: the first alone, kApply: the second alone, with the sums of all images.
enum class Pass { kBoth, kSums, kApply };

template <typename T, int kVec, Pass kPass>
__global__ void __launch_bounds__(kMostThreads) spade_modulate_backward_kernel(SpadeModulateBackward p) {
  GANCOMP_SHARED(shared);
  const int n = blockIdx.x / p.channels.most, c = blockIdx.x % p.channels.most;
  if (c >= active(p.channels)) return;
  const int place = p.norm == SpadeNorm::kInstance ? blockIdx.x : c;
  const Moments m = known_moments(p.mean[place], p.rstd[place]);
  const T *grad = plane_of<T>(p.grad, n, c), *gamma = plane_of<T>(p.gamma, n, c), *beta = plane_of<T>(p.beta, n, c);
  const Pixels<T, kVec, false> pixels(plane_of<T>(p.x, n, c), p.pixels);
  // values: the normalised x; scales: 1 + gamma; g: the gradient of what the activation sees
  const auto look = [&](int start, float (&values)[kVec], float (&scales)[kVec], float (&g)[kVec]) {
    float shifts[kVec];
    load<kVec>(grad + start, g);
    load<kVec>(gamma + start, scales);
    load<kVec>(beta + start, shifts);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      values[j] = m.normalised(values[j]);
      scales[j] += 1.0f;
      if (!(fmaf(values[j], scales[j], shifts[j]) > 0.0f)) g[j] *= p.slope;
    }
  };

  float sums[2] = {0, 0};
  if constexpr (kPass != Pass::kApply) {
    pixels.each([&](int start, float (&values)[kVec]) {
      float scales[kVec], g[kVec];
      look(start, values, scales, g);
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        sums[0] += g[j] * scales[j];
        sums[1] += g[j] * scales[j] * values[j];
      }
    });
    block_sum(sums, reinterpret_cast<float*>(shared));
    if constexpr (kPass == Pass::kSums) {
      if (threadIdx.x == 0) static_cast<Share*>(p.workspace)[blockIdx.x] = {sums[0], sums[1]};
      return;
    }
  } else if (p.norm == SpadeNorm::kBatch) {
    const Share* shares = static_cast<const Share*>(p.workspace);
    const Share total = merged(shares, p.images, p.channels.most, c, reinterpret_cast<double*>(shared));
    sums[0] = static_cast<float>(total.first / p.images);
    sums[1] = static_cast<float>(total.second / p.images);
  }
  const float offset = sums[0] / static_cast<float>(p.pixels), slope = sums[1] / static_cast<float>(p.pixels);
  T *grad_x = plane_of<T>(p.grad_x, n, c), *grad_gamma = plane_of<T>(p.grad_gamma, n, c);
  T* grad_beta = plane_of<T>(p.grad_beta, n, c);
  pixels.each([&](int start, float (&values)[kVec]) {
    float scales[kVec], g[kVec];
    look(start, values, scales, g);
    store<kVec>(grad_beta + start, g);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      scales[j] = m.rstd * (g[j] * scales[j] - offset - values[j] * slope);
      g[j] *= values[j];
    }
    store<kVec>(grad_x + start, scales);
    store<kVec>(grad_gamma + start, g);
  });
}

int64_t shares(SpadeNorm norm, int images, const Channels& channels) {
  return norm == SpadeNorm::kBatch ? static_cast<int64_t>(images) * channels.most * static_cast<int64_t>(sizeof(Share)) : 0;
}

template <typename T, typename Function>
const char* with_vectors(bool vectors, const Function& function) {
  return vectors ? function(std::integral_constant<int, kVector<T>>{}) : function(std::integral_constant<int, 1>{});
}

}  // namespace

int64_t spade_modulate_workspace(const SpadeModulate& p) { return shares(p.norm, p.images, p.channels); }
int64_t spade_modulate_backward_workspace(const SpadeModulateBackward& p) { return shares(p.norm, p.images, p.channels); }

const char* spade_modulate(const SpadeModulate& p, void* stream) {
  const dim3 grid(static_cast<unsigned>(p.images) * p.channels.most);
  const int threads = plane_threads(p.pixels);
  return with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const bool vectors = vectors_fit<T>(p.x, p.pixels) && vectors_fit<T>(p.gamma, p.pixels) &&
                         vectors_fit<T>(p.beta, p.pixels) && vectors_fit<T>(p.y, p.pixels);
    return with_vectors<T>(vectors, [&](auto vec) {
      const auto run = [&](auto kept) {
        constexpr int kVec = decltype(vec)::value;
        constexpr bool kKept = decltype(kept)::value;
        if (p.norm == SpadeNorm::kBatch) {
          void (*const statistics)(SpadeModulate) = spade_plane_statistics_kernel<T, kVec, kKept>;
          if (const char* error = launch(statistics, grid, threads, 2 * kSumScratch, stream, p)) return error;
        }
        return launch(spade_modulate_kernel<T, kVec, kKept>, grid, threads, 2 * kSumScratch, stream, p);
      };
      return plane_is_kept(p.pixels) ? run(std::true_type{}) : run(std::false_type{});
    });
  });
}

const char* spade_modulate_backward(const SpadeModulateBackward& p, void* stream) {
  const dim3 grid(static_cast<unsigned>(p.images) * p.channels.most);
  const int threads = plane_threads(p.pixels);
  return with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const bool vectors = vectors_fit<T>(p.x, p.pixels) && vectors_fit<T>(p.gamma, p.pixels) &&
                         vectors_fit<T>(p.beta, p.pixels) && vectors_fit<T>(p.grad, p.pixels) &&
                         vectors_fit<T>(p.grad_x, p.pixels) && vectors_fit<T>(p.grad_gamma, p.pixels) &&
                         vectors_fit<T>(p.grad_beta, p.pixels);
    return with_vectors<T>(vectors, [&](auto vec) {
      constexpr int kVec = decltype(vec)::value;
      const auto run = [&](auto kernel) { return launch(kernel, grid, threads, 2 * kSumScratch, stream, p); };
      if (p.norm == SpadeNorm::kInstance) return run(spade_modulate_backward_kernel<T, kVec, Pass::kBoth>);
      if (p.norm == SpadeNorm::kBatch) {
        if (const char* error = run(spade_modulate_backward_kernel<T, kVec, Pass::kSums>)) return error;
      }
      return run(spade_modulate_backward_kernel<T, kVec, Pass::kApply>);
    });
  });
}

}  // namespace gancomp::cuda
