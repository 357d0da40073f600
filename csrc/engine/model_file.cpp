#include "model_file.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <system_error>

#include "builder.h"
#include "checked.h"
#include "safetensors.h"

namespace gancomp::engine {
namespace {

constexpr uint64_t kMaxFile = uint64_t{4} << 30;

Graph build(const SafeTensors& file) {
  if (!file.metadata()) fail_format("metadata has no 'gancomp.config': gancomp did not write this file");
  Config config(*file.metadata());
  Weights weights(file);
  const std::string arch = config.text("arch");
  Graph graph;
  if (arch == "resnet") {
    graph = build_resnet(config, weights);
  } else if (arch == "unet") {
    graph = build_unet(config, weights);
  } else if (arch == "spade") {
    graph = build_spade(config, weights);
  } else {
    fail(EngineError::Code::unsupported, "arch=" + in_quotes(arch) + ": the engine runs resnet, unet and spade");
  }
  weights.finish();
  graph.parameters = weights.parameters();
  return graph;
}

}  // namespace

Graph read_graph(const void* data, size_t size, const std::string& name) {
  try {
    return build(SafeTensors(data, size, "gancomp.config"));
  } catch (const EngineError& error) {
    throw EngineError(error.code(), name + ": " + error.what());
  }
}

Graph read_graph_file(const std::string& path) {
  const auto fail_file = [&](const std::string& why) { fail(EngineError::Code::file, path + ": " + why); };
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::not_found) fail_file("no such file");
  if (error) fail_file(error.message());
  // Reading a pipe or a device may never end.
  if (!std::filesystem::is_regular_file(status)) fail_file("not a file");
  const uint64_t size = std::filesystem::file_size(path, error);
  if (error) fail_file(error.message());
  if (size > kMaxFile) fail(EngineError::Code::format, path + ": " + std::to_string(size) + " bytes, too many for a generator");

  errno = 0;
  std::ifstream file(path, std::ios::binary);
  // Not a vector: it would write zeros over the whole size first.
  const std::unique_ptr<char[]> bytes(new char[size]);
  if (!file || !file.read(bytes.get(), static_cast<std::streamsize>(size))) {
    fail_file(errno != 0 ? std::strerror(errno) : "cannot be read");
  }
  return read_graph(bytes.get(), size, path);
}

}  // namespace gancomp::engine
