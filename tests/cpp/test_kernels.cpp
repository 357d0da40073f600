// The kernels of every instruction set against naive loops in double precision, between guard bands, into NaN.
//
// Tolerance comes from data: twice the error of the same naive loops in float32, plus one rounding of the largest value.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <string>
#include <vector>

#include "planes.h"

// Counts what the kernels allocate: this definition serves the whole process, libgancomp included. Not inlined, because GCC
// would then see new and free meet, and warn.
__attribute__((noinline)) void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

// --- naive loops: the specification, in float32 or double elements ----------------------------------------------------

template <typename Real>
struct NormResult {
  std::vector<Real> y, pre, mean, rstd, grad_x, grad_weight, grad_bias;
};

// Forward, and backward for `grad` where that is not empty. Everything dense; sums in double as PyTorch has them.
template <typename Real>
NormResult<Real> naive_norm(int64_t n, int64_t c, int64_t size, const std::vector<float>& x, const float* weight,
                            const float* bias, const std::vector<float>& residual, bool relu, double eps,
                            const std::vector<float>& grad) {
  NormResult<Real> r;
  r.y.resize(x.size()), r.pre.resize(x.size()), r.grad_x.resize(x.size());
  r.grad_weight.resize(static_cast<size_t>(c)), r.grad_bias.resize(static_cast<size_t>(c));
  const double count = static_cast<double>(size);
  std::vector<double> sum_weight(static_cast<size_t>(c)), sum_bias(static_cast<size_t>(c));
  for (int64_t plane = 0; plane < n * c; ++plane) {
    const size_t channel = static_cast<size_t>(plane % c), begin = static_cast<size_t>(plane * size);
    const size_t end = begin + static_cast<size_t>(size);
    double sum = 0, squares = 0;
    for (size_t i = begin; i < end; ++i) sum += static_cast<double>(x[i]);
    const Real mean = static_cast<Real>(sum / count);
    for (size_t i = begin; i < end; ++i) {
      const double distance = static_cast<double>(static_cast<Real>(x[i]) - mean);
      squares += distance * distance;
    }
    const Real rstd = static_cast<Real>(1.0 / std::sqrt(squares / count + eps));
    r.mean.push_back(mean), r.rstd.push_back(rstd);
    const Real scale = weight == nullptr ? Real(1) : static_cast<Real>(weight[channel]);
    const Real shift = bias == nullptr ? Real(0) : static_cast<Real>(bias[channel]);
    double sum_g = 0, sum_gx = 0;
    for (size_t i = begin; i < end; ++i) {
      const Real xhat = (static_cast<Real>(x[i]) - mean) * rstd;
      r.pre[i] = xhat * scale + shift;
      r.y[i] = relu && r.pre[i] < 0 ? Real(0) : r.pre[i];
      if (!residual.empty()) r.y[i] += static_cast<Real>(residual[i]);
      if (grad.empty() || (relu && !(r.pre[i] > 0))) continue;
      sum_g += static_cast<double>(grad[i]);
      sum_gx += static_cast<double>(grad[i]) * static_cast<double>(xhat);
    }
    sum_weight[channel] += sum_gx, sum_bias[channel] += sum_g;
    for (size_t i = begin; i < end && !grad.empty(); ++i) {
      const Real xhat = (static_cast<Real>(x[i]) - mean) * rstd;
      const Real g = relu && !(r.pre[i] > 0) ? Real(0) : static_cast<Real>(grad[i]);
      r.grad_x[i] = scale * rstd * (g - static_cast<Real>(sum_g / count) - xhat * static_cast<Real>(sum_gx / count));
    }
  }
  for (size_t i = 0; i < static_cast<size_t>(c); ++i) {
    r.grad_weight[i] = static_cast<Real>(sum_weight[i]), r.grad_bias[i] = static_cast<Real>(sum_bias[i]);
  }
  return r;
}

template <typename Real>
struct ConvResult {
  std::vector<Real> y, grad_x, grad_weight, grad_bias;
};

