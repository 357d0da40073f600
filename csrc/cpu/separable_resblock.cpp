// The residual block of depthwise-separable convolutions with norms in between. Norms and depthwise convolutions stay within a
// plane: a task takes a plane through all of them while it lies in the nearest cache. Between two such passes there is one
// matrix product. What a backward pass needs beyond the products' outputs it computes again, a plane at a time.
#include "depthwise.h"
#include "plane.h"
#include "pointwise.h"

namespace gancomp::GANCOMP_ISA_NAME {
namespace {

// What a norm does to a plane: (value - mean) * rstd.
struct Line {
  float mean, rstd;
};

Line line_of(const Moments& m, float eps) { return {static_cast<float>(m.mean), rstd(m.variance, eps)}; }

// --- where rows come from ---------------------------------------------------------------------------------------------

GANCOMP_INLINE float mask_as(const uint8_t* p, float) { return *p; }
GANCOMP_INLINE Vec mask_as(const uint8_t* p, Vec) {
  using Bytes = uint8_t __attribute__((vector_size(kLanes)));
  Bytes bytes;
  std::memcpy(&bytes, p, sizeof(bytes));
  return __builtin_convertvector(__builtin_convertvector(bytes, VecInt), Vec);
}

// ReLU of the normalised plane, with dropout.
struct Hidden {
  const float* plane;
  int64_t width;
  Line line;
  const uint8_t* mask;  // of the plane; null: ones
  float scale;

  template <int kRows>
  GANCOMP_INLINE void ask(int64_t row, int64_t column) const {
    ask_rows<kRows>(plane + row * width, column);
  }
  GANCOMP_INLINE void operator()(int64_t row, int64_t column, int64_t count, float* to) const {
    const float* from = plane + row * width + column;
    const float mean = line.mean, rstd = line.rstd, factor = scale;
    if (mask == nullptr) {
      each_in_row(count, [=](int64_t j, auto kind)
                             GANCOMP_FORCE { store(to + j, rectified((load_as<decltype(kind)>(from + j) - mean) * rstd)); });
    } else {
      const uint8_t* bytes = mask + row * width + column;
      each_in_row(count, [=](int64_t j, auto kind) GANCOMP_FORCE {
        const auto value = rectified((load_as<decltype(kind)>(from + j) - mean) * rstd);
        store(to + j, value * (mask_as(bytes + j, kind) * factor));
      });
    }
  }
};

// The gradient of a depthwise convolution's output from that of the plane it is normalised to: rstd * (g - normalised * mean of
// g * normalised). The mean of g is zero: it comes out of a norm's gradient, which has none, through a matrix.
struct NormGradient {
  const float *grad, *normalised;
  int64_t width;
  float rstd, slope;

