// The U-Net of gancomp/models/unet.py: 4x4 convolutions that halve the image n_levels times, transposed ones that enlarge it
// again, each given the tensor of its own size from the way down beside the one from below.
//
// PyTorch's module activates a skipped tensor in place with LeakyReLU, and the consumer of [skip, below] with ReLU. As
// relu(leaky_relu(x)) == relu(x), here the raw tensor is kept, and each consumer activates what it reads.
#include <algorithm>
#include <utility>

#include "builder.h"

namespace gancomp::engine {
namespace {

Node resample(Node::Kind kind, std::vector<int> inputs, Activation input_activation, int in, int out) {
  Node node;
  node.kind = kind;
  node.inputs = std::move(inputs);
  node.input_activation = input_activation;
  node.in_channels = in;
  node.out_channels = out;
  node.kernel = 4;
  node.stride = 2;
  node.padding = 1;
  return node;
}

}  // namespace

Graph build_unet(Config& config, Weights& weights) {
  const int ngf = config.whole("ngf", 1, kMaxChannels / 8), levels = config.whole("n_levels", 5, 12);
  const int in = config.whole("in_channels", 1, kMaxChannels), out = config.whole("out_channels", 1, kMaxChannels);
  const std::string norm = config.choice("norm", {"instance", "instance_affine", "batch", "none"});
  config.number("dropout", 0, 1);  // of training only
  config.finish();

  GraphBuilder builder(weights, norm);
  builder.graph.in_channels = in;
  builder.graph.out_channels = out;
  builder.graph.size_multiple = 1 << levels;

  // Of the tensor after `level` + 1 halvings.
  const auto width = [&](int level) { return ngf << std::min(level, 3); };
  // The module of a level; those of the inner ones lie in the third and fourth place of the outer ones' Sequentials.
  const auto module = [&](int level) {
    std::string name = "model.model.";
    for (int outer = 1; outer <= level; ++outer) name += outer == 1 ? "1.model." : "3.model.";
    return name;
  };
  const int innermost = levels - 1;

  std::vector<int> down;
  for (int level = 0; level < levels; ++level) {
    Node node = level == 0 ? resample(Node::Kind::conv, {Node::kImage}, Activation::none, in, ngf)
                           : resample(Node::Kind::conv, {down.back()}, Activation::leaky_relu, width(level - 1), width(level));
    builder.load(node, module(level) + (level == 0 ? "0" : "1"), builder.biased());
    if (level != 0 && level != innermost) builder.normalise(node, module(level) + "2");
    down.push_back(builder.add(std::move(node)));
  }
  for (int level = innermost; level >= 0; --level) {
    const int outputs = level == 0 ? out : width(level - 1);
    Node node = level == innermost ? resample(Node::Kind::transposed, {down[level]}, Activation::relu, width(level), outputs)
                                   : resample(Node::Kind::transposed, {down[level], builder.last()}, Activation::relu,
                                              2 * width(level), outputs);
    const int index = level == 0 || level == innermost ? 3 : 5;
    builder.load(node, module(level) + std::to_string(index), level == 0 || builder.biased());
    if (level == 0) {
      node.activation = Activation::tanh;
    } else {
      builder.normalise(node, module(level) + std::to_string(index + 1));
    }
    builder.add(std::move(node));
  }
  return std::move(builder.graph);
}

}  // namespace gancomp::engine