template <typename Real>
ConvResult<Real> naive_conv(int64_t n, int64_t c, int64_t h, int64_t w, const std::vector<float>& x, const float* weight,
                            const float* bias, const std::vector<float>& grad) {
  ConvResult<Real> r;
  r.y.resize(x.size()), r.grad_x.resize(x.size());
  r.grad_weight.resize(static_cast<size_t>(9 * c)), r.grad_bias.resize(static_cast<size_t>(c));
  for (int64_t plane = 0; plane < n * c; ++plane) {
    const int64_t channel = plane % c;
    for (int64_t i = 0; i < h; ++i) {
      for (int64_t j = 0; j < w; ++j) {
        const size_t at = static_cast<size_t>((plane * h + i) * w + j);
        Real value = bias == nullptr ? Real(0) : static_cast<Real>(bias[channel]);
        const Real g = static_cast<Real>(grad[at]);
        for (int64_t tap = 0; tap < 9; ++tap) {
          const int64_t row = reflected(i + tap / 3 - 1, h), column = reflected(j + tap % 3 - 1, w);
          const size_t from = static_cast<size_t>((plane * h + row) * w + column),
                       filter = static_cast<size_t>(9 * channel + tap);
          value += static_cast<Real>(weight[filter]) * static_cast<Real>(x[from]);
          r.grad_x[from] += static_cast<Real>(weight[filter]) * g;
          r.grad_weight[filter] += static_cast<Real>(x[from]) * g;
        }
        r.y[at] = value;
        r.grad_bias[static_cast<size_t>(channel)] += g;
      }
    }
  }
  return r;
}

// --- InstanceNorm -----------------------------------------------------------------------------------------------------

void test_norm(const CpuKernels& kernels, const Shape& s, bool affine, bool relu, bool with_residual, int64_t spare,
               float mean) {
  where = describe(kernels, "instance_norm_act", s,
                   std::string(affine ? "affine " : "") + (relu ? "relu " : "") + (with_residual ? "residual " : "") +
                       (spare ? "sliced " : "") + "mean " + std::to_string(mean));
  const int64_t misaligned = spare;
  Planes x = random_planes(s.n, s.c, s.h, s.w, spare, misaligned, 1, mean);
  Planes residual = random_planes(s.n, s.c, s.h, s.w, 2 * spare, misaligned, 2);
  Planes grad = random_planes(s.n, s.c, s.h, s.w, spare, misaligned, 3);
  Planes weight = random_planes(1, s.c, 1, 1, spare, 1, 4), bias = random_planes(1, s.c, 1, 1, spare, 2, 5);
  const float *w = affine ? weight.data() : nullptr, *b = affine ? bias.data() : nullptr;
  const std::vector<float> added = with_residual ? residual.dense() : std::vector<float>();
  const int64_t size = s.h * s.w;
  const double eps = static_cast<double>(1e-5f);

  // Within rounding of the kink the right gradient is either; no gradient flows there.
  const auto before = naive_norm<double>(s.n, s.c, size, x.dense(), w, b, added, relu, eps, {});
  grad.each([&](int64_t i, float& element) {
    if (relu && std::abs(before.pre[static_cast<size_t>(i)]) < 1e-2) element = 0;
  });
  const auto exact = naive_norm<double>(s.n, s.c, size, x.dense(), w, b, added, relu, eps, grad.dense());
  const auto naive = naive_norm<float>(s.n, s.c, size, x.dense(), w, b, added, relu, eps, grad.dense());

  std::vector<float> first_y, first_grad_x, first_grad_weight;
  for (const Executor* executor : {&one_thread, &three_threads}) {
    Planes y(s.n, s.c, s.h, s.w, spare, misaligned, kPoison);
    Planes rstds(s.n, s.c, 1, 1, 0, 0, kPoison);
    std::vector<double> means(static_cast<size_t>(s.n * s.c) + 2, kPoison);  // one more at each end as fences
    gancomp::InstanceNormActParams p;
    p.x = x.view(), p.y = y.writable();
    if (with_residual) p.residual = residual.view();
    p.weight = w, p.bias = b, p.mean = means.data() + 1, p.rstd = rstds.data(), p.relu = relu;
    Planes grad_x(s.n, s.c, s.h, s.w, spare, misaligned, kPoison);
    Planes grad_weight(1, s.c, 1, 1, spare, 0, kPoison), grad_bias(1, s.c, 1, 1, spare, 0, kPoison);
    gancomp::InstanceNormActBackwardParams q;
    q.grad = grad.view(), q.x = x.view(), q.weight = w, q.bias = b, q.mean = means.data() + 1, q.rstd = rstds.data();
    q.grad_x = grad_x.writable(), q.relu = relu;
    if (affine) q.grad_weight = grad_weight.data(), q.grad_bias = grad_bias.data();
    const auto run = [&] {
      kernels.instance_norm_act(p, *executor);
      kernels.instance_norm_act_backward(q, *executor);
    };
    executor == &one_thread ? without_allocation(run) : run();

    for (auto& [name, planes] : {std::pair<const char*, Planes*>{"y", &y}, {"rstd", &rstds}, {"grad_x", &grad_x}}) {
      planes->check_fences(name);
    }
    check_accurate(y.dense(), naive.y, exact.y, "y");
    CHECK(std::isnan(means.front()) && std::isnan(means.back()), "mean is written out of bounds");
    check_accurate(std::vector<float>(means.begin() + 1, means.end() - 1), naive.mean, exact.mean, "mean");
    check_accurate(rstds.dense(), naive.rstd, exact.rstd, "rstd");
    check_accurate(grad_x.dense(), naive.grad_x, exact.grad_x, "grad_x");
    if (affine) {
      grad_weight.check_fences("grad_weight");
      grad_bias.check_fences("grad_bias");
      check_accurate(grad_weight.dense(), naive.grad_weight, exact.grad_weight, "grad_weight");
      check_accurate(grad_bias.dense(), naive.grad_bias, exact.grad_bias, "grad_bias");
    }
    if (executor == &one_thread) {
      first_y = y.dense(), first_grad_x = grad_x.dense(), first_grad_weight = grad_weight.dense();
    } else {
      CHECK(first_y == y.dense() && first_grad_x == grad_x.dense(), "threads change the result");
      CHECK(!affine || first_grad_weight == grad_weight.dense(), "threads change the gradient of the weight");
    }
  }
}