  template <int kRows>
  GANCOMP_INLINE void ask(int64_t, int64_t) const {}  // norm_gradient() has just read them
  GANCOMP_INLINE void operator()(int64_t row, int64_t column, int64_t count, float* to) const {
    const float *g = grad + row * width + column, *d = normalised + row * width + column;
    const float r = rstd, s = slope;
    each_in_row(count, [=](int64_t j, auto kind) GANCOMP_FORCE {
      using T = decltype(kind);
      store(to + j, r * (load_as<T>(g + j) - load_as<T>(d + j) * s));
    });
  }
};

NormGradient norm_gradient(const float* grad, const float* normalised, int64_t height, int64_t width, float rstd) {
  double total[1] = {};
  add_terms<1>(height * width, total, [=](int64_t i, auto kind) GANCOMP_FORCE {
    using T = decltype(kind);
    return Terms<T, 1>{{stream_as<T>(grad + i) * stream_as<T>(normalised + i)}};
  });
  return {grad, normalised, width, rstd, static_cast<float>(total[0] / static_cast<double>(height * width))};
}

// --- planes -----------------------------------------------------------------------------------------------------------

// y = IN(D(source)), with new statistics.
template <typename Source>
Line normalised_depthwise(Input& window, const Source& source, const float* kernel, int64_t height, int64_t width, float eps,
                          float* y) {
  Vec sums[kRowBlock] = {};
  depthwise(window, source, kernel, height, width, [&](int64_t i, int o, int64_t j, Vec value, int64_t count) GANCOMP_FORCE {
    sums[o] += first_lanes(value, count);
    store_first(y + i * width + j, value, count);
  });
  Vec total = sums[0];
  for (int o = 1; o < kRowBlock; ++o) total += sums[o];
  const int64_t size = height * width;
  const float pivot = static_cast<float>(lane_total(total) / static_cast<double>(size));
  const Line l = line_of(moments_around(y, size, pivot), eps);
  each_element(size,
               [=](int64_t i, auto kind) GANCOMP_FORCE { store(y + i, (load_as<decltype(kind)>(y + i) - l.mean) * l.rstd); });
  return l;
}

// The same again, with the statistics of the first time.
template <typename Source>
void normalised_depthwise_again(Input& window, const Source& source, const float* kernel, int64_t height, int64_t width, Line l,
                                float* y) {
  depthwise(window, source, kernel, height, width, [&](int64_t i, int, int64_t j, Vec value, int64_t count) GANCOMP_FORCE {
    store_first(y + i * width + j, (value - l.mean) * l.rstd, count);
  });
}

// z = IN's gradient: rstd * (g - mean_g - normalised * mean of g * normalised), the normalised plane from what it was made of.
void apply_norm_gradient(const float* g, const float* before, int64_t size, Line l, float mean_g, float mean_gn, float* z) {
  const float slope = mean_gn * l.rstd;
  each_element(size, [=](int64_t i, auto kind) GANCOMP_FORCE {
    using T = decltype(kind);
    store(z + i, l.rstd * (load_as<T>(g + i) - mean_g - (load_as<T>(before + i) - l.mean) * slope));
  });
}

// The gradient of IN's input, for any gradient of its output.
void norm_backward(const float* g, const float* before, int64_t size, Line l, float* z) {
  double totals[2] = {};
  add_terms<2>(size, totals, [=](int64_t i, auto kind) GANCOMP_FORCE {
    using T = decltype(kind);
    const T value = stream_as<T>(g + i);
    return Terms<T, 2>{{value, value * (stream_as<T>(before + i) - l.mean)}};
  });
  const double count = static_cast<double>(size);
  apply_norm_gradient(g, before, size, l, static_cast<float>(totals[0] / count),
                      static_cast<float>(totals[1] / count * static_cast<double>(l.rstd)), z);
}

// --- the whole --------------------------------------------------------------------------------------------------------

// Planes of the workspace.
Images work(float* data, int64_t images, int64_t channels, const ConstImages& like) {
  const int64_t stride = separable_resblock_stride(like);
  return {data, images, channels, like.h, like.w, channels * stride, stride};
}

ConstImages readable(const Images& v) { return {v.data, v.n, v.c, v.h, v.w, v.stride_n, v.stride_c}; }

ConstMatrix transposed(const ConstMatrix& m) { return {m.data, m.column_stride, m.row_stride}; }

// The images that are worked on together, and where their planes' statistics are.
struct Group {
  int64_t first, images, channels, hidden;

  // The group that begins with image `first`; of no images at all there is one group of none.
  Group(const ConstImages& x, int64_t hidden, int64_t first)
      : first(first), images(x.n - first), channels(x.c), hidden(hidden) {
    if (images > separable_resblock_images(x)) images = separable_resblock_images(x);
  }

  template <typename T>
  PlanarView<T> of(PlanarView<T> view) const {
    view.data += first * view.stride_n;
    view.n = images;
    return view;
  }
  const uint8_t* mask(const uint8_t* masks, int64_t n, int64_t c, int64_t size) const {
    return masks == nullptr ? nullptr : masks + ((first + n) * hidden + c) * size;
  }

