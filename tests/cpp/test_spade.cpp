// SPADE's modulation against naive loops, forward and backward.
#include "planes.h"

namespace {

enum class Statistics { instance, batch, given };

template <typename Real>
struct Result {
  std::vector<Real> y, value, grad_x, grad_gamma, grad_beta, mean, rstd, variance;
};

// Forward, and backward for `grad` where that is not empty; everything dense.
template <typename Real>
Result<Real> naive_spade(const Shape& s, Statistics statistics, const std::vector<float>& x, const std::vector<float>& gamma,
                         const std::vector<float>& beta, const std::vector<float>& grad, const float* mean, const float* rstd,
                         float slope) {
  Result<Real> r;
  for (auto* result : {&r.y, &r.value, &r.grad_x, &r.grad_gamma, &r.grad_beta}) result->resize(x.size());
  const bool per_channel = statistics != Statistics::instance;
  const size_t size = static_cast<size_t>(s.h * s.w), channels = static_cast<size_t>(s.c);
  const size_t sets = per_channel ? channels : static_cast<size_t>(s.n) * channels;
  for (size_t set = 0; set < sets; ++set) {
    std::vector<size_t> pixels;
    for (size_t plane = 0; plane < static_cast<size_t>(s.n) * channels; ++plane) {
      if (per_channel ? plane % channels != set : plane != set) continue;
      for (size_t i = 0; i < size; ++i) pixels.push_back(plane * size + i);
    }
    const double count = static_cast<double>(pixels.size());
    Real m = 0, scale = 0;
    if (statistics == Statistics::given) {
      m = static_cast<Real>(mean[set]), scale = static_cast<Real>(rstd[set]);
    } else {
      double sum = 0, squares = 0;
      for (size_t i : pixels) sum += static_cast<double>(x[i]);
      m = static_cast<Real>(sum / count);
      for (size_t i : pixels) {
        const double distance = static_cast<double>(static_cast<Real>(x[i]) - m);
        squares += distance * distance;
      }
      r.variance.push_back(static_cast<Real>(squares / count));
      scale = static_cast<Real>(1.0 / std::sqrt(squares / count + static_cast<double>(1e-5f)));
    }
    r.mean.push_back(m), r.rstd.push_back(scale);
    double sum_g = 0, sum_gn = 0;
    for (size_t i : pixels) {
      const Real normalised = (static_cast<Real>(x[i]) - m) * scale, factor = 1 + static_cast<Real>(gamma[i]);
      r.value[i] = normalised * factor + static_cast<Real>(beta[i]);
      r.y[i] = r.value[i] > 0 ? r.value[i] : r.value[i] * static_cast<Real>(slope);
      if (grad.empty()) continue;
      r.grad_beta[i] = static_cast<Real>(grad[i]) * (r.value[i] > 0 ? Real(1) : static_cast<Real>(slope));
      r.grad_gamma[i] = r.grad_beta[i] * normalised;
      r.grad_x[i] = r.grad_beta[i] * factor;
      sum_g += static_cast<double>(r.grad_x[i]);
      sum_gn += static_cast<double>(r.grad_x[i]) * static_cast<double>(normalised);
    }
    if (statistics == Statistics::given) sum_g = sum_gn = 0;
    for (size_t i : pixels) {
      const Real normalised = (static_cast<Real>(x[i]) - m) * scale;
      r.grad_x[i] = scale * (r.grad_x[i] - static_cast<Real>(sum_g / count) - normalised * static_cast<Real>(sum_gn / count));
    }
  }
  return r;
}

void test_modulation(const CpuKernels& kernels, const Shape& s, Statistics statistics, float slope, int64_t spare, float mean) {
  where = describe(kernels, "spade_modulate", s,
                   std::string(statistics == Statistics::instance ? "instance"
                               : statistics == Statistics::batch  ? "batch"
                                                                  : "given") +
                       " slope " + std::to_string(slope) + (spare ? " sliced" : "") + " mean " + std::to_string(mean));
  const bool given = statistics == Statistics::given, per_channel = statistics != Statistics::instance;
  Planes x = random_planes(s.n, s.c, s.h, s.w, spare, spare, 1, mean);
  Planes gamma = random_planes(s.n, s.c, s.h, s.w, 2 * spare, 1, 2), beta = random_planes(s.n, s.c, s.h, s.w, 0, spare, 3);
  Planes grad = random_planes(s.n, s.c, s.h, s.w, spare, 2, 4);
  Planes given_mean = random_planes(1, s.c, 1, 1, spare, 1, 5), given_rstd = random_planes(1, s.c, 1, 1, spare, 1, 6, 2.0f);
  const float *m = given ? given_mean.data() : nullptr, *r = given ? given_rstd.data() : nullptr;

  // Within rounding of the kink the right gradient is either; no gradient flows there.
  const auto before = naive_spade<double>(s, statistics, x.dense(), gamma.dense(), beta.dense(), {}, m, r, slope);
  grad.each([&](int64_t i, float& element) {
    if (std::abs(before.value[static_cast<size_t>(i)]) < 1e-2) element = 0;
  });
  const auto naive = naive_spade<float>(s, statistics, x.dense(), gamma.dense(), beta.dense(), grad.dense(), m, r, slope);
  const auto exact = naive_spade<double>(s, statistics, x.dense(), gamma.dense(), beta.dense(), grad.dense(), m, r, slope);

  std::vector<std::vector<float>> first;
  const int64_t sets = per_channel ? s.c : s.n * s.c;
  for (const Executor* executor : {&one_thread, &three_threads}) {
    Planes y(s.n, s.c, s.h, s.w, spare, spare, kPoison), grad_x(s.n, s.c, s.h, s.w, spare, 1, kPoison);
    Planes grad_gamma(s.n, s.c, s.h, s.w, 0, 2, kPoison), grad_beta(s.n, s.c, s.h, s.w, spare, 3, kPoison);
    Planes rstds(1, sets, 1, 1, 0, 0, kPoison), variances(1, sets, 1, 1, 0, 0, kPoison);
    std::vector<double> means(static_cast<size_t>(sets) + 2, kPoison);  // one more at each end as fences
    gancomp::SpadeModulateParams p;
    p.x = x.view(), p.gamma = gamma.view(), p.beta = beta.view(), p.given_mean = m, p.given_rstd = r;
    p.batch = statistics == Statistics::batch, p.y = y.writable(), p.slope = slope;
    p.mean = means.data() + 1, p.rstd = rstds.data(), p.variance = given ? nullptr : variances.data();
    gancomp::SpadeModulateBackwardParams q;
    q.grad = grad.view(), q.x = x.view(), q.gamma = gamma.view(), q.slope = slope;
    if (slope != 1.0f) q.y = y.view();
    q.mean = means.data() + 1, q.rstd = rstds.data(), q.per_channel = per_channel, q.constant = given;
    q.grad_x = grad_x.writable(), q.grad_gamma = grad_gamma.writable(), q.grad_beta = grad_beta.writable();
    const auto run = [&] {
      kernels.spade_modulate(p, *executor);
      kernels.spade_modulate_backward(q, *executor);
    };
    executor == &one_thread ? without_allocation(run) : run();

    std::vector<std::vector<float>> results;
    for (auto& [name, planes, rounded, reference] :
         {std::tuple<const char*, Planes*, const std::vector<float>*, const std::vector<double>*>{"y", &y, &naive.y, &exact.y},
          {"grad_x", &grad_x, &naive.grad_x, &exact.grad_x},
          {"grad_gamma", &grad_gamma, &naive.grad_gamma, &exact.grad_gamma},
          {"grad_beta", &grad_beta, &naive.grad_beta, &exact.grad_beta},
          {"rstd", &rstds, &naive.rstd, &exact.rstd}}) {
      planes->check_fences(name);
      check_accurate(planes->dense(), *rounded, *reference, name);
      results.push_back(planes->dense());
    }
    variances.check_fences("variance");
    if (!given) check_accurate(variances.dense(), naive.variance, exact.variance, "variance");
    CHECK(std::isnan(means.front()) && std::isnan(means.back()), "mean is written out of bounds");
    // A mean near zero is as accurate as its elements are large.
    for (size_t i = 0; i < exact.mean.size(); ++i) {
      const double error = std::abs(means[i + 1] - exact.mean[i]), size = std::abs(exact.mean[i]) + 1.0 / exact.rstd[i];
      CHECK(error <= static_cast<double>(std::numeric_limits<float>::epsilon()) * size, "mean: error %.3g", error);
    }
    if (executor == &one_thread) {
      first = results;
    } else {
      CHECK(first == results, "threads change the result");
    }
  }
}

}  // namespace

void test_spade_modulations(const CpuKernels& kernels) {
  for (const Shape& shape : {Shape{2, 3, 2, 2}, {3, 2, 1, 7}, {2, 3, 13, 31}, {1, 2, 64, 67}}) {
    for (const Statistics statistics : {Statistics::instance, Statistics::batch, Statistics::given}) {
      for (const float slope : {1.0f, 0.2f, 0.0f}) {
        for (const int64_t spare : {int64_t{0}, int64_t{3}}) test_modulation(kernels, shape, statistics, slope, spare, 0.0f);
      }
      if (statistics != Statistics::given) test_modulation(kernels, shape, statistics, 0.2f, 3, 1000.0f);
    }
  }
  test_modulation(kernels, {0, 2, 4, 4}, Statistics::instance, 0.2f, 0, 0.0f);
}
