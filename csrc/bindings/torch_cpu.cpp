// The CPU implementations of the torch ops: tensors to views, PyTorch's thread pool to an executor.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <tuple>

#include "gancomp/ops.h"

namespace {

using gancomp::ConstImages;
using gancomp::Images;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

const gancomp::CpuKernels& kernels() {
  const char* error = nullptr;
  const gancomp::CpuKernels* found = gancomp::cpu_kernels(&error);
  STD_TORCH_CHECK(found != nullptr, error == nullptr ? "no CPU kernels" : error);
  return *found;
}

void run_on_torch_threads(void*, int64_t count, gancomp::Executor::Task task, void* argument) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) { task(argument, begin, end); });
}

const gancomp::Executor executor{run_on_torch_threads, nullptr};

void check(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.device().is_cpu(), name, " must be on the CPU");
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, name, " must be float32");
}

// [N, C, H, W] with contiguous planes: the tensor itself, also as a channel slice of a wider one; otherwise a copy.
Tensor dense_planes(const Tensor& tensor, const char* name) {
  check(tensor, name);
  STD_TORCH_CHECK(tensor.dim() == 4, name, " must be [N, C, H, W]");
  const int64_t h = tensor.size(2), w = tensor.size(3);
  const bool dense = (tensor.stride(3) == 1 || w == 1) && (tensor.stride(2) == w || h == 1);
  return dense ? tensor : torch::stable::contiguous(tensor);
}

ConstImages images(const Tensor& tensor) {
  return {static_cast<const float*>(tensor.const_data_ptr()),
          tensor.size(0),
          tensor.size(1),
          tensor.size(2),
          tensor.size(3),
          tensor.stride(0),
          tensor.stride(1)};
}

Images writable(const Tensor& tensor) {
  return {static_cast<float*>(tensor.mutable_data_ptr()),
          tensor.size(0),
          tensor.size(1),
          tensor.size(2),
          tensor.size(3),
          tensor.stride(0),
          tensor.stride(1)};
}

void check_same_shape(const ConstImages& a, const ConstImages& b, const char* name) {
  STD_TORCH_CHECK(a.n == b.n && a.c == b.c && a.h == b.h && a.w == b.w, name, " must have the shape of x");
}

// A vector of which the first `count` entries are used, made contiguous where it is not; null for none.
const float* vector(MaybeTensor& tensor, const char* name, int64_t count) {
  if (!tensor.has_value()) return nullptr;
  check(*tensor, name);
  STD_TORCH_CHECK(tensor->dim() == 1 && tensor->size(0) >= count, name, " must be a vector with an entry per channel");
  if (!tensor->is_contiguous()) tensor = torch::stable::contiguous(*tensor);
  return static_cast<const float*>(tensor->const_data_ptr());
}

// Filters of which the first `count` are used, made contiguous where they are not.
const float* filters(Tensor& tensor, int64_t count) {
  check(tensor, "weight");
  STD_TORCH_CHECK(
      tensor.dim() == 4 && tensor.size(0) >= count && tensor.size(1) == 1 && tensor.size(2) == 3 && tensor.size(3) == 3,
      "weight must be [C, 1, 3, 3] with a filter per channel");
  if (!tensor.is_contiguous()) tensor = torch::stable::contiguous(tensor);
  return static_cast<const float*>(tensor.const_data_ptr());
}

template <size_t kDims>
Tensor empty(const Tensor& like, const std::array<int64_t, kDims>& shape, std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.data(), shape.size()), dtype);
}

// A gradient of full size: the kernel writes the first `active` entries, the inactive rest is zero.
Tensor gradient_like(const Tensor& like, const MaybeTensor& full, int64_t active) {
  const int64_t size = full.has_value() ? full->size(0) : 0;
  Tensor gradient = empty<1>(like, {size});
  if (size > active) {
    std::memset(static_cast<float*>(gradient.mutable_data_ptr()) + active, 0,
                static_cast<size_t>(size - active) * sizeof(float));
  }
  return gradient;
}

float* data_or_null(const Tensor& tensor) {
  return tensor.numel() == 0 ? nullptr : static_cast<float*>(tensor.mutable_data_ptr());
}

