// The torch ops of csrc/bindings/torch_cuda*.cpp over the emulated kernels: for CPU tensors, with every output and workspace
// between fences (emulation.cpp) and full of NaN.
#pragma once

#define GANCOMP_DISPATCH_KEY CPU

extern "C" void* emulation_fenced(size_t bytes, int at_end);

namespace gancomp::torch_ops {

inline bool on_device(const torch::stable::Tensor& tensor) { return tensor.device().is_cpu(); }

inline size_t bytes_of(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  return dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : dtype == ScalarType::Byte ? 1 : 2;
}

inline torch::stable::Tensor allocate(const torch::stable::Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape,
                                      torch::headeronly::ScalarType dtype) {
  std::array<int64_t, 4> strides = {};
  int64_t size = 1;
  for (size_t axis = shape.size(); axis-- > 0; size *= shape[axis]) strides[axis] = size;
  if (size == 0) return torch::stable::new_empty(like, shape, dtype);
  void* data = emulation_fenced(static_cast<size_t>(size) * bytes_of(dtype), 1);
  return torch::stable::from_blob(data, shape, torch::headeronly::IntHeaderOnlyArrayRef(strides.data(), shape.size()),
                                  like.device(), dtype);
}

class Launch {
 public:
  explicit Launch(const torch::stable::Tensor&) {}
  void* stream() const { return nullptr; }
};

}  // namespace gancomp::torch_ops
