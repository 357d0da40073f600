// The separable residual block against naive loops, forward and backward.
#include <array>

#include "planes.h"

namespace {

constexpr double kEps = static_cast<double>(1e-5f);

// In which order sums are made: bit 0 turns channels round, bit 1 the taps of a filter.
constexpr int kOrders = 4;

// Dense planes [count][h * w] of one image.
template <typename Real>
using Image = std::vector<std::vector<Real>>;

template <typename Real>
struct Norm {
  std::vector<Real> y;
  Real rstd;
};

template <typename Real>
Norm<Real> norm(const std::vector<Real>& x) {
  const double count = static_cast<double>(x.size());
  double sum = 0, squares = 0;
  for (Real value : x) sum += static_cast<double>(value);
  const Real mean = static_cast<Real>(sum / count);
  for (Real value : x) squares += static_cast<double>(value - mean) * static_cast<double>(value - mean);
  Norm<Real> result{{}, static_cast<Real>(1.0 / std::sqrt(squares / count + kEps))};
  for (Real value : x) result.y.push_back((value - mean) * result.rstd);
  return result;
}

template <typename Real>
std::vector<Real> norm_backward(const std::vector<Real>& grad, const Norm<Real>& n) {
  const double count = static_cast<double>(grad.size());
  double sum = 0, product = 0;
  for (size_t i = 0; i < grad.size(); ++i) {
    sum += static_cast<double>(grad[i]);
    product += static_cast<double>(grad[i]) * static_cast<double>(n.y[i]);
  }
  std::vector<Real> result;
  for (size_t i = 0; i < grad.size(); ++i) {
    result.push_back(n.rstd * (grad[i] - static_cast<Real>(sum / count) - n.y[i] * static_cast<Real>(product / count)));
  }
  return result;
}

// Calls tap(output pixel, input pixel, filter element) for every product of a depthwise convolution.
template <typename Tap>
void each_tap(int64_t h, int64_t w, int order, const Tap& tap) {
  for (int64_t i = 0; i < h * w; ++i) {
    const int64_t pixel = order & 2 ? h * w - 1 - i : i;
    for (int64_t k = 0; k < 9; ++k) {
      const int64_t t = order & 2 ? 8 - k : k;
      const int64_t row = reflected(pixel / w + t / 3 - 1, h), column = reflected(pixel % w + t % 3 - 1, w);
      tap(static_cast<size_t>(pixel), static_cast<size_t>(row * w + column), static_cast<size_t>(t));
    }
  }
}

// One half of a block for one image: P(IN(D(x))), and its gradients, which are added to those of the weights.
template <typename Real>
struct Half {
  int order;
  int64_t h, w;
  const float *depthwise, *pointwise;
  int64_t row_stride, column_stride;
  Image<Real> x, z;
  std::vector<Norm<Real>> normalised;

  void forward(size_t outputs) {
    for (size_t c = 0; c < x.size(); ++c) {
      std::vector<Real> d(x[c].size());
      each_tap(h, w, order,
               [&](size_t to, size_t from, size_t t) { d[to] += static_cast<Real>(depthwise[9 * c + t]) * x[c][from]; });
      normalised.push_back(norm(d));
    }
    for (size_t o = 0; o < outputs; ++o) {
      z.emplace_back(x[0].size());
      for (size_t k = 0; k < x.size(); ++k) {
        const size_t c = order & 1 ? x.size() - 1 - k : k;
        for (size_t i = 0; i < z[o].size(); ++i) z[o][i] += weight(o, c) * normalised[c].y[i];
      }
    }
  }

  Image<Real> backward(const Image<Real>& grad_z, std::vector<Real>& grad_depthwise, std::vector<Real>& grad_pointwise) const {
    Image<Real> grad_x;
    for (size_t c = 0; c < x.size(); ++c) {
      std::vector<Real> grad_y(x[c].size());
      for (size_t k = 0; k < grad_z.size(); ++k) {
        const size_t o = order & 1 ? grad_z.size() - 1 - k : k;
        for (size_t j = 0; j < grad_y.size(); ++j) {
          const size_t i = order & 2 ? grad_y.size() - 1 - j : j;
          grad_y[i] += weight(o, c) * grad_z[o][i];
          grad_pointwise[o * x.size() + c] += grad_z[o][i] * normalised[c].y[i];
        }
      }
      const std::vector<Real> grad_d = norm_backward(grad_y, normalised[c]);
      grad_x.emplace_back(x[c].size());
      each_tap(h, w, order, [&](size_t to, size_t from, size_t t) {
        grad_x[c][from] += static_cast<Real>(depthwise[9 * c + t]) * grad_d[to];
        grad_depthwise[9 * c + t] += x[c][from] * grad_d[to];
      });
    }
    return grad_x;
  }