// A plane of one value comes out as its shift, exactly; a NaN in a plane is seen in all of it, ReLU or not.
void test_norm_of_special_planes(const CpuKernels& kernels) {
  where = std::string(kernels.isa) + " special planes";
  for (const bool relu : {false, true}) {
    Planes x = random_planes(1, 3, 61, 97, 0, 0, 6), y(1, 3, 61, 97, 0, 0, kPoison);
    double means[3];
    float rstds[3];
    const int64_t size = x.h * x.w;
    std::fill(x.data(), x.data() + size, 0.1f);
    x.data()[2 * size + 5000] = std::numeric_limits<float>::quiet_NaN();
    const float bias[3] = {0.25f, -0.5f, 0.75f};
    gancomp::InstanceNormActParams p;
    p.x = x.view(), p.y = y.writable(), p.bias = bias, p.mean = means, p.rstd = rstds, p.relu = relu;
    kernels.instance_norm_act(p, one_thread);
    int64_t off = 0, spread = 0, hidden = 0;
    for (int64_t i = 0; i < size; ++i) {
      off += y.data()[i] != 0.25f;
      spread += !std::isfinite(y.data()[size + i]);
      hidden += !std::isnan(y.data()[2 * size + i]);
    }
    CHECK(means[0] == static_cast<double>(0.1f), "the mean of a plane of 0.1 is %.17g", means[0]);
    CHECK(off == 0, "%lld elements of a constant plane are not the shift (relu %d)", static_cast<long long>(off), relu);
    CHECK(spread == 0, "%lld elements of another plane are not finite", static_cast<long long>(spread));
    CHECK(hidden == 0, "%lld elements hide the NaN of their plane (relu %d)", static_cast<long long>(hidden), relu);
  }
}

// --- depthwise convolution --------------------------------------------------------------------------------------------

