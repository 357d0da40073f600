#include "builder.h"

#include <cfloat>
#include <cmath>
#include <utility>

#include "checked.h"

namespace gancomp::engine {
namespace {

constexpr float kEps = 1e-5f;  // of every norm that gancomp builds

}  // namespace

void GraphBuilder::load(Node& node, const std::string& name, bool bias) {
  const int64_t in = node.kind == Node::Kind::depthwise ? 1 : node.in_channels;
  const int64_t out = node.out_channels, kernel = node.kernel;
  const std::vector<int64_t> shape = node.kind == Node::Kind::transposed ? std::vector<int64_t>{in, out, kernel, kernel}
                                                                         : std::vector<int64_t>{out, in, kernel, kernel};
  node.weight = weights_.parameter(name + ".weight", shape);
  if (bias) node.bias = weights_.parameter(name + ".bias", {out});
}

void GraphBuilder::normalise(Node& node, const std::string& name) {
  if (norm_ == "batch") {
    fold_batch_norm(node, name);
  } else if (norm_ != "none") {
    node.instance_norm = true;
    node.eps = kEps;
    if (norm_ == "instance_affine") {
      node.norm_scale = weights_.parameter(name + ".weight", {node.out_channels});
      node.norm_shift = weights_.parameter(name + ".bias", {node.out_channels});
    }
  }
}

// The running variance, of which none is negative.
std::vector<float> GraphBuilder::variance(const std::string& name, int channels) {
  std::vector<float> values = weights_.statistic(name + ".running_var", {channels});
  for (size_t c = 0; c < values.size(); ++c) {
    if (values[c] < 0)
      fail_format("tensor " + in_quotes(name + ".running_var") + ": element " + std::to_string(c) + " is negative");
  }
  weights_.ignore(name + ".num_batches_tracked");
  return values;
}

void GraphBuilder::normalise_input(Node& node, const std::string& name) {
  node.eps = kEps;
  node.instance_norm = norm_ == "instance";
  if (node.instance_norm) return;
  node.norm_mean = weights_.statistic(name + ".running_mean", {node.out_channels});
  for (const float value : variance(name, node.out_channels)) {
    node.norm_scale.push_back(static_cast<float>(1.0 / std::sqrt(double{value} + kEps)));
  }
}

void GraphBuilder::fold_batch_norm(Node& node, const std::string& name) {
  const std::vector<int64_t> shape{node.out_channels};
  const std::vector<float> scale = weights_.parameter(name + ".weight", shape);
  const std::vector<float> shift = weights_.parameter(name + ".bias", shape);
  const std::vector<float> mean = weights_.statistic(name + ".running_mean", shape);
  const std::vector<float> variance = this->variance(name, node.out_channels);

  const size_t outputs = static_cast<size_t>(node.out_channels), area = static_cast<size_t>(node.kernel) * node.kernel;
  const bool transposed = node.kind == Node::Kind::transposed;
  const size_t inputs = node.weight.size() / (outputs * area);
  node.bias.resize(outputs, 0.0f);
  for (size_t o = 0; o < outputs; ++o) {
    const double factor = scale[o] / std::sqrt(double{variance[o]} + kEps);
    const auto fold = [&](float& value, double folded) {
      if (std::fabs(folded) > FLT_MAX) {
        fail_format("tensors " + in_quotes(name + ".*") + ": channel " + std::to_string(o) + " scales weights beyond float32");
      }
      value = static_cast<float>(folded);
    };
    fold(node.bias[o], (double{node.bias[o]} - mean[o]) * factor + shift[o]);
    for (size_t i = 0; i < inputs; ++i) {
      float* const filter = node.weight.data() + (transposed ? i * outputs + o : o * inputs + i) * area;
      for (size_t k = 0; k < area; ++k) fold(filter[k], filter[k] * factor);
    }
  }
}

int GraphBuilder::add(Node node) {
  graph.nodes.push_back(std::move(node));
  return last();
}

}  // namespace gancomp::engine
