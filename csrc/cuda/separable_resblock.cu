// The separable residual block. Depthwise convolution and InstanceNorm both stay within a plane, so one block of threads does
// [norm, ReLU, dropout, reflect, depthwise, norm] of a plane in shared memory; between two such kernels lies a product of
// matrices. Backward likewise.
#include "depthwise.cuh"
#include "sliced_conv2d.cuh"

namespace gancomp::cuda {
namespace {

// What a plane kernel has in common forward and backward: d = norm(D h), where h is the input itself or, with kAfterNorm,
// drop(relu(norm(input))).
struct Half {
  int images, h, w;
  Channels channels;
  ConstPlanes x;          // the input
  const double* in_mean;  // of the input's planes, with kAfterNorm
  const float* in_rstd;
  const uint8_t* mask;  // contiguous, or null
  float scale;
  Parameter filter;
  float* planes;  // global memory for planes that are too large for shared memory, or null
};

struct HalfForward {
  Half half;
  double* in_mean;  // written with kAfterNorm
  float* in_rstd;
  Planes d;
  float* rstd;
  float eps;
};

struct HalfBackward {
  Half half;
  ConstPlanes grad, d;  // the gradient of d, and d
  const float* rstd;
  ConstPlanes residual;  // added to the gradient of the input, without kAfterNorm
  Planes grad_x;
  float* partials;  // [9, N, C] of the filter's gradient
};

constexpr size_t kMostShared = 96 * 1024;  // per block, on every GPU since sm_80

// Shared memory: scratch for sums, then kPlanes planes of floats unless they are in global memory. kFast: they are not.
template <int kPlanes, bool kFast>
__device__ inline float* planes_of(const Half& p, unsigned char* shared, int sums) {
  float* here = reinterpret_cast<float*>(shared) + sums * 32;
  if constexpr (kFast) {
    return here;
  } else {
    return p.planes == nullptr ? here : p.planes + static_cast<int64_t>(blockIdx.x) * kPlanes * p.h * p.w;
  }
}

__device__ inline float activated(float z, const uint8_t* mask, float scale, int pixel) {
  const float value = fmaxf(z, 0.0f);
  return mask == nullptr ? value : mask[pixel] != 0 ? value * scale : 0.0f;
}

__device__ inline const uint8_t* mask_of(const Half& p, int plane) {
  return p.mask == nullptr ? nullptr : p.mask + static_cast<int64_t>(plane) * p.h * p.w;
}

template <typename T, bool kAfterNorm, bool kFast>
__global__ void __launch_bounds__(kMostThreads, 1) separable_half_kernel(HalfForward p) {
  constexpr int kVec = kFast ? kVector<T> : 1;
  GANCOMP_SHARED(shared);
  const Half& half = p.half;
  const int n = blockIdx.x / half.channels.most, c = blockIdx.x % half.channels.most, size = half.h * half.w;
  if (c >= active(half.channels)) return;
  float* scratch = reinterpret_cast<float*>(shared);
  float* plane = planes_of<1, kFast>(half, shared, 2);

  const Pixels<T, kVec, kFast> pixels(plane_of<T>(half.x, n, c), size);
  Moments in = known_moments(0.0, 1.0f);
  if constexpr (kAfterNorm) {
    in = plane_moments(pixels, p.eps, scratch);
    if (threadIdx.x == 0) {
      p.in_mean[blockIdx.x] = in.mean();
      p.in_rstd[blockIdx.x] = in.rstd;
    }
  }
  const uint8_t* mask = mask_of(half, blockIdx.x);
  pixels.each([&](int start, const float (&values)[kVec]) {
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      plane[start + j] = kAfterNorm ? activated(in.normalised(values[j]), mask, half.scale, start + j) : values[j];
    }
  });
  __syncthreads();