void test_conv(const CpuKernels& kernels, const Shape& s, bool with_bias, int64_t spare) {
  where =
      describe(kernels, "reflect_pad_depthwise_conv3x3", s, std::string(with_bias ? "bias " : "") + (spare ? "sliced " : ""));
  const int64_t misaligned = spare;
  Planes x = random_planes(s.n, s.c, s.h, s.w, spare, misaligned, 1);
  Planes grad = random_planes(s.n, s.c, s.h, s.w, 2 * spare, misaligned, 2);
  Planes weight = random_planes(1, s.c, 3, 3, spare, 1, 3), bias = random_planes(1, s.c, 1, 1, spare, 1, 4);
  const float* b = with_bias ? bias.data() : nullptr;
  const auto exact = naive_conv<double>(s.n, s.c, s.h, s.w, x.dense(), weight.data(), b, grad.dense());
  const auto naive = naive_conv<float>(s.n, s.c, s.h, s.w, x.dense(), weight.data(), b, grad.dense());

  std::vector<float> first_y, first_grad_x, first_grad_weight;
  for (const Executor* executor : {&one_thread, &three_threads}) {
    Planes y(s.n, s.c, s.h, s.w, spare, misaligned, kPoison);
    gancomp::ReflectPadDepthwiseConv3x3Params p;
    p.x = x.view(), p.weight = weight.data(), p.bias = b, p.y = y.writable();
    Planes grad_x(s.n, s.c, s.h, s.w, spare, misaligned, kPoison);
    Planes grad_weight(1, s.c, 3, 3, spare, 0, kPoison), grad_bias(1, s.c, 1, 1, spare, 0, kPoison);
    gancomp::ReflectPadDepthwiseConv3x3BackwardParams q;
    q.grad = grad.view(), q.x = x.view(), q.weight = weight.data(), q.grad_x = grad_x.writable();
    q.grad_weight = grad_weight.data();
    if (with_bias) q.grad_bias = grad_bias.data();
    const auto run = [&] {
      kernels.reflect_pad_depthwise_conv3x3(p, *executor);
      kernels.reflect_pad_depthwise_conv3x3_backward(q, *executor);
    };
    executor == &one_thread ? without_allocation(run) : run();

    for (auto& [name, planes] :
         {std::pair<const char*, Planes*>{"y", &y}, {"grad_x", &grad_x}, {"grad_weight", &grad_weight}}) {
      planes->check_fences(name);
    }
    check_accurate(y.dense(), naive.y, exact.y, "y");
    check_accurate(grad_x.dense(), naive.grad_x, exact.grad_x, "grad_x");
    check_accurate(grad_weight.dense(), naive.grad_weight, exact.grad_weight, "grad_weight");
    if (with_bias) {
      grad_bias.check_fences("grad_bias");
      check_accurate(grad_bias.dense(), naive.grad_bias, exact.grad_bias, "grad_bias");
    }
    if (executor == &one_thread) {
      first_y = y.dense(), first_grad_x = grad_x.dense(), first_grad_weight = grad_weight.dense();
      // The gradient of the weight alone is the same.
      Planes alone(1, s.c, 3, 3, 0, 0, kPoison);
      q.grad_x = {}, q.grad_bias = nullptr, q.grad_weight = alone.data();
      kernels.reflect_pad_depthwise_conv3x3_backward(q, *executor);
      CHECK(alone.dense() == first_grad_weight, "the gradient of the weight depends on what else is wanted");
    } else {
      CHECK(first_y == y.dense() && first_grad_x == grad_x.dense(), "threads change the result");
      CHECK(first_grad_weight == grad_weight.dense(), "threads change the gradient of the weight");
    }
  }
}

// --- choice of the instruction set ------------------------------------------------------------------------------------

