// What tests of the graphs that files give share.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "model_file.h"
#include "small_files.h"

namespace graph_checks {

using namespace gancomp::engine;

inline Graph parse(const std::string& bytes) {
  // A buffer of its own and exact size, so that AddressSanitizer sees any read beyond it.
  const std::unique_ptr<char[]> exact(new char[bytes.size()]);
  std::copy(bytes.begin(), bytes.end(), exact.get());
  return read_graph(exact.get(), bytes.size(), "file");
}

inline small_files::Json with(small_files::Json config, const std::string& name, const small_files::Json& value) {
  config[name] = value;
  return config;
}

inline void check_node(const Graph& graph, size_t index, Node::Kind kind, const std::vector<int>& inputs, int in, int out,
                       int kernel, int stride, int padding, Padding mode, bool norm, Activation activation,
                       int residual = Node::kNone) {
  CHECK(index < graph.nodes.size(), "only %zu nodes", graph.nodes.size());
  if (index >= graph.nodes.size()) return;
  const Node& node = graph.nodes[index];
  const int i = static_cast<int>(index);
  CHECK(node.kind == kind && node.inputs == inputs && node.residual == residual, "node %d", i);
  CHECK(node.in_channels == in && node.out_channels == out, "node %d: %d -> %d", i, node.in_channels, node.out_channels);
  CHECK(node.kernel == kernel && node.stride == stride && node.padding == padding && node.padding_mode == mode, "node %d", i);
  CHECK(node.instance_norm == norm && node.activation == activation, "node %d", i);
  const size_t weights = static_cast<size_t>(kind == Node::Kind::depthwise ? 1 : in) * out * kernel * kernel;
  CHECK(node.weight.size() == weights, "node %d: %zu weights", i, node.weight.size());
  CHECK(node.bias.empty() || node.bias.size() == static_cast<size_t>(out), "node %d: %zu biases", i, node.bias.size());
}

}  // namespace graph_checks