std::tuple<Tensor, Tensor, Tensor> instance_norm_act(Tensor x, MaybeTensor weight, MaybeTensor bias, MaybeTensor residual,
                                                     bool relu, double eps) {
  gancomp::InstanceNormActParams p;
  x = dense_planes(x, "x");
  p.x = images(x);
  if (residual.has_value()) {
    residual = dense_planes(*residual, "residual");
    p.residual = images(*residual);
    check_same_shape(p.x, p.residual, "residual");
  }
  p.weight = vector(weight, "weight", p.x.c);
  p.bias = vector(bias, "bias", p.x.c);
  Tensor y = empty<4>(x, {p.x.n, p.x.c, p.x.h, p.x.w});
  Tensor mean = empty<2>(x, {p.x.n, p.x.c}, ScalarType::Double), rstd = empty<2>(x, {p.x.n, p.x.c});
  p.y = writable(y);
  p.mean = static_cast<double*>(mean.mutable_data_ptr());
  p.rstd = static_cast<float*>(rstd.mutable_data_ptr());
  p.relu = relu;
  p.eps = static_cast<float>(eps);
  kernels().instance_norm_act(p, executor);
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> instance_norm_act_backward(Tensor grad, Tensor x, MaybeTensor weight, MaybeTensor bias,
                                                              Tensor mean, Tensor rstd, bool relu) {
  gancomp::InstanceNormActBackwardParams p;
  x = dense_planes(x, "x");
  p.x = images(x);
  grad = dense_planes(grad, "grad");
  p.grad = images(grad);
  check_same_shape(p.x, p.grad, "grad");
  p.weight = vector(weight, "weight", p.x.c);
  p.bias = vector(bias, "bias", p.x.c);
  check(rstd, "rstd");
  STD_TORCH_CHECK(mean.device().is_cpu() && mean.scalar_type() == ScalarType::Double, "mean must be float64 on the CPU");
  STD_TORCH_CHECK(mean.is_contiguous() && rstd.is_contiguous() && mean.numel() == p.x.n * p.x.c && rstd.numel() == mean.numel(),
                  "mean and rstd must be contiguous [N, C]");
  p.mean = static_cast<const double*>(mean.const_data_ptr());
  p.rstd = static_cast<const float*>(rstd.const_data_ptr());
  Tensor grad_x = empty<4>(x, {p.x.n, p.x.c, p.x.h, p.x.w});
  Tensor grad_weight = gradient_like(x, weight, p.x.c), grad_bias = gradient_like(x, bias, p.x.c);
  p.grad_x = writable(grad_x);
  p.grad_weight = data_or_null(grad_weight);
  p.grad_bias = data_or_null(grad_bias);
  p.relu = relu;
  kernels().instance_norm_act_backward(p, executor);
  return {grad_x, grad_weight, grad_bias};
}

void check_reflectable(const ConstImages& x) { STD_TORCH_CHECK(x.h >= 2 && x.w >= 2, "reflection needs h, w >= 2"); }

Tensor reflect_pad_depthwise_conv3x3(Tensor x, Tensor weight, MaybeTensor bias) {
  gancomp::ReflectPadDepthwiseConv3x3Params p;
  x = dense_planes(x, "x");
  p.x = images(x);
  check_reflectable(p.x);
  p.weight = filters(weight, p.x.c);
  p.bias = vector(bias, "bias", p.x.c);
  Tensor y = empty<4>(x, {p.x.n, p.x.c, p.x.h, p.x.w});
  p.y = writable(y);
  kernels().reflect_pad_depthwise_conv3x3(p, executor);
  return y;
}

std::tuple<Tensor, Tensor, Tensor> reflect_pad_depthwise_conv3x3_backward(Tensor grad, Tensor x, Tensor weight,
                                                                          int64_t bias_size, bool needs_x) {
  gancomp::ReflectPadDepthwiseConv3x3BackwardParams p;
  x = dense_planes(x, "x");
  p.x = images(x);
  check_reflectable(p.x);
  grad = dense_planes(grad, "grad");
  p.grad = images(grad);
  check_same_shape(p.x, p.grad, "grad");
  p.weight = filters(weight, p.x.c);
  STD_TORCH_CHECK(bias_size == 0 || bias_size >= p.x.c, "bias_size must be 0 or cover every channel");
  Tensor grad_x = needs_x ? empty<4>(x, {p.x.n, p.x.c, p.x.h, p.x.w}) : empty<1>(x, {0});
  Tensor grad_weight = empty<4>(x, {weight.size(0), 1, 3, 3});
  Tensor grad_bias = empty<1>(x, {bias_size});
  if (needs_x) p.grad_x = writable(grad_x);
  p.grad_weight = static_cast<float*>(grad_weight.mutable_data_ptr());
  p.grad_bias = data_or_null(grad_bias);
  std::fill(p.grad_weight + 9 * p.x.c, p.grad_weight + 9 * weight.size(0), 0.0f);
  if (bias_size > p.x.c) std::fill(p.grad_bias + p.x.c, p.grad_bias + bias_size, 0.0f);
  kernels().reflect_pad_depthwise_conv3x3_backward(p, executor);
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gancomp, CPU, m) {
  m.impl("instance_norm_act", TORCH_BOX(&instance_norm_act));
  m.impl("instance_norm_act_backward", TORCH_BOX(&instance_norm_act_backward));
  m.impl("reflect_pad_depthwise_conv3x3", TORCH_BOX(&reflect_pad_depthwise_conv3x3));
  m.impl("reflect_pad_depthwise_conv3x3_backward", TORCH_BOX(&reflect_pad_depthwise_conv3x3_backward));
}