  float taps[9];
  read_filter<T>(half.filter, c, taps);
  const auto filtered = [&](int top, int column, float (&values)[kStripRows]) {
    correlate_strip(plane, taps, half.h, half.w, top, column, values);
  };
  Strips<kFast, decltype(filtered)> strips(half.h, half.w, filtered);
  float total[1] = {0}, sums[2] = {0, 0};
  strips.each([&](int, float value) { total[0] += value; });
  block_sum(total, scratch);
  const float guess = total[0] / static_cast<float>(size);
  strips.each([&](int, float value) {
    const float d = value - guess;
    sums[0] += d;
    sums[1] += d * d;
  });
  block_sum(sums, scratch);
  const Moments out = moments_of(guess, sums, size, p.eps);
  if (threadIdx.x == 0) p.rstd[blockIdx.x] = out.rstd;
  T* d = plane_of<T>(p.d, n, c);
  strips.each([&](int pixel, float value) { d[pixel] = from_float<T>(out.normalised(value)); });
}

template <typename T, bool kAfterNorm, bool kFast>
__global__ void __launch_bounds__(kMostThreads, 1) separable_half_backward_kernel(HalfBackward p) {
  constexpr int kVec = kFast ? kVector<T> : 1;
  GANCOMP_SHARED(shared);
  const Half& half = p.half;
  const int n = blockIdx.x / half.channels.most, c = blockIdx.x % half.channels.most, size = half.h * half.w;
  if (c >= active(half.channels)) return;
  const float count = static_cast<float>(size);
  float* scratch = reinterpret_cast<float*>(shared);
  float* gradient = planes_of<2, kFast>(half, shared, 9);  // of D's output
  float* image = gradient + size;                          // D's input
  const T *x = plane_of<T>(half.x, n, c), *d = plane_of<T>(p.d, n, c);
  const uint8_t* mask = mask_of(half, blockIdx.x);
  const Moments in = kAfterNorm ? known_moments(half.in_mean[blockIdx.x], half.in_rstd[blockIdx.x]) : known_moments(0.0, 1.0f);

  // The inner norm.
  float sums[2] = {0, 0};
  {
    const Pixels<T, kVec, kFast> grads(plane_of<T>(p.grad, n, c), size);
    grads.each([&](int start, const float (&g)[kVec]) {
      float values[kVec];
      load<kVec>(d + start, values);
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        sums[0] += g[j];
        sums[1] += g[j] * values[j];
      }
    });
    block_sum(sums, scratch);
    const float rstd = p.rstd[blockIdx.x], offset = sums[0] / count, slope = sums[1] / count;
    grads.each([&](int start, const float (&g)[kVec]) {
      float values[kVec], inputs[kVec];
      load<kVec>(d + start, values);
      load<kVec>(x + start, inputs);
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        gradient[start + j] = rstd * (g[j] - offset - values[j] * slope);
        image[start + j] = kAfterNorm ? activated(in.normalised(inputs[j]), mask, half.scale, start + j) : inputs[j];
      }
    });
  }
  __syncthreads();

  // The filter.
  {
    float filter_sums[9] = {};
    for (int strip = threadIdx.x; strip < strips_of(half.h, half.w); strip += blockDim.x) {
      const int column = strip % half.w;
      add_filter_gradient(
          image, half.h, half.w, strip / half.w * kStripRows, column, [&](int row) { return gradient[row * half.w + column]; },
          filter_sums);
    }
    block_sum(filter_sums, scratch);
    if (threadIdx.x == 0) {
#pragma unroll
      for (int k = 0; k < 9; ++k) {
        p.partials[static_cast<int64_t>(k) * half.images * half.channels.most + blockIdx.x] = filter_sums[k];
      }
    }
  }

  // The input.
  float taps[9];
  read_filter<T>(half.filter, c, taps);
  const auto adjoint = [&](int top, int column, float (&values)[kStripRows]) {
    adjoint_strip(gradient, taps, half.h, half.w, top, column, values);
  };
  Strips<kFast, decltype(adjoint)> strips(half.h, half.w, adjoint);
  T* grad_x = plane_of<T>(p.grad_x, n, c);
  if constexpr (kAfterNorm) {
    const auto through = [&](int pixel, float value) { return image[pixel] > 0.0f ? value * half.scale : 0.0f; };
    float in_sums[2] = {0, 0};
    strips.each([&](int pixel, float value) {
      const float g = through(pixel, value);
      in_sums[0] += g;
      in_sums[1] += g * in.normalised(to_float(x[pixel]));
    });
    block_sum(in_sums, scratch);
    const float offset = in_sums[0] / count, slope = in_sums[1] / count;
    strips.each([&](int pixel, float value) {
      const float z = in.normalised(to_float(x[pixel]));
      grad_x[pixel] = from_float<T>(in.rstd * (through(pixel, value) - offset - z * slope));
    });
  } else {
    const T* residual = plane_of<T>(p.residual, n, c);
    strips.each([&](int pixel, float value) { grad_x[pixel] = from_float<T>(value + to_float(residual[pixel])); });
  }
}

int64_t aligned(int64_t bytes) { return ceil_div(bytes, 16) * 16; }
ConstPlanes readable(const Planes& planes) { return {planes.data, planes.stride_n, planes.stride_c}; }

bool fits(int64_t pixels, int planes, size_t sums) {
  return static_cast<size_t>(planes * pixels) * sizeof(float) + sums * kSumScratch <= kMostShared;
}

template <typename T>
bool is_fast(const Half& half, const ConstPlanes& a, const ConstPlanes& b) {
  const int64_t pixels = static_cast<int64_t>(half.h) * half.w;
  return strips_are_kept(half.h, half.w) && vectors_fit<T>(half.x, pixels) && vectors_fit<T>(a, pixels) &&
         vectors_fit<T>(b, pixels);
}