  Real weight(size_t o, size_t c) const {
    return static_cast<Real>(pointwise[static_cast<int64_t>(o) * row_stride + static_cast<int64_t>(c) * column_stride]);
  }
};

template <typename Real>
struct Result {
  std::vector<Real> y, grad_x, depthwise1, pointwise1, depthwise2, pointwise2;
  double nearest = 1e30;  // to ReLU's kink
};

// `mask` is dense [N, hidden, H, W], empty for none.
template <typename Real>
Result<Real> naive_block(Planes& x, Planes& grad, int64_t hidden, const gancomp::SeparableResblockWeights& w,
                         const std::vector<uint8_t>& mask, float scale, int order = 0) {
  const size_t channels = static_cast<size_t>(x.c), inner = static_cast<size_t>(hidden), size = static_cast<size_t>(x.h * x.w);
  Result<Real> r;
  r.depthwise1.resize(9 * channels), r.depthwise2.resize(9 * inner);
  r.pointwise1.resize(inner * channels), r.pointwise2.resize(inner * channels);
  const std::vector<float> images = x.dense(), grads = grad.dense();
  for (size_t n = 0; n < static_cast<size_t>(x.n); ++n) {
    const auto plane = [&](const std::vector<float>& from, size_t c) {
      const auto begin = from.begin() + static_cast<int64_t>((n * channels + c) * size);
      return std::vector<Real>(begin, begin + static_cast<int64_t>(size));
    };
    Half<Real> first{order, x.h, x.w, w.depthwise1, w.pointwise1.data, w.pointwise1.row_stride, w.pointwise1.column_stride,
                     {},    {},  {}};
    Half<Real> second{order, x.h, x.w, w.depthwise2, w.pointwise2.data, w.pointwise2.row_stride, w.pointwise2.column_stride,
                      {},    {},  {}};
    for (size_t c = 0; c < channels; ++c) first.x.push_back(plane(images, c));
    first.forward(inner);
    std::vector<Norm<Real>> middle, last;
    for (size_t c = 0; c < inner; ++c) {
      middle.push_back(norm(first.z[c]));
      second.x.emplace_back(size);
      for (size_t i = 0; i < size; ++i) {
        const Real value = middle[c].y[i];
        r.nearest = std::min(r.nearest, std::abs(static_cast<double>(value)));
        const Real factor =
            mask.empty() ? Real(1) : static_cast<Real>(mask[(n * inner + c) * size + i]) * static_cast<Real>(scale);
        second.x[c][i] = (value > 0 ? value : Real(0)) * factor;
      }
    }
    second.forward(channels);
    Image<Real> grad_z;
    for (size_t c = 0; c < channels; ++c) {
      last.push_back(norm(second.z[c]));
      for (size_t i = 0; i < size; ++i) r.y.push_back(first.x[c][i] + last[c].y[i]);
      grad_z.push_back(norm_backward(plane(grads, c), last[c]));
    }
    Image<Real> grad_h = second.backward(grad_z, r.depthwise2, r.pointwise2);
    grad_z.clear();
    for (size_t c = 0; c < inner; ++c) {
      for (size_t i = 0; i < size; ++i) {
        const Real factor = mask.empty() ? Real(1) : static_cast<Real>(scale);
        grad_h[c][i] = second.x[c][i] > 0 ? grad_h[c][i] * factor : Real(0);
      }
      grad_z.push_back(norm_backward(grad_h[c], middle[c]));
    }
    const Image<Real> grad_x = first.backward(grad_z, r.depthwise1, r.pointwise1);
    for (size_t c = 0; c < channels; ++c) {
      const std::vector<Real> residual = plane(grads, c);
      for (size_t i = 0; i < size; ++i) r.grad_x.push_back(grad_x[c][i] + residual[i]);
    }
  }
  return r;
}

// Takes over another result where that is farther from the exact one.
void keep_worse(std::vector<float>& kept, std::vector<float>& other, const std::vector<double>& exact) {
  const auto error = [&](const std::vector<float>& values) {
    double largest = 0;
    for (size_t i = 0; i < exact.size(); ++i) largest = std::max(largest, std::abs(static_cast<double>(values[i]) - exact[i]));
    return largest;
  };
  if (error(other) > error(kept)) kept.swap(other);
}

// Memory between fences whose beginning is aligned for vectors, as workspaces are.
struct Workspace {
  std::vector<float> memory;
  int64_t offset = 0, size;