  // Places in `statistics` of the planes that the four norms are applied to.
  int64_t d1(int64_t n, int64_t c) const { return place(n, c); }
  int64_t z1(int64_t n, int64_t c) const { return place(n, channels + c); }
  int64_t d2(int64_t n, int64_t c) const { return place(n, channels + hidden + c); }
  int64_t z2(int64_t n, int64_t c) const { return place(n, channels + 2 * hidden + c); }

 private:
  int64_t place(int64_t n, int64_t plane) const { return 2 * ((first + n) * 2 * (channels + hidden) + plane); }
};

// Calls plane(n, c) for every plane of some images.
template <typename Plane>
GANCOMP_INLINE void each_plane(int64_t begin, int64_t end, int64_t channels, const Plane& plane) {
  for (int64_t i = begin; i < end; ++i) plane(i / channels, i % channels);
}

void keep(float* statistics, int64_t place, Line l) {
  if (statistics != nullptr) statistics[place] = l.mean, statistics[place + 1] = l.rstd;
}

void forward_group(const SeparableResblockParams& p, const Group& group, const Executor& executor) {
  const int64_t height = p.x.h, width = p.x.w, size = p.x.plane_size(), channels = p.x.c, hidden = p.hidden;
  const int64_t images = group.images;
  const SeparableResblockWeights& w = p.weights;
  const ConstImages x = group.of(p.x);
  const Images y = group.of(p.y);
  float* const spare = p.workspace + separable_resblock_planes(p.x, channels > hidden ? channels : hidden);
  const Images d1 = work(p.workspace, images, channels, x), d2 = work(p.workspace, images, hidden, x);
  const Images z1 = p.z1.data == nullptr ? work(spare, images, hidden, x) : group.of(p.z1);
  const Images z2 = p.z2.data == nullptr ? y : group.of(p.z2);

  executor.parallel_for(images * channels, [&](int64_t begin, int64_t end) {
    Input window;
    each_plane(begin, end, channels, [&](int64_t n, int64_t c) {
      const Line l = normalised_depthwise(window, Copied{x.plane(n, c), width}, w.depthwise1 + 9 * c, height, width, p.eps,
                                          d1.plane(n, c));
      keep(p.statistics, group.d1(n, c), l);
    });
  });
  pointwise(readable(d1), w.pointwise1, nullptr, z1, executor);
  executor.parallel_for(images * hidden, [&](int64_t begin, int64_t end) {
    Input window;
    each_plane(begin, end, hidden, [&](int64_t n, int64_t c) {
      const float* z = z1.plane(n, c);
      const Line l = line_of(moments(z, size), p.eps);
      const Hidden h{z, width, l, group.mask(p.mask, n, c, size), p.scale};
      keep(p.statistics, group.z1(n, c), l);
      keep(p.statistics, group.d2(n, c),
           normalised_depthwise(window, h, w.depthwise2 + 9 * c, height, width, p.eps, d2.plane(n, c)));
    });
  });
  pointwise(readable(d2), w.pointwise2, nullptr, z2, executor);
  executor.parallel_for(images * channels, [&](int64_t begin, int64_t end) {
    each_plane(begin, end, channels, [&](int64_t n, int64_t c) {
      const float *from = x.plane(n, c), *z = z2.plane(n, c);
      float* to = y.plane(n, c);
      const Line l = line_of(moments(z, size), p.eps);
      keep(p.statistics, group.z2(n, c), l);
      each_element(size, [=](int64_t i, auto kind) GANCOMP_FORCE {
        using T = decltype(kind);
        store(to + i, stream_as<T>(from + i) + (load_as<T>(z + i) - l.mean) * l.rstd);
      });
    });
  });
}

// Buffers of a backward pass. What is written over the gradient it is made from goes elsewhere where planes are wider than a
// stripe: a stripe needs what the one before it would have written over.
struct Buffers {
  float *of_x, *of_hidden, *grad_hidden, *sums1, *sums2, *apart_x, *apart_hidden;