const char* half_forward(const HalfForward& p, bool after_norm, Dtype dtype, void* stream) {
  const Half& half = p.half;
  const dim3 grid(static_cast<unsigned>(half.images) * half.channels.most);
  const int threads = strip_threads(half.h, half.w);
  const size_t plane = half.planes == nullptr ? static_cast<size_t>(half.h) * half.w * sizeof(float) : 0;
  return with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const auto run = [&](auto after, auto fast) {
      return launch(separable_half_kernel<T, decltype(after)::value, decltype(fast)::value>, grid, threads,
                    2 * kSumScratch + plane, stream, p);
    };
    const auto with_after = [&](auto fast) { return after_norm ? run(std::true_type{}, fast) : run(std::false_type{}, fast); };
    return is_fast<T>(half, {}, {}) ? with_after(std::true_type{}) : with_after(std::false_type{});
  });
}

const char* half_backward(const HalfBackward& p, bool after_norm, Dtype dtype, const Gradient& grad_filter, void* stream) {
  const Half& half = p.half;
  const dim3 grid(static_cast<unsigned>(half.images) * half.channels.most);
  const int threads = strip_threads(half.h, half.w);
  const size_t planes = half.planes == nullptr ? static_cast<size_t>(2 * half.h * half.w) * sizeof(float) : 0;
  const char* error = with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const auto run = [&](auto after, auto fast) {
      return launch(separable_half_backward_kernel<T, decltype(after)::value, decltype(fast)::value>, grid, threads,
                    9 * kSumScratch + planes, stream, p);
    };
    const auto with_after = [&](auto fast) { return after_norm ? run(std::true_type{}, fast) : run(std::false_type{}, fast); };
    return is_fast<T>(half, p.grad, p.d) ? with_after(std::true_type{}) : with_after(std::false_type{});
  });
  if (error != nullptr || grad_filter.data == nullptr) return error;
  return sum_images({p.partials, half.channels, half.images, 9, grad_filter}, dtype, stream);
}

ConvShape pointwise(const SeparableResblock& p, const Channels& in, const Channels& out) {
  ConvShape shape;
  shape.images = p.images;
  shape.in = in;
  shape.out = out;
  shape.h = shape.out_h = p.h;
  shape.w = shape.out_w = p.w;
  shape.kernel_h = shape.kernel_w = 1;
  return shape;
}

Half first_half(const SeparableResblock& p, float* planes) {
  return {p.images, p.h, p.w, p.stream, p.x, nullptr, nullptr, nullptr, 1.0f, p.depthwise1, planes};
}

Half second_half(const SeparableResblock& p, float* planes) {
  const float scale = p.mask == nullptr ? 1.0f : p.scale;
  return {p.images, p.h,   p.w,          p.hidden, readable(p.first.pointwise), p.first.out_mean, p.first.out_rstd,
          p.mask,   scale, p.depthwise2, planes};
}

int widest(const SeparableResblock& p) { return p.stream.most > p.hidden.most ? p.stream.most : p.hidden.most; }

int64_t scratch_planes(const SeparableResblock& p, int planes, size_t sums) {
  const int64_t pixels = static_cast<int64_t>(p.h) * p.w;
  return fits(pixels, planes, sums) ? 0 : planes * pixels * p.images * widest(p) * static_cast<int64_t>(sizeof(float));
}

// The workspace of the backward pass.
struct Layout {
  int64_t stream, hidden;  // images of so many channels, in turn the gradients of what the pointwise convolutions took and gave
  int64_t planes, partials, parts;  // parts: of a pointwise weight's gradient, when planes and partials are not in use
  int64_t size;
};

Layout layout_of(const SeparableResblock& p) {
  const int64_t image = static_cast<int64_t>(p.images) * p.h * p.w * element_size(p.dtype);
  const int64_t planes = scratch_planes(p, 2, 9), partials = 9 * static_cast<int64_t>(p.images) * widest(p) * 4;
  const int64_t part1 = weight_gradient_workspace(pointwise(p, p.stream, p.hidden), p.dtype);
  const int64_t part2 = weight_gradient_workspace(pointwise(p, p.hidden, p.stream), p.dtype);
  Layout l;
  l.stream = 0;
  l.hidden = l.stream + aligned(image * p.stream.most);
  l.planes = l.parts = l.hidden + aligned(image * p.hidden.most);
  l.partials = l.planes + aligned(planes);
  const int64_t of_planes = l.partials + partials, of_parts = l.parts + (part1 > part2 ? part1 : part2);
  l.size = of_planes > of_parts ? of_planes : of_parts;
  return l;
}

}  // namespace

int64_t separable_resblock_workspace(const SeparableResblock& p) { return scratch_planes(p, 1, 2); }

