// The .safetensors container: an 8-byte little-endian header length, a JSON header, the tensors' bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace gancomp::engine {

struct StoredTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  uint64_t elements = 0;
  const uint8_t* data = nullptr;  // as many bytes as dtype and shape say; not aligned
};

// A view of a file's bytes, which must outlive it. Whatever was constructed is consistent: every tensor lies inside the file,
// has the size that its shape says, and no byte belongs to two tensors or to none.
class SafeTensors {
 public:
  // Keeps the metadata string of `metadata_key` and no other. Throws EngineError.
  SafeTensors(const void* data, size_t size, const std::string& metadata_key);

  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  const std::optional<std::string>& metadata() const { return metadata_; }

 private:
  std::map<std::string, StoredTensor> tensors_;
  std::optional<std::string> metadata_;
};

}  // namespace gancomp::engine