  explicit Buffers(const SeparableResblockBackwardParams& p) {
    const bool weights = p.grad_pointwise1 != nullptr;
    of_x = p.workspace;
    of_hidden = of_x + separable_resblock_planes(p.x, p.x.c);
    grad_hidden = of_hidden + separable_resblock_planes(p.x, p.hidden);
    sums1 = grad_hidden + separable_resblock_planes(p.x, p.hidden);
    sums2 = sums1 + (weights ? pointwise_sums_size(p.hidden, p.x.c) : 0);
    apart_x = sums2 + (weights ? pointwise_sums_size(p.x.c, p.hidden) : 0);
    apart_hidden = apart_x + separable_resblock_planes(p.x, p.x.c);
  }
};

// Adds a group's gradient of the depthwise weight of a channel to that of the groups before it.
void add_depthwise_gradient(const double (&sums)[9], const Group& group, float* grad) {
  if (grad == nullptr) return;
  for (int t = 0; t < 9; ++t) grad[t] = (group.first == 0 ? 0.0f : grad[t]) + static_cast<float>(sums[t]);
}

void backward_group(const SeparableResblockBackwardParams& p, const Buffers& buffers, const Group& group,
                    const Executor& executor) {
  const int64_t height = p.x.h, width = p.x.w, size = p.x.plane_size(), channels = p.x.c, hidden = p.hidden;
  const int64_t images = group.images;
  const double count = static_cast<double>(size);
  const SeparableResblockWeights& w = p.weights;
  const bool weights = p.grad_pointwise1 != nullptr, in_place = width <= kStripe, first = group.first == 0;
  const ConstImages grad = group.of(p.grad), x = group.of(p.x), z1 = group.of(p.z1), z2 = group.of(p.z2);
  const auto line = [&](int64_t place) { return Line{p.statistics[place], p.statistics[place + 1]}; };
  const auto hidden_plane = [&](int64_t n, int64_t c) {
    return Hidden{z1.plane(n, c), width, line(group.z1(n, c)), group.mask(p.mask, n, c, size), p.scale};
  };

  // The gradient of P2's output, and its input again.
  const Images grad_z2 = work(buffers.of_x, images, channels, x), d2 = work(buffers.of_hidden, images, hidden, x);
  executor.parallel_for(images * (channels + hidden), [&](int64_t begin, int64_t end) {
    Input window;
    each_plane(begin, end, channels + hidden, [&](int64_t n, int64_t plane) {
      if (plane < channels) {
        norm_backward(grad.plane(n, plane), z2.plane(n, plane), size, line(group.z2(n, plane)), grad_z2.plane(n, plane));
      } else {
        const int64_t c = plane - channels;
        normalised_depthwise_again(window, hidden_plane(n, c), w.depthwise2 + 9 * c, height, width, line(group.d2(n, c)),
                                   d2.plane(n, c));
      }
    });
  });
  if (weights) pointwise_weight_sums(readable(grad_z2), readable(d2), first, buffers.sums2, executor);
  const Images grad_d2 = work(buffers.grad_hidden, images, hidden, x);
  const Images grad_z1 = in_place ? grad_d2 : work(buffers.apart_hidden, images, hidden, x);
  pointwise(readable(grad_z2), transposed(w.pointwise2), nullptr, grad_d2, executor);

  // From there to P1's output, and its input again where grad_z2 was. A task has a channel in all images.
  const Images d1 = grad_z2;
  executor.parallel_for(hidden + channels, [&](int64_t begin, int64_t end) {
    Windows windows;
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t c = plane < hidden ? plane : plane - hidden;
      double weight_sums[9] = {};
      for (int64_t n = 0; n < images; ++n) {
        if (plane >= hidden) {
          normalised_depthwise_again(windows.input, Copied{x.plane(n, c), width}, w.depthwise1 + 9 * c, height, width,
                                     line(group.d1(n, c)), d1.plane(n, c));
          continue;
        }
        const Hidden input = hidden_plane(n, c);
        const NormGradient norm = norm_gradient(grad_d2.plane(n, c), d2.plane(n, c), height, width, line(group.d2(n, c)).rstd);
        float* to = grad_z1.plane(n, c);
        Vec sum_g[kRowBlock] = {}, sum_gh[kRowBlock] = {};
        depthwise_backward(windows, norm, input, w.depthwise2 + 9 * c, height, width, weight_sums,
                           [&](int64_t i, int o, int64_t j, Vec value, int64_t left, const float* h) GANCOMP_FORCE {
                             const Vec passed = load(h);
                             const Vec g = first_lanes(passed > 0.0f ? value * p.scale : Vec{}, left);
                             sum_g[o] += g;
                             sum_gh[o] += g * passed;
                             store_first(to + i * width + j, g, left);
                           });
        double total_g = 0, total_gh = 0;
        for (int o = 0; o < kRowBlock; ++o) total_g += lane_total(sum_g[o]), total_gh += lane_total(sum_gh[o]);
        apply_norm_gradient(to, input.plane, size, input.line, static_cast<float>(total_g / count),
                            static_cast<float>(total_gh / count / static_cast<double>(p.scale)), to);
      }
      if (plane < hidden) add_depthwise_gradient(weight_sums, group, weights ? p.grad_depthwise2 + 9 * c : nullptr);
    }
  });
  if (weights) pointwise_weight_sums(readable(grad_z1), readable(d1), first, buffers.sums1, executor);

