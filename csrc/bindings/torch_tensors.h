// What the CPU implementations of the torch ops share: tensors to views, PyTorch's thread pool to an executor.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstring>
#include <optional>

#include "gancomp/ops.h"

namespace gancomp::torch_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline const CpuKernels& kernels() {
  const char* error = nullptr;
  const CpuKernels* found = cpu_kernels(&error);
  STD_TORCH_CHECK(found != nullptr, error == nullptr ? "no CPU kernels" : error);
  return *found;
}

inline void run_on_torch_threads(void*, int64_t count, Executor::Task task, void* argument) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) { task(argument, begin, end); });
}

inline const Executor executor{run_on_torch_threads, nullptr};

inline void check(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.device().is_cpu(), name, " must be on the CPU");
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, name, " must be float32");
}

// [N, C, H, W] with contiguous planes: the tensor itself, also as a channel slice of a wider one; otherwise a copy.
inline Tensor dense_planes(const Tensor& tensor, const char* name) {
  check(tensor, name);
  STD_TORCH_CHECK(tensor.dim() == 4, name, " must be [N, C, H, W]");
  const int64_t h = tensor.size(2), w = tensor.size(3);
  const bool dense = (tensor.stride(3) == 1 || w == 1) && (tensor.stride(2) == w || h == 1);
  return dense ? tensor : torch::stable::contiguous(tensor);
}

inline ConstImages images(const Tensor& tensor) {
  return {static_cast<const float*>(tensor.const_data_ptr()),
          tensor.size(0),
          tensor.size(1),
          tensor.size(2),
          tensor.size(3),
          tensor.stride(0),
          tensor.stride(1)};
}

inline Images writable(const Tensor& tensor) {
  return {static_cast<float*>(tensor.mutable_data_ptr()),
          tensor.size(0),
          tensor.size(1),
          tensor.size(2),
          tensor.size(3),
          tensor.stride(0),
          tensor.stride(1)};
}

inline void check_same_shape(const ConstImages& a, const ConstImages& b, const char* name) {
  STD_TORCH_CHECK(a.n == b.n && a.c == b.c && a.h == b.h && a.w == b.w, name, " must have the shape of x");
}

// A vector of which the first `count` entries are used, made contiguous where it is not; null for none.
inline const float* vector(MaybeTensor& tensor, const char* name, int64_t count) {
  if (!tensor.has_value()) return nullptr;
  check(*tensor, name);
  STD_TORCH_CHECK(tensor->dim() == 1 && tensor->size(0) >= count, name, " must be a vector with an entry per channel");
  if (!tensor->is_contiguous()) tensor = torch::stable::contiguous(*tensor);
  return static_cast<const float*>(tensor->const_data_ptr());
}

// Filters of which the first `count` are used, made contiguous where they are not.
inline const float* filters(Tensor& tensor, int64_t count) {
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
inline Tensor gradient_like(const Tensor& like, const MaybeTensor& full, int64_t active) {
  const int64_t size = full.has_value() ? full->size(0) : 0;
  Tensor gradient = empty<1>(like, {size});
  if (size > active) {
    std::memset(static_cast<float*>(gradient.mutable_data_ptr()) + active, 0,
                static_cast<size_t>(size - active) * sizeof(float));
  }
  return gradient;
}

inline float* data_or_null(const Tensor& tensor) {
  return tensor.numel() == 0 ? nullptr : static_cast<float*>(tensor.mutable_data_ptr());
}

}  // namespace gancomp::torch_ops