// The kernels that measure the machine do what they say: a measure that skipped work would flatter no one but the machine.
void test_roofline(const CpuKernels& kernels) {
  where = std::string(kernels.isa) + " roofline";
  float sink[16] = {0.0f, 0.5f, 1.0f};
  const int64_t one = kernels.multiply_adds(1, sink);
  CHECK(sink[0] == 1.0f, "%g", sink[0]);
  CHECK(one >= 8 && kernels.multiply_adds(2, sink) == 2 * one, "%lld in a round", static_cast<long long>(one));
  CHECK(sink[0] == 1.75f, "%g", sink[0]);
  for (int64_t size = 0; size < 200; ++size) {
    Planes x = random_planes(1, 1, 1, size, 0, 1, 1), y(1, 1, 1, size, 0, 2, kPoison);
    kernels.copy_floats(x.data(), y.data(), size);
    CHECK(x.dense() == y.dense(), "a copy of %lld", static_cast<long long>(size));
    y.check_fences("copy");
  }
}

void test_selection() {
  where = "selection";
  const char* error = nullptr;
  CHECK(gancomp::cpu_kernels_for("no-such-isa") == nullptr, "an unknown instruction set has kernels");
  CHECK(!gancomp::select_isa("no-such-isa"), "an unknown instruction set can be selected");
  const CpuKernels* automatic = gancomp::cpu_kernels(&error);
  CHECK(automatic != nullptr, "%s", error == nullptr ? "no message" : error);
  std::string last;
  const char* first_supported = nullptr;
  for (const char* const* isa = gancomp::built_isas(); *isa != nullptr; ++isa) {
    last = *isa;
    const CpuKernels* kernels = gancomp::cpu_kernels_for(*isa);
    if (kernels == nullptr) {
      std::printf("skipped: this processor lacks %s\n", *isa);
      CHECK(!gancomp::select_isa(*isa), "%s cannot run, but can be selected", *isa);
      continue;
    }
    if (first_supported == nullptr) first_supported = *isa;
    CHECK(last == kernels->isa, "%s gives the kernels of %s", *isa, kernels->isa);
    CHECK(gancomp::select_isa(*isa) && gancomp::cpu_kernels(&error) == kernels, "%s is not selected", *isa);
  }
  CHECK(last == "portable", "the last choice is %s", last.c_str());
  gancomp::select_isa(nullptr);
  CHECK(gancomp::cpu_kernels(&error) == automatic, "the automatic choice does not come back");
  if (std::getenv("GANCOMP_ISA") == nullptr) {
    CHECK(first_supported != nullptr && std::strcmp(automatic->isa, first_supported) == 0, "%s is not the best",
          automatic->isa);
  }
}

}  // namespace

int main() {
  test_selection();
  for (const char* const* isa = gancomp::built_isas(); *isa != nullptr; ++isa) {
    const CpuKernels* kernels = gancomp::cpu_kernels_for(*isa);
    if (kernels == nullptr) continue;
    const int before = checks;
    for (const Shape& shape :
         {Shape{1, 2, 1, 1}, {1, 2, 1, 7}, {1, 1, 2, 2}, {2, 3, 2, 5}, {3, 2, 13, 31}, {0, 2, 4, 4}, {1, 2, 64, 67}}) {
      for (int variant = 0; variant < 16; ++variant) {
        test_norm(*kernels, shape, variant & 1, variant & 2, variant & 4, variant & 8 ? 3 : 0, 0.0f);
      }
      test_norm(*kernels, shape, true, false, true, 3, 1000.0f);
    }
    test_norm_of_special_planes(*kernels);
    test_roofline(*kernels);
    for (const Shape& shape : {Shape{1, 1, 2, 2},
                               {2, 3, 2, 5},
                               {1, 2, 5, 2},
                               {1, 2, 3, 3},
                               {2, 1, 2, 8},
                               {2, 3, 7, 9},
                               {1, 4, 16, 16},
                               {3, 2, 13, 31},
                               {0, 2, 4, 4},
                               {1, 2, 33, 70}}) {
      for (int variant = 0; variant < 4; ++variant) test_conv(*kernels, shape, variant & 1, variant & 2 ? 3 : 0);
    }
    test_separable_resblocks(*kernels);
    test_spade_modulations(*kernels);
    test_winograd_convs(*kernels);
    std::printf("%s: %d checks\n", *isa, checks - before);
  }
  return report();
}
