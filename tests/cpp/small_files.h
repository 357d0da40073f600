// Small .safetensors files of generators, written field by field, so that a test can spoil any of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace small_files {

using Json = nlohmann::ordered_json;

struct File {
  Json header = Json::object();
  std::string data;

  // Appends a float32 tensor of values between -1 and 1 that differ from file position to file position.
  void add(const std::string& name, const std::vector<int64_t>& shape);
  void add(const std::string& name, const std::vector<int64_t>& shape, const char* dtype, const void* bytes, size_t size);

  void set(const std::string& name, size_t index, float value);
  std::vector<float> values(const std::string& name) const;
  void set_config(const Json& config);

  std::string bytes() const;
  // A file whose header is this text, which need not be JSON.
  static std::string with_header(const std::string& text, const std::string& data);

 private:
  size_t begin(const std::string& name) const;

  uint32_t state_ = 1;
};

// A generator with a few channels: 2 -> 1 and two blocks; 2 -> 3 and five levels; three classes and edges -> 2.
Json resnet_config();
Json unet_config();
Json spade_config();

File resnet_file(const Json& config = resnet_config());
File unet_file(const Json& config = unet_config());
File spade_file(const Json& config = spade_config());

}  // namespace small_files
