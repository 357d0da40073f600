// What the CUDA implementations of the torch ops share: tensors to parameters of kernels, launches on PyTorch's stream.
// Compiled without CUDA's headers, and into the same library as the CPU's: on a PyTorch without CUDA nobody calls them.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <initializer_list>
#include <limits>
#include <optional>

#include "gancomp/cuda_ops.h"

#ifdef GANCOMP_EMULATION
#include "torch_emulation.h"
#else
#include <torch/csrc/stable/accelerator.h>

// Weak: libtorch without CUDA has no such function.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

#define GANCOMP_DISPATCH_KEY CUDA

namespace gancomp::torch_ops {

inline bool on_device(const torch::stable::Tensor& tensor) { return tensor.device().is_cuda(); }

inline torch::stable::Tensor allocate(const torch::stable::Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape,
                                      torch::headeronly::ScalarType dtype) {
  return torch::stable::new_empty(like, shape, dtype);
}

// Makes the GPU of a tensor the current one while it lives.
class Launch {
 public:
  explicit Launch(const torch::stable::Tensor& x) : guard_(x.device().index()) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this PyTorch is built without CUDA");
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(x.device().index(), &stream_) == AOTI_TORCH_SUCCESS,
                    "no current CUDA stream");
  }
  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

}  // namespace gancomp::torch_ops
#endif

namespace gancomp::torch_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Shape = std::initializer_list<int64_t>;

inline void check_error(const char* error) { STD_TORCH_CHECK(error == nullptr, "CUDA: ", error == nullptr ? "" : error); }

inline int to_int(int64_t value, const char* name) {
  STD_TORCH_CHECK(value >= 0 && value < std::numeric_limits<int>::max() - 65536, name, " does not fit into 32 bits");
  return static_cast<int>(value);
}

inline cuda::Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return cuda::Dtype::kFloat32;
    case ScalarType::Half:
      return cuda::Dtype::kFloat16;
    case ScalarType::BFloat16:
      return cuda::Dtype::kBfloat16;
    default:
      STD_TORCH_CHECK(false, "x must be float32, float16 or bfloat16");
  }
}

// An image tensor [N, C, H, W]: itself, also as a channel slice of a wider one; a copy where planes are not contiguous.
inline Tensor dense_images(const Tensor& tensor, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(on_device(tensor) && tensor.device() == x.device(), name, " must be on the device of x");
  STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), name, " must have the dtype of x");
  STD_TORCH_CHECK(tensor.dim() == 4, name, " must be [N, C, H, W]");
  const int64_t h = tensor.size(2), w = tensor.size(3);
  to_int(tensor.size(0) * tensor.size(1), name);
  to_int(h * w, name);
  const bool dense = (tensor.stride(3) == 1 || w == 1) && (tensor.stride(2) == w || h == 1);
  return dense ? tensor : torch::stable::contiguous(tensor);
}

inline cuda::ConstPlanes planes(const Tensor& tensor) { return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1)}; }

inline cuda::Planes writable(const Tensor& tensor) { return {tensor.mutable_data_ptr(), tensor.stride(0), tensor.stride(1)}; }

inline bool same_shape(const Tensor& a, const Tensor& b) {
  return a.dim() == 4 && b.dim() == 4 && a.size(0) == b.size(0) && a.size(1) == b.size(1) && a.size(2) == b.size(2) &&
         a.size(3) == b.size(3);
}

// A parameter beside images x: float32 or of their dtype.
inline void check_parameter(const Tensor& tensor, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(tensor.device() == x.device(), name, " must be on the device of x");
  STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type() || tensor.scalar_type() == ScalarType::Float, name,
                  " must be float32 or have the dtype of x");
}

// A vector or filters [C, 1, 3, 3] of which the first `count` are used, made contiguous where they are not; null for none.
inline cuda::Parameter parameter(MaybeTensor& tensor, const Tensor& x, const char* name, int64_t count, bool filters = false) {
  if (!tensor.has_value()) return {};
  check_parameter(*tensor, x, name);
  const bool fits =
      filters ? tensor->dim() == 4 && tensor->size(1) == 1 && tensor->size(2) == 3 && tensor->size(3) == 3 : tensor->dim() == 1;
  STD_TORCH_CHECK(fits && tensor->size(0) >= count, name, " must have an entry for every channel");
  if (!tensor->is_contiguous()) tensor = torch::stable::contiguous(*tensor);
  return {tensor->const_data_ptr(), tensor->scalar_type() == ScalarType::Float};
}

inline cuda::Parameter filters(Tensor& tensor, const Tensor& x, const char* name, int64_t count) {
  MaybeTensor maybe = tensor;
  const cuda::Parameter found = parameter(maybe, x, name, count, true);
  tensor = *maybe;
  return found;
}

// Numbers of channels in use: `most`, or what `widths` holds at `index`.
inline cuda::Channels channels(int64_t most, const MaybeTensor& widths, const Tensor& x, int index, int count) {
  cuda::Channels found;
  found.most = to_int(most, "channels");
  if (!widths.has_value()) return found;
  STD_TORCH_CHECK(widths->device() == x.device() && widths->scalar_type() == ScalarType::Int && widths->dim() == 1 &&
                      widths->size(0) == count && widths->is_contiguous(),
                  "widths must be ", count, " int32 on the device of x");
  found.device = static_cast<const int32_t*>(widths->const_data_ptr()) + index;
  return found;
}

inline Tensor empty(const Tensor& like, Shape shape, ScalarType dtype) {
  return allocate(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), dtype);
}

inline Tensor empty(const Tensor& like, Shape shape) { return empty(like, shape, like.scalar_type()); }

inline Tensor images_like(const Tensor& x) { return empty(x, {x.size(0), x.size(1), x.size(2), x.size(3)}); }

// Memory for one call. An empty tensor has a null pointer, which is what a kernel without workspace gets.
inline Tensor workspace(const Tensor& x, int64_t bytes) { return empty(x, {bytes}, ScalarType::Byte); }

inline cuda::Gradient gradient(const Tensor& tensor, bool wanted) {
  if (!wanted) return {};
  return {tensor.mutable_data_ptr(), tensor.scalar_type() == ScalarType::Float, tensor.numel()};
}

// A tensor for the gradient of a parameter, of its full size; empty where none is wanted.
inline Tensor vector_gradient(const Tensor& x, const MaybeTensor& full, bool wanted) {
  return full.has_value() && wanted ? empty(*full, {full->size(0)}) : empty(x, {0});
}

inline Tensor weight_gradient(const Tensor& weight, bool wanted) {
  return wanted ? empty(weight, {weight.size(0), weight.size(1), weight.size(2), weight.size(3)}) : empty(weight, {0});
}

}  // namespace gancomp::torch_ops
