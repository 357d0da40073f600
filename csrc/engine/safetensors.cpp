#include "safetensors.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "checked.h"

namespace gancomp::engine {
namespace {

using Json = nlohmann::json;

constexpr size_t kPrefix = 8;
// Longest header that is read. Those of generators have some ten thousand bytes.
constexpr uint64_t kMaxHeader = uint64_t{16} << 20;
constexpr size_t kMaxRank = 8;
constexpr const char* kMetadata = "__metadata__";

struct Entry {
  std::string dtype;
  std::vector<uint64_t> shape, offsets;
  bool has_dtype = false, has_shape = false, has_offsets = false;
};

// Reads the header as a stream of JSON events, so that neither depth nor size of hostile JSON costs memory: anything but the
// three levels that the format has ends the reading at once.
class HeaderReader final : public nlohmann::json_sax<Json> {
 public:
  explicit HeaderReader(const std::string& metadata_key) : metadata_key_(metadata_key) {}

  std::map<std::string, Entry> entries;
  std::optional<std::string> metadata;

  bool null() override { wrong("null"); }
  bool boolean(bool) override { wrong("a truth value"); }
  bool number_integer(number_integer_t) override { wrong("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { wrong("a number that is not whole"); }
  bool binary(binary_t&) override { wrong("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (in_ != In::numbers) wrong("a number");
    std::vector<uint64_t>& numbers = field_ == "shape" ? entry_.shape : entry_.offsets;
    const size_t limit = field_ == "shape" ? kMaxRank : 2;
    if (numbers.size() == limit) {
      fail_format("tensor " + in_quotes(name_) + ": field '" + field_ + "' has more than " + std::to_string(limit) +
                  " numbers");
    }
    numbers.push_back(value);
    return true;
  }

  bool string(string_t& value) override {
    if (in_ == In::metadata) {
      if (key_ == metadata_key_) {
        if (metadata) fail_format("metadata " + in_quotes(key_) + " is there twice");
        metadata = std::move(value);
      }
    } else if (in_ == In::tensor && field_ == "dtype") {
      entry_.dtype = std::move(value);
    } else {
      wrong("a string");
    }
    return true;
  }

  bool start_object(size_t) override {
    if (in_ == In::nothing) {
      in_ = In::file;
    } else if (in_ == In::file) {
      in_ = name_ == kMetadata ? In::metadata : In::tensor;
      entry_ = Entry();
    } else {
      wrong("an object");
    }
    return true;
  }

  bool key(string_t& value) override {
    if (in_ == In::file) {
      name_ = std::move(value);
      if (name_ == kMetadata ? std::exchange(seen_metadata_, true) : entries.count(name_) != 0) {
        fail_format("header: " + in_quotes(name_) + " is there twice");
      }
    } else if (in_ == In::metadata) {
      key_ = std::move(value);
    } else {
      bool* const seen = value == "dtype"          ? &entry_.has_dtype
                         : value == "shape"        ? &entry_.has_shape
                         : value == "data_offsets" ? &entry_.has_offsets
                                                   : nullptr;
      if (seen == nullptr) fail_format("tensor " + in_quotes(name_) + ": unknown field " + in_quotes(value));
      if (std::exchange(*seen, true))
        fail_format("tensor " + in_quotes(name_) + ": field " + in_quotes(value) + " is there twice");
      field_ = std::move(value);
    }
    return true;
  }

  bool end_object() override {
    if (in_ == In::tensor) {
      const char* const missing = !entry_.has_dtype            ? "dtype"
                                  : !entry_.has_shape          ? "shape"
                                  : entry_.offsets.size() != 2 ? "data_offsets"
                                                               : nullptr;
      if (missing != nullptr) fail_format("tensor " + in_quotes(name_) + ": field '" + missing + "' is missing or incomplete");
      entries.emplace(std::move(name_), std::move(entry_));
    }
    in_ = In::file;
    return true;
  }

  bool start_array(size_t) override {
    if (in_ != In::tensor || field_ == "dtype") wrong("a list");
    in_ = In::numbers;
    return true;
  }

  bool end_array() override {
    in_ = In::tensor;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    fail_format("header is not valid JSON (byte " + std::to_string(position) + ")");
  }

 private:
  enum class In { nothing, file, metadata, tensor, numbers };

  [[noreturn]] void wrong(const std::string& got) const {
    switch (in_) {
      case In::nothing:
        fail_format("header is " + got + ", expected an object");
      case In::file:
        fail_format("header: " + in_quotes(name_) + " is " + got + ", expected an object");
      case In::metadata:
        fail_format("metadata " + in_quotes(key_) + " is " + got + ", expected a string");
      case In::tensor:
        fail_format("tensor " + in_quotes(name_) + ": field '" + field_ + "' is " + got + ", expected " +
                    (field_ == "dtype" ? "a string" : "a list of whole numbers"));
      case In::numbers:
        break;
    }
    fail_format("tensor " + in_quotes(name_) + ": field '" + field_ + "' holds " + got + ", expected whole numbers");
  }

  const std::string& metadata_key_;
  In in_ = In::nothing;
  std::string name_, key_, field_;  // of the tensor, of the metadata string, in the tensor's entry
  Entry entry_;
  bool seen_metadata_ = false;
};

// Bytes of one element; 0: not a type of the format that has whole bytes.
uint64_t element_size(const std::string& dtype) {
  static const std::map<std::string, uint64_t> sizes = {
      {"F64", 8},  {"I64", 8}, {"U64", 8}, {"C64", 8},     {"F32", 4},     {"I32", 4}, {"U32", 4}, {"F16", 2},
      {"BF16", 2}, {"I16", 2}, {"U16", 2}, {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"I8", 1},  {"U8", 1},  {"BOOL", 1},
  };
  const auto found = sizes.find(dtype);
  return found == sizes.end() ? 0 : found->second;
}

// The tensor of a header entry, in a file with `size` bytes of tensors.
StoredTensor checked_tensor(const std::string& name, const Entry& entry, const uint8_t* data, uint64_t size) {
  const std::string what = "tensor " + in_quotes(name) + ": ";
  const uint64_t begin = entry.offsets[0], end = entry.offsets[1];
  if (begin > end || end > size) {
    fail_format(what + "data_offsets [" + std::to_string(begin) + ", " + std::to_string(end) +
                "] are not a range inside the file's " + std::to_string(size) + " bytes of tensors");
  }
  const uint64_t each = element_size(entry.dtype);
  if (each == 0) fail(EngineError::Code::unsupported, what + "unknown dtype " + in_quotes(entry.dtype));
  StoredTensor tensor;
  tensor.elements = 1;
  uint64_t bytes = 0;
  for (const uint64_t side : entry.shape) {
    if (side > uint64_t{std::numeric_limits<int64_t>::max()} || !multiply(tensor.elements, side, &tensor.elements)) {
      fail_format(what + "its shape has too many elements");
    }
    tensor.shape.push_back(static_cast<int64_t>(side));
  }
  if (!multiply(tensor.elements, each, &bytes) || bytes != end - begin) {
    fail_format(what + "shape " + shape_text(tensor.shape) + " of " + entry.dtype + " does not fill the " +
                std::to_string(end - begin) + " bytes of its data_offsets");
  }
  tensor.dtype = entry.dtype;
  tensor.data = data + begin;
  return tensor;
}

// The header length in the first eight bytes; throws unless such a header fits into a file of `size` bytes.
uint64_t header_length(const uint8_t* data, uint64_t size) {
  if (size < kPrefix) fail_format("has " + std::to_string(size) + " bytes, too few for a .safetensors file");
  uint64_t length = 0;
  for (size_t i = 0; i < kPrefix; ++i) length |= uint64_t{data[i]} << (8 * i);
  if (length > size - kPrefix || length > kMaxHeader) {
    fail_format("header length " + std::to_string(length) + ", but only " + std::to_string(size - kPrefix) +
                " bytes follow and at most " + std::to_string(kMaxHeader) + " are allowed: truncated, or no .safetensors file");
  }
  return length;
}

}  // namespace

SafeTensors::SafeTensors(const void* data, size_t size, const std::string& metadata_key) {
  const uint8_t* const bytes = static_cast<const uint8_t*>(data);
  const uint64_t length = header_length(bytes, size);
  const char* const header = reinterpret_cast<const char*>(bytes) + kPrefix;
  // The JSON parser would skip a byte order mark and take a zero byte for the end.
  if (length == 0 || header[0] != '{') fail_format("header does not begin with '{': no .safetensors file");
  if (std::memchr(header, 0, length) != nullptr) fail_format("header holds a zero byte");

  HeaderReader reader(metadata_key);
  Json::sax_parse(header, header + length, &reader);
  metadata_ = std::move(reader.metadata);

  const uint8_t* const tensors = bytes + kPrefix + length;
  const uint64_t tensor_bytes = size - kPrefix - length;
  // By begin, then end: an empty tensor shares its begin with the next one and comes first.
  std::vector<std::tuple<uint64_t, uint64_t, const std::string*>> order;
  for (const auto& [name, entry] : reader.entries) {
    tensors_.emplace(name, checked_tensor(name, entry, tensors, tensor_bytes));
    order.emplace_back(entry.offsets[0], entry.offsets[1], &name);
  }
  std::sort(order.begin(), order.end());
  uint64_t expected = 0;
  for (const auto& [begin, end, name] : order) {
    if (begin != expected) {
      fail_format("tensor " + in_quotes(*name) + ": begins at byte " + std::to_string(begin) +
                  ", but the tensors before it end at " + std::to_string(expected));
    }
    expected = end;
  }
  if (expected != tensor_bytes) {
    fail_format("tensors end at byte " + std::to_string(expected) + ", but the file has " + std::to_string(tensor_bytes) +
                " bytes of tensors");
  }
}

}  // namespace gancomp::engine