const char* separable_resblock(const SeparableResblock& p, void* stream) {
  float* planes = separable_resblock_workspace(p) > 0 ? static_cast<float*>(p.workspace) : nullptr;
  const HalfForward first = {first_half(p, planes), nullptr, nullptr, p.first.depthwise, p.first.rstd, p.eps};
  const char* error = half_forward(first, false, p.dtype, stream);
  if (error == nullptr) {
    error = gather({pointwise(p, p.stream, p.hidden), readable(p.first.depthwise), p.pointwise1, {}, p.first.pointwise, false},
                   p.dtype, p.tf32, stream);
  }
  if (error == nullptr) {
    const HalfForward second = {second_half(p, planes), p.first.out_mean, p.first.out_rstd,
                                p.second.depthwise,     p.second.rstd,    p.eps};
    error = half_forward(second, true, p.dtype, stream);
  }
  if (error == nullptr) {
    error =
        gather({pointwise(p, p.hidden, p.stream), readable(p.second.depthwise), p.pointwise2, {}, p.second.pointwise, false},
               p.dtype, p.tf32, stream);
  }
  if (error != nullptr) return error;
  InstanceNormAct norm;
  norm.dtype = p.dtype;
  norm.images = p.images;
  norm.pixels = p.h * p.w;
  norm.channels = p.stream;
  norm.x = readable(p.second.pointwise);
  norm.residual = p.x;
  norm.y = p.y;
  norm.mean = p.second.out_mean;
  norm.rstd = p.second.out_rstd;
  norm.eps = p.eps;
  return instance_norm_act(norm, stream);
}

int64_t separable_resblock_backward_workspace(const SeparableResblockBackward& p) { return layout_of(p.forward).size; }

const char* separable_resblock_backward(const SeparableResblockBackward& p, void* stream) {
  const SeparableResblock& f = p.forward;
  const Layout layout = layout_of(f);
  char* workspace = static_cast<char*>(p.workspace);
  const int64_t pixels = static_cast<int64_t>(f.h) * f.w;
  const Planes of_stream = {workspace + layout.stream, pixels * f.stream.most, pixels};
  const Planes of_hidden = {workspace + layout.hidden, pixels * f.hidden.most, pixels};
  float* planes = layout.partials > layout.planes ? reinterpret_cast<float*>(workspace + layout.planes) : nullptr;
  float* partials = reinterpret_cast<float*>(workspace + layout.partials);
  float* parts = reinterpret_cast<float*>(workspace + layout.parts);
  const ConvShape shape1 = pointwise(f, f.stream, f.hidden), shape2 = pointwise(f, f.hidden, f.stream);
  InstanceNormActBackward norm;
  norm.dtype = f.dtype;
  norm.images = f.images;
  norm.pixels = f.h * f.w;
  norm.channels = f.stream;
  norm.grad = p.grad;
  norm.x = readable(f.second.pointwise);
  norm.mean = f.second.out_mean;
  norm.rstd = f.second.out_rstd;
  norm.grad_x = of_stream;
  const char* error = instance_norm_act_backward(norm, stream);
  if (error == nullptr && p.grad_pointwise2.data != nullptr) {
    error = weight_gradient(
        {shape2, readable(of_stream), readable(f.second.depthwise), p.grad_pointwise2, p.pointwise2_in, parts, 0, 0}, f.dtype,
        f.tf32, stream);
  }
  if (error == nullptr) {
    error = gather({shape1, readable(of_stream), transposed(f.pointwise2), {}, of_hidden, false}, f.dtype, f.tf32, stream);
  }
  if (error == nullptr) {
    // In place: a block reads its plane of the gradient before it writes it.
    const HalfBackward second = {
        second_half(f, planes), readable(of_hidden), readable(f.second.depthwise), f.second.rstd, {}, of_hidden, partials};
    error = half_backward(second, true, f.dtype, p.grad_depthwise2, stream);
  }
  if (error == nullptr && p.grad_pointwise1.data != nullptr) {
    error = weight_gradient(
        {shape1, readable(of_hidden), readable(f.first.depthwise), p.grad_pointwise1, p.pointwise1_in, parts, 0, 0}, f.dtype,
        f.tf32, stream);
  }
  if (error == nullptr) {
    error = gather({shape2, readable(of_hidden), transposed(f.pointwise1), {}, of_stream, false}, f.dtype, f.tf32, stream);
  }
  if (error == nullptr) {
    const HalfBackward first = {
        first_half(f, planes), readable(of_stream), readable(f.first.depthwise), f.first.rstd, p.grad, p.grad_x, partials};
    error = half_backward(first, false, f.dtype, p.grad_depthwise1, stream);
  }
  return error;
}

}  // namespace gancomp::cuda
