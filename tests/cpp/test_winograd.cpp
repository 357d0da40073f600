// 4x4 convolutions by Winograd's method against naive loops, forward and backward.
#include "planes.h"

namespace {

struct Sums {
  std::vector<double> value, size;  // of the products, and of their magnitudes

  explicit Sums(int64_t count) : value(static_cast<size_t>(count)), size(static_cast<size_t>(count)) {}
  void add(int64_t i, float a, float b) {
    const double product = static_cast<double>(a) * static_cast<double>(b);
    value[static_cast<size_t>(i)] += product, size[static_cast<size_t>(i)] += std::abs(product);
  }
};

// The method's error is not that of a direct sum, but stays as many roundings of the largest one.
void check_sums(const std::vector<float>& actual, const Sums& exact, const char* name) {
  double error = 0, largest = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double distance = std::abs(static_cast<double>(actual[i]) - exact.value[i]);
    error = distance <= error ? error : distance;  // keeps a NaN
    largest = std::max(largest, exact.size[i]);
  }
  const double allowed = 16 * static_cast<double>(std::numeric_limits<float>::epsilon()) * largest;
  CHECK(error <= allowed, "%s: error %.3g, allowed %.3g", name, error, allowed);
}

void test_winograd(const CpuKernels& kernels, const Shape& s, int64_t outs, int stride, int padding, int64_t spare) {
  where = describe(kernels, "winograd_conv", s,
                   "to " + std::to_string(outs) + " stride " + std::to_string(stride) + " padding " + std::to_string(padding) +
                       (spare ? " sliced" : ""));
  constexpr int64_t kTaps = gancomp::kWinogradTaps;
  const int64_t h = (s.h + 2 * padding - kTaps) / stride + 1, w = (s.w + 2 * padding - kTaps) / stride + 1;
  Planes x = random_planes(s.n, s.c, s.h, s.w, spare, spare, 1), grad = random_planes(s.n, outs, h, w, spare, 1, 2);
  Planes weight = random_planes(outs, s.c, kTaps, kTaps, 0, 3, 3), bias = random_planes(1, outs, 1, 1, 0, 1, 4);

  Sums y_sums(grad.size()), grad_x_sums(x.size()), grad_weight_sums(weight.size());
  const std::vector<float> xs = x.dense(), grads = grad.dense(), weights = weight.dense(), biases = bias.dense();
  const auto at = [](const std::vector<float>& values, int64_t i) { return values[static_cast<size_t>(i)]; };
  for (int64_t i = 0; i < grad.size(); ++i) {
    const int64_t column = i % w, row = i / w % h, o = i / w / h % outs, n = i / w / h / outs;
    y_sums.add(i, at(biases, o), 1.0f);
    for (int64_t j = 0; j < s.c * kTaps * kTaps; ++j) {
      const int64_t c = j / kTaps / kTaps, r = row * stride - padding + j / kTaps % kTaps;
      const int64_t q = column * stride - padding + j % kTaps;
      if (r < 0 || r >= s.h || q < 0 || q >= s.w) continue;
      const int64_t from = ((n * s.c + c) * s.h + r) * s.w + q, tap = o * s.c * kTaps * kTaps + j;
      y_sums.add(i, at(xs, from), at(weights, tap));
      grad_x_sums.add(from, at(grads, i), at(weights, tap));
      grad_weight_sums.add(tap, at(grads, i), at(xs, from));
    }
  }

  std::vector<std::vector<float>> first;
  for (const Executor* executor : {&one_thread, &three_threads}) {
    Planes y(s.n, outs, h, w, spare, spare, kPoison), grad_x(s.n, s.c, s.h, s.w, spare, 1, kPoison);
    Planes grad_weight(outs, s.c, kTaps, kTaps, 0, 2, kPoison);
    gancomp::WinogradConvParams p;
    p.x = x.view(), p.y = y.writable(), p.weight = weight.data(), p.bias = bias.data();
    p.stride = stride, p.padding = padding, p.slots = executor == &one_thread ? 1 : 3;
    gancomp::WinogradConvParams q = p;
    q.x = grad.view(), q.y = grad_x.writable(), q.bias = nullptr;
    gancomp::WinogradConvWeightGradientParams r;
    r.x = x.view(), r.grad = grad.view(), r.grad_weight = grad_weight.data();
    r.stride = stride, r.padding = padding, r.slots = p.slots;
    Planes memory(1, gancomp::winograd_conv_plan(p).floats(p.slots), 1, 1, 0, 0, kPoison);
    Planes memory_x(1, gancomp::winograd_conv_transpose_plan(q).floats(p.slots), 1, 1, 0, 0, kPoison);
    Planes memory_weight(1, gancomp::winograd_weight_gradient_plan(r).floats(p.slots), 1, 1, 0, 0, kPoison);
    p.workspace = memory.data(), q.workspace = memory_x.data(), r.workspace = memory_weight.data();
    const auto run = [&] {
      kernels.winograd_conv(p, *executor);
      kernels.winograd_conv_transpose(q, *executor);
      kernels.winograd_conv_weight_gradient(r, *executor);
    };
    executor == &one_thread ? without_allocation(run) : run();

    for (auto& [name, planes] : {std::pair<const char*, Planes*>{"workspace", &memory},
                                 {"workspace of grad_x", &memory_x},
                                 {"workspace of grad_weight", &memory_weight},
                                 {"y", &y},
                                 {"grad_x", &grad_x},
                                 {"grad_weight", &grad_weight}}) {
      planes->check_fences(name);
    }
    const std::vector<std::vector<float>> results{y.dense(), grad_x.dense(), grad_weight.dense()};
    check_sums(results[0], y_sums, "y");
    check_sums(results[1], grad_x_sums, "grad_x");
    check_sums(results[2], grad_weight_sums, "grad_weight");
    if (executor == &one_thread) {
      first = results;
    } else {
      CHECK(first == results, "threads change the result");
    }
  }
}

}  // namespace

void test_winograd_convs(const CpuKernels& kernels) {
  for (const int64_t spare : {int64_t{0}, int64_t{3}}) {
    for (const int stride : {1, 2}) {
      test_winograd(kernels, {1, 1, 4, 4}, 1, stride, 0, spare);
      test_winograd(kernels, {2, 3, 1, 2}, 2, stride, 3, spare);
      test_winograd(kernels, {3, 18, 9, 8}, 5, stride, 1, spare);
      test_winograd(kernels, {1, 65, 8, 7}, 66, stride, 2, spare);
      test_winograd(kernels, {1, 2, 5, 150}, 3, stride, 1, spare);
      test_winograd(kernels, {3, 2, 41, 43}, 2, stride, 1, spare);
      test_winograd(kernels, {0, 2, 8, 8}, 3, stride, 1, spare);
    }
  }
}
