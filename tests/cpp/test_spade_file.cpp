// The graph of a SPADE generator's file, and what is said of a wrong one.
#include <cmath>
#include <string>
#include <vector>

#include "check.h"
#include "gancomp/engine.h"
#include "graph_checks.h"
#include "small_files.h"

namespace {

using namespace gancomp::engine;
using gancomp::EngineError;
using graph_checks::check_node;
using graph_checks::parse;
using graph_checks::with;
using small_files::File;
using small_files::Json;
using small_files::spade_config;
using small_files::spade_file;

void expect_format(const std::string& bytes, const std::string& part) {
  try {
    parse(bytes);
    CHECK(false, "accepted, expected an error with: %s", part.c_str());
  } catch (const EngineError& error) {
    CHECK(error.code() == EngineError::Code::format, "code %d: %s", static_cast<int>(error.code()), error.what());
    CHECK(std::string(error.what()).find(part) != std::string::npos, "expected '%s' in: %s", part.c_str(), error.what());
  }
}

void test_spade() {
  where = "separable spade";
  const auto conv = Node::Kind::conv, depthwise = Node::Kind::depthwise, label = Node::Kind::label;
  const auto modulate = Node::Kind::modulate, enlarge = Node::Kind::enlarge;
  const auto zero = Padding::zero;
  const auto none = Activation::none, relu = Activation::relu, leaky = Activation::leaky_relu;
  File file = spade_file();
  Graph graph = parse(file.bytes());
  // fc; per modulation 6 nodes; blocks of two modulations and two convolutions, or one of each more; five doublings; the head.
  CHECK(graph.nodes.size() == 1 + 3 * 14 + 4 * 21 + 5 + 1, "%zu nodes", graph.nodes.size());
  CHECK(graph.in_channels == 4 && graph.classes == 3 && graph.edges && graph.out_channels == 2 && graph.size_multiple == 32,
        "%d", graph.size_multiple);
  check_node(graph, 0, label, {Node::kLabels}, 4, 3, 3, 32, 1, zero, false, none);
  check_node(graph, 1, label, {Node::kLabels}, 4, 1, 3, 32, 1, zero, false, relu);
  check_node(graph, 2, depthwise, {1}, 1, 1, 3, 1, 1, zero, true, none);
  check_node(graph, 3, conv, {2}, 1, 3, 1, 1, 0, zero, false, none);
  check_node(graph, 4, depthwise, {1}, 1, 1, 3, 1, 1, zero, true, none);
  check_node(graph, 5, conv, {4}, 1, 3, 1, 1, 0, zero, false, none);
  const Node& modulation = graph.nodes[6];
  CHECK(modulation.kind == modulate && modulation.inputs == (std::vector<int>{0, 3, 5}) && modulation.activation == leaky, "6");
  CHECK(modulation.norm_mean == file.values("head_0.norm_0.param_free_norm.running_mean"), "means");
  for (size_t c = 0; c < 3; ++c) {
    const double variance = 0.5 + static_cast<double>(c);
    CHECK(std::fabs(modulation.norm_scale[c] * std::sqrt(variance + 1e-5) - 1) < 1e-6, "%g", modulation.norm_scale[c]);
    CHECK(graph.nodes[3].bias[c] == file.values("head_0.norm_0.mlp_gamma.conv.2.bias")[c] + 1.0f, "the 1 of 1 + gamma");
    CHECK(graph.nodes[5].bias[c] == file.values("head_0.norm_0.mlp_beta.conv.2.bias")[c], "beta");
  }
  check_node(graph, 7, conv, {6}, 3, 2, 3, 1, 1, zero, false, none);
  check_node(graph, 14, conv, {13}, 2, 3, 3, 1, 1, zero, false, none, 0);
  CHECK(graph.nodes[15].kind == enlarge && graph.nodes[15].inputs == std::vector<int>{14}, "doubled");
  CHECK(graph.nodes[16].stride == 16, "labels of G_middle_0");
  check_node(graph, 29, conv, {28}, 1, 3, 3, 1, 1, zero, false, none, 15);
  CHECK(graph.nodes[30].kind == label && graph.nodes[30].stride == 16, "normal: no doubling before G_middle_1");
  CHECK(graph.nodes[44].kind == enlarge, "doubled before up_0");
  CHECK(graph.nodes[50].kind == modulate && graph.nodes[50].activation == none && graph.nodes[50].inputs[0] == 44, "norm_s");
  check_node(graph, 51, conv, {50}, 3, 2, 1, 1, 0, zero, false, none);
  const Node& head = graph.nodes.back();
  CHECK(head.input_activation == leaky && head.activation == Activation::tanh && head.in_channels == 2, "head");
  CHECK(graph.nodes[graph.nodes.size() - 2].residual >= 0, "the last block's sum");

  where = "dense spade";
  graph =
      parse(spade_file(with(with(with(spade_config(), "separable", false), "norm", "instance"), "upsampling", "more")).bytes());
  CHECK(graph.nodes.size() == 1 + 3 * 10 + 4 * 15 + 6 + 1 && graph.size_multiple == 64, "%zu nodes", graph.nodes.size());
  check_node(graph, 2, conv, {1}, 1, 3, 3, 1, 1, zero, false, none);
  CHECK(graph.nodes[4].kind == modulate && graph.nodes[4].instance_norm && graph.nodes[4].norm_mean.empty(), "own statistics");

  where = "spade errors";
  const auto spade = [](const char* name, const Json& value) { return spade_file(with(spade_config(), name, value)).bytes(); };
  file = spade_file();
  file.set("up_2.norm_s.param_free_norm.running_var", 1, -1.0f);
  expect_format(file.bytes(), "'up_2.norm_s.param_free_norm.running_var': element 1 is negative");
  file = spade_file();
  file.set("up_3.norm_1.mlp_shared.0.weight", 5, NAN);
  expect_format(file.bytes(), "not a number");
  file = spade_file();
  file.set_config(with(spade_config(), "up", {2, 3, 1}));
  expect_format(file.bytes(), "config: up: has 3 values, expected 4");
  file.set_config(with(spade_config(), "embed", Json::array()));
  expect_format(file.bytes(), "config: embed: has 0 values, expected 7");
  file.set_config(with(spade_config(), "label_nc", 32768));
  expect_format(file.bytes(), "but the configuration wants [3, 32769, 3, 3]");
  file.set_config(with(spade_config(), "label_nc", 32769));
  expect_format(file.bytes(), "config: label_nc=32769: expected a whole number between 1 and 32768");
  file.set_config(with(spade_config(), "separable", false));
  expect_format(file.bytes(), "'head_0.norm_0.mlp_gamma.weight' is missing");
  expect_format(spade("upsampling", "x"), "expected one of normal, more, most");
}

}  // namespace

int main() {
  test_spade();
  return report();
}