  const Images grad_x = p.grad_x.data == nullptr ? work(buffers.apart_x, images, channels, x) : group.of(p.grad_x);
  const Images grad_d1 = in_place ? grad_x : work(buffers.apart_x, images, channels, x);
  pointwise(readable(grad_z1), transposed(w.pointwise1), nullptr, grad_d1, executor);
  executor.parallel_for(channels, [&](int64_t begin, int64_t end) {
    Windows windows;
    for (int64_t c = begin; c < end; ++c) {
      double weight_sums[9] = {};
      for (int64_t n = 0; n < images; ++n) {
        const NormGradient norm = norm_gradient(grad_d1.plane(n, c), d1.plane(n, c), height, width, line(group.d1(n, c)).rstd);
        const float* residual = grad.plane(n, c);
        float* to = grad_x.plane(n, c);
        depthwise_backward(windows, norm, Copied{x.plane(n, c), width}, w.depthwise1 + 9 * c, height, width, weight_sums,
                           [&](int64_t i, int, int64_t j, Vec value, int64_t left, const float*) GANCOMP_FORCE {
                             const int64_t pixel = i * width + j;
                             __builtin_prefetch(residual + pixel + (kRowBlock + 1) * width);
                             store_first(to + pixel, value + load_first(residual + pixel, left), left);
                           });
      }
      add_depthwise_gradient(weight_sums, group, weights ? p.grad_depthwise1 + 9 * c : nullptr);
    }
  });
}

}  // namespace

void separable_resblock(const SeparableResblockParams& p, const Executor& executor) {
  const int64_t step = separable_resblock_images(p.x);
  for (int64_t first = 0; first < p.x.n; first += step) forward_group(p, Group(p.x, p.hidden, first), executor);
}

void separable_resblock_backward(const SeparableResblockBackwardParams& p, const Executor& executor) {
  const Buffers buffers(p);
  const int64_t step = separable_resblock_images(p.x);
  int64_t first = 0;
  do {  // once where there are no images: the weights' gradients are zero then
    backward_group(p, buffers, Group(p.x, p.hidden, first), executor);
    first += step;
  } while (first < p.x.n);
  if (p.grad_pointwise1 == nullptr) return;
  pointwise_weight(buffers.sums1, p.hidden, p.x.c, p.grad_pointwise1, p.grad_pointwise1_stride, executor);
  pointwise_weight(buffers.sums2, p.x.c, p.hidden, p.grad_pointwise2, p.grad_pointwise2_stride, executor);
}

}  // namespace gancomp::GANCOMP_ISA_NAME
