// Feeds bytes to the reader of model files, what it accepts to the compiler, and what that accepts to an engine: the result
// must be a consistent graph that runs, or one EngineError, whatever the bytes.
//
// Built by clang it is a libFuzzer target; by other compilers main.cpp drives it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "compile.h"
#include "gancomp/engine.h"
#include "model_file.h"

namespace {

using namespace gancomp::engine;

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "violated: %s\n", what);
  std::abort();
}

void check_graph(const Graph& graph) {
  require(!graph.nodes.empty() && graph.nodes.back().out_channels == graph.out_channels, "output channels");
  const auto channels = [&](int node) {
    return node == Node::kImage || node == Node::kLabels ? graph.in_channels
                                                         : graph.nodes[static_cast<size_t>(node)].out_channels;
  };
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const Node& node = graph.nodes[i];
    const int given = graph.classes > 0 ? Node::kLabels : Node::kImage;
    const auto earlier = [&](int other) { return other == given || (other >= 0 && other < static_cast<int>(i)); };
    int inputs = 0;
    for (const int input : node.inputs) {
      require(earlier(input), "inputs come first");
      inputs += channels(input);
    }
    require(inputs == node.in_channels && inputs > 0 && node.out_channels > 0, "input channels");
    const size_t each = node.kind == Node::Kind::depthwise ? 1 : static_cast<size_t>(inputs),
                 outputs = static_cast<size_t>(node.out_channels);
    require(node.kind != Node::Kind::depthwise || inputs == node.out_channels, "depthwise channels");
    const bool bare = node.kind == Node::Kind::modulate || node.kind == Node::Kind::enlarge;
    require(!bare || node.weight.empty(), "no weights");
    require(bare || node.weight.size() == each * outputs * static_cast<size_t>(node.kernel * node.kernel), "weights");
    for (const std::vector<float>* values : {&node.bias, &node.norm_scale, &node.norm_shift, &node.norm_mean}) {
      require(values->empty() || values->size() == outputs, "a number per channel");
    }
    for (const std::vector<float>* values : {&node.weight, &node.bias, &node.norm_scale, &node.norm_shift, &node.norm_mean}) {
      for (const float value : *values) require(std::isfinite(value), "finite numbers");
    }
    require(node.residual == Node::kNone || (earlier(node.residual) && channels(node.residual) == node.out_channels),
            "residual");
  }
}

// On a small image, with the kernels whose memory the sanitizers see best. It takes a hundred times as long as to read the
// file, so that it is done for one file of sixteen, always the same ones.
void run(const uint8_t* data, size_t size) {
  if (std::accumulate(data, data + size, 0u) % 16 != 0) return;
  constexpr int kHeight = 17, kWidth = 21;
  constexpr size_t kMaxWorkspace = size_t{1} << 20;
  constexpr int64_t kMaxMacs = 1 << 22;
  gancomp::EngineOptions options;
  options.threads = 1;
  options.isa = "portable";
  const auto model = gancomp::Model::parse(data, size, options);
  gancomp::Engine engine(model, options);
  if (engine.workspace(kHeight, kWidth) > kMaxWorkspace || model->macs(kHeight, kWidth) > kMaxMacs) return;
  const size_t pixels = kHeight * kWidth;
  std::vector<uint8_t> y(pixels * static_cast<size_t>(model->out_channels()));
  if (model->classes() > 0) {
    const std::vector<int32_t> x(pixels * (model->edges() ? 2 : 1), model->classes() - 1);
    engine.run_labels(x.data(), y.data(), 1, kHeight, kWidth);
  } else {
    const std::vector<uint8_t> x(pixels * static_cast<size_t>(model->in_channels()), 200);
    engine.run(x.data(), y.data(), 1, kHeight, kWidth);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const Graph graph = read_graph(data, size, "input");
    check_graph(graph);
    for (const bool int8 : {false, true}) compile(graph, int8);
    run(data, size);
  } catch (const gancomp::EngineError& error) {
    const std::string message = error.what();
    require(message.size() < 512, "a message of bounded length");
    for (const char c : message) require(static_cast<unsigned char>(c) >= 0x20, "a message of one line");
  }
  return 0;
}

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

// Nearly every change of plain bytes breaks the header's length or its JSON. Half of the time only the header is changed, or
// only the tensors, and the length is set right again.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned int seed) {
  constexpr size_t kPrefix = 8;
  uint64_t header = 0;
  if (size >= kPrefix) std::memcpy(&header, data, kPrefix);
  if (size < kPrefix || header > size - kPrefix || seed % 2 == 0) return LLVMFuzzerMutate(data, size, max_size);
  std::vector<uint8_t> part(data + kPrefix, data + kPrefix + header), rest(data + kPrefix + header, data + size);
  const bool tensors = seed / 2 % 4 == 0;
  std::vector<uint8_t>& changed = tensors ? rest : part;
  const size_t used = changed.size(), limit = max_size - (size - used);
  if (limit == 0) return LLVMFuzzerMutate(data, size, max_size);
  changed.resize(std::max(used, limit));
  changed.resize(LLVMFuzzerMutate(changed.data(), used, limit));
  header = part.size();
  std::memcpy(data, &header, kPrefix);
  if (!part.empty()) std::memcpy(data + kPrefix, part.data(), part.size());
  if (!rest.empty()) std::memcpy(data + kPrefix + part.size(), rest.data(), rest.size());
  return kPrefix + part.size() + rest.size();
}