  explicit Workspace(int64_t size) : memory(static_cast<size_t>(size + 2 * kGuard + 16), fence()), size(size) {
    offset = kGuard + (64 - static_cast<int64_t>(reinterpret_cast<uintptr_t>(memory.data() + kGuard) % 64)) % 64 / 4;
    std::fill(data(), data() + size, kPoison);
  }
  float* data() { return memory.data() + offset; }
  void check_fences() {
    int64_t intact = 0;
    for (float value : memory) intact += is_fence(value);
    CHECK(intact == static_cast<int64_t>(memory.size()) - size, "workspace: elements round it were written to");
  }
};

void test_block(const CpuKernels& kernels, const Shape& s, int64_t hidden, bool dropout, bool transposed, int64_t spare) {
  where = describe(kernels, "separable_resblock", s,
                   "hidden " + std::to_string(hidden) + (dropout ? " dropout" : "") + (transposed ? " transposed" : "") +
                       (spare ? " sliced" : ""));
  Planes x = random_planes(s.n, s.c, s.h, s.w, spare, spare, 1), grad = random_planes(s.n, s.c, s.h, s.w, 2 * spare, spare, 2);
  std::vector<uint8_t> mask;
  std::mt19937 engine(3);
  if (dropout) {
    for (int64_t i = 0; i < s.n * hidden * s.h * s.w; ++i) mask.push_back(engine() % 10 < 6);
  }
  const float scale = dropout ? 1.0f / 0.6f : 1.0f;
  const int64_t wide = s.c + spare, wide_hidden = hidden + spare;

  // Within rounding of the kink the right gradient is either: weights are such that no value lies there.
  Result<double> exact;
  std::vector<Planes> full;
  gancomp::SeparableResblockWeights w;
  for (uint32_t seed = 10; exact.nearest > 1e29 || exact.nearest < 1e-5; seed += 4) {
    full.clear();
    full.push_back(random_planes(1, s.c, 3, 3, spare, 1, seed));
    full.push_back(random_planes(1, hidden, 3, 3, spare, 1, seed + 1));
    // A matrix is an image of which the active columns are the "channels" of one pixel.
    full.push_back(random_planes(transposed ? s.c : hidden, transposed ? hidden : s.c, 1, 1, spare, 1, seed + 2));
    full.push_back(random_planes(transposed ? hidden : s.c, transposed ? s.c : hidden, 1, 1, spare, 1, seed + 3));
    w.depthwise1 = full[0].data(), w.depthwise2 = full[1].data();
    w.pointwise1 = {full[2].data(), transposed ? 1 : wide, transposed ? wide_hidden : 1};
    w.pointwise2 = {full[3].data(), transposed ? 1 : wide_hidden, transposed ? wide : 1};
    exact = naive_block<double>(x, grad, hidden, w, mask, scale);
    if (s.n == 0) break;
  }
  // Of a plane of few pixels, divided by almost nothing, one error says little: the largest of several orders is taken.
  Result<float> naive = naive_block<float>(x, grad, hidden, w, mask, scale);
  for (int order = 1; order < kOrders; ++order) {
    Result<float> other = naive_block<float>(x, grad, hidden, w, mask, scale, order);
    keep_worse(naive.y, other.y, exact.y);
    keep_worse(naive.grad_x, other.grad_x, exact.grad_x);
    keep_worse(naive.depthwise1, other.depthwise1, exact.depthwise1);
    keep_worse(naive.pointwise1, other.pointwise1, exact.pointwise1);
    keep_worse(naive.depthwise2, other.depthwise2, exact.depthwise2);
    keep_worse(naive.pointwise2, other.pointwise2, exact.pointwise2);
  }

  std::array<std::vector<float>, 6> first;
  for (const Executor* executor : {&one_thread, &three_threads}) {
    Planes y(s.n, s.c, s.h, s.w, spare, spare, kPoison), alone(s.n, s.c, s.h, s.w, spare, spare, kPoison);
    Planes z1(s.n, hidden, s.h, s.w, 0, 0, kPoison), z2(s.n, s.c, s.h, s.w, 0, 0, kPoison);
    Planes statistics(s.n, 2 * (s.c + hidden), 1, 2, 0, 0, kPoison);
    gancomp::SeparableResblockParams p;
    p.x = x.view(), p.hidden = hidden, p.weights = w, p.mask = dropout ? mask.data() : nullptr, p.scale = scale;
    gancomp::SeparableResblockParams q = p;
    p.y = y.writable(), p.z1 = z1.writable(), p.z2 = z2.writable(), p.statistics = statistics.data();
    q.y = alone.writable();
    Planes grad_x(s.n, s.c, s.h, s.w, spare, spare, kPoison);
    Planes depthwise1(1, s.c, 3, 3, spare, 0, kPoison), depthwise2(1, hidden, 3, 3, spare, 0, kPoison);
    Planes pointwise1(hidden, s.c, 1, 1, spare, 0, kPoison), pointwise2(s.c, hidden, 1, 1, spare, 0, kPoison);
    gancomp::SeparableResblockBackwardParams b;
    b.grad = grad.view(), b.x = x.view(), b.hidden = hidden, b.weights = w, b.mask = p.mask, b.scale = scale;
    b.z1 = z1.view(), b.z2 = z2.view(), b.statistics = statistics.data();
    b.grad_x = grad_x.writable();
    b.grad_depthwise1 = depthwise1.data(), b.grad_depthwise2 = depthwise2.data();
    b.grad_pointwise1 = pointwise1.data(), b.grad_pointwise2 = pointwise2.data();
    b.grad_pointwise1_stride = wide, b.grad_pointwise2_stride = wide_hidden;
    Workspace forward(gancomp::separable_resblock_workspace(p)), less(gancomp::separable_resblock_workspace(q));
    Workspace backward(gancomp::separable_resblock_backward_workspace(b));
    p.workspace = forward.data(), q.workspace = less.data(), b.workspace = backward.data();
    const auto run = [&] {
      kernels.separable_resblock(p, *executor);
      kernels.separable_resblock(q, *executor);
      kernels.separable_resblock_backward(b, *executor);
    };
    executor == &one_thread ? without_allocation(run) : run();

    for (Workspace* memory : {&forward, &less, &backward}) memory->check_fences();
    for (auto& [name, planes] : {std::pair<const char*, Planes*>{"y", &y},
                                 {"z1", &z1},
                                 {"z2", &z2},
                                 {"statistics", &statistics},
                                 {"grad_x", &grad_x},
                                 {"depthwise1", &depthwise1},
                                 {"pointwise1", &pointwise1},
                                 {"depthwise2", &depthwise2},
                                 {"pointwise2", &pointwise2}}) {
      planes->check_fences(name);
    }
    CHECK(y.dense() == alone.dense(), "the result depends on what is kept");
    const std::array<std::vector<float>, 6> results{y.dense(),          grad_x.dense(),     depthwise1.dense(),
                                                    pointwise1.dense(), depthwise2.dense(), pointwise2.dense()};
    check_accurate(results[0], naive.y, exact.y, "y");
    check_accurate(results[1], naive.grad_x, exact.grad_x, "grad_x");
    check_accurate(results[2], naive.depthwise1, exact.depthwise1, "grad_depthwise1");
    check_accurate(results[3], naive.pointwise1, exact.pointwise1, "grad_pointwise1");
    check_accurate(results[4], naive.depthwise2, exact.depthwise2, "grad_depthwise2");
    check_accurate(results[5], naive.pointwise2, exact.pointwise2, "grad_pointwise2");
    if (executor == &one_thread) {
      first = results;
      // Each kind of gradient alone is the same.
      Planes again(s.n, s.c, s.h, s.w, 0, 0, kPoison), filter(1, s.c, 3, 3, spare, 0, kPoison);
      gancomp::SeparableResblockBackwardParams only = b;
      only.grad_x = again.writable();
      only.grad_depthwise1 = only.grad_depthwise2 = only.grad_pointwise1 = only.grad_pointwise2 = nullptr;
      Workspace of_x(gancomp::separable_resblock_backward_workspace(only));
      only.workspace = of_x.data();
      kernels.separable_resblock_backward(only, *executor);
      of_x.check_fences();
      CHECK(again.dense() == results[1], "the gradient of the input depends on what else is wanted");
      only = b;
      only.grad_x = {}, only.grad_depthwise1 = filter.data();
      Workspace of_weights(gancomp::separable_resblock_backward_workspace(only));
      only.workspace = of_weights.data();
      kernels.separable_resblock_backward(only, *executor);
      of_weights.check_fences();
      CHECK(filter.dense() == results[2], "the gradient of a weight depends on what else is wanted");
    } else {
      CHECK(first == results, "threads change the result");
    }
  }
}

}  // namespace

void test_separable_resblocks(const CpuKernels& kernels) {
  for (const auto& [shape, hidden] : {std::pair<Shape, int64_t>{{16, 6, 2, 2}, 5},
                                      {{12, 4, 3, 5}, 9},
                                      {{16, 5, 2, 8}, 4},
                                      {{2, 6, 17, 9}, 20},
                                      {{1, 50, 7, 33}, 13},
                                      {{3, 2, 35, 70}, 4},
                                      {{0, 2, 4, 4}, 3}}) {
    for (int variant = 0; variant < 4; ++variant) {
      test_block(kernels, shape, hidden, variant & 1, variant == 2, variant & 2 ? 3 : 0);
    }
  }
  test_block(kernels, {2, 5, 3, 517}, 7, true, false, 0);  // in stripes
}
