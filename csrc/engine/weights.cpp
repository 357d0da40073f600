#include "weights.h"

#include <cmath>
#include <cstring>

#include "checked.h"

namespace gancomp::engine {
namespace {

constexpr uint64_t kMaxParameters = uint64_t{1} << 30;

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

uint32_t load16(const uint8_t* bytes) { return bytes[0] | uint32_t{bytes[1]} << 8; }
uint32_t load32(const uint8_t* bytes) { return load16(bytes) | load16(bytes + 2) << 16; }

float from_half(uint32_t half) {
  const uint32_t sign = (half & 0x8000) << 16, exponent = half >> 10 & 0x1F, fraction = half & 0x3FF;
  if (exponent == 0x1F) return from_bits(sign | 0x7F800000 | fraction << 13);
  if (exponent != 0) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
  const float subnormal = static_cast<float>(fraction) * 0x1p-24f;
  return sign != 0 ? -subnormal : subnormal;
}

}  // namespace

std::vector<float> Weights::statistic(const std::string& name, const std::vector<int64_t>& shape) {
  const auto found = file_.tensors().find(name);
  if (found == file_.tensors().end()) fail_format("tensor " + in_quotes(name) + " is missing");
  const StoredTensor& tensor = found->second;
  const std::string what = "tensor " + in_quotes(name) + ": ";
  if (tensor.shape != shape) {
    fail_format(what + "shape " + shape_text(tensor.shape) + ", but the configuration wants " + shape_text(shape));
  }
  asked_.insert(name);
  std::vector<float> values(tensor.elements);
  if (tensor.dtype == "F32") {
    for (size_t i = 0; i < values.size(); ++i) values[i] = from_bits(load32(tensor.data + 4 * i));
  } else if (tensor.dtype == "F16") {
    for (size_t i = 0; i < values.size(); ++i) values[i] = from_half(load16(tensor.data + 2 * i));
  } else if (tensor.dtype == "BF16") {
    for (size_t i = 0; i < values.size(); ++i) values[i] = from_bits(load16(tensor.data + 2 * i) << 16);
  } else {
    fail(EngineError::Code::unsupported, what + "dtype " + tensor.dtype + ": the engine reads F32, F16 and BF16");
  }
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      fail_format(what + "element " + std::to_string(i) + " is " + (std::isnan(values[i]) ? "not a number" : "infinite"));
    }
  }
  return values;
}

std::vector<float> Weights::parameter(const std::string& name, const std::vector<int64_t>& shape) {
  std::vector<float> values = statistic(name, shape);
  parameters_ += static_cast<int64_t>(values.size());
  if (static_cast<uint64_t>(parameters_) > kMaxParameters) {
    fail(EngineError::Code::unsupported, "more than " + std::to_string(kMaxParameters) + " parameters");
  }
  return values;
}

void Weights::finish() const {
  for (const auto& [name, tensor] : file_.tensors()) {
    if (asked_.count(name) == 0) fail_format("tensor " + in_quotes(name) + " belongs to no part of the network");
  }
}

}  // namespace gancomp::engine
