// The ResNet generator of gancomp/models/resnet.py: a 7x7 convolution, two of stride 2, residual blocks, two transposed
// convolutions, a 7x7 convolution. Tensor names are positions in its Sequential, where paddings, ReLUs and the tanh count too.
#include <utility>

#include "builder.h"

namespace gancomp::engine {
namespace {

std::string at(int index) { return "model." + std::to_string(index); }

Node conv(int input, int in, int out, int kernel, int padding, Padding mode) {
  Node node;
  node.inputs = {input};
  node.in_channels = in;
  node.out_channels = out;
  node.kernel = kernel;
  node.padding = padding;
  node.padding_mode = mode;
  return node;
}

// One convolution of a block and its norm: dense 3x3, or depthwise 3x3, norm and 1x1. Returns the last node.
Node block_conv(GraphBuilder& builder, const std::string& name, const std::string& norm_name, int input, int in, int out,
                bool separable, Padding mode) {
  Node node = conv(input, in, out, 3, 1, mode);
  if (separable) {
    node.kind = Node::Kind::depthwise;
    node.out_channels = in;
    node.instance_norm = true;  // whatever the norm of the network
    builder.load(node, name + ".conv.0", true);
    node = conv(builder.add(std::move(node)), in, out, 1, 0, Padding::zero);
    builder.load(node, name + ".conv.2", true);
  } else {
    builder.load(node, name, builder.biased());
  }
  builder.normalise(node, norm_name);
  return node;
}

}  // namespace

Graph build_resnet(Config& config, Weights& weights) {
  const auto width = [&](const char* name) { return config.whole(name, 1, kMaxChannels); };
  const int in = width("in_channels"), out = width("out_channels");
  const int stem = width("stem"), down = width("down"), stream = width("stream"), up = width("up"), last = width("last");
  const std::vector<int> hidden = config.wholes("hidden", 1, kMaxChannels);
  const bool separable = config.flag("separable");
  const std::string norm = config.choice("norm", {"instance", "instance_affine", "batch", "none"});
  const std::string padding = config.choice("padding", {"reflect", "replicate", "zero"});
  config.number("dropout", 0, 1);  // of training only
  config.finish();
  const Padding mode = padding == "reflect" ? Padding::reflect : padding == "replicate" ? Padding::replicate : Padding::zero;

  GraphBuilder builder(weights, norm);
  builder.graph.in_channels = in;
  builder.graph.out_channels = out;
  builder.graph.size_multiple = 4;

  // A convolution at `index` of the Sequential, the norm behind it and the ReLU.
  const auto layer = [&](Node node, int index) {
    builder.load(node, at(index), builder.biased());
    builder.normalise(node, at(index + 1));
    node.activation = Activation::relu;
    builder.add(std::move(node));
  };
  const auto halve = [&](int from, int to, int index) {
    Node node = conv(builder.last(), from, to, 3, 1, Padding::zero);
    node.stride = 2;
    layer(std::move(node), index);
  };
  const auto enlarge = [&](int from, int to, int index) {
    Node node = conv(builder.last(), from, to, 3, 1, Padding::zero);
    node.kind = Node::Kind::transposed;
    node.stride = 2;
    node.output_padding = 1;
    layer(std::move(node), index);
  };

  layer(conv(Node::kImage, in, stem, 7, 3, mode), 1);
  halve(stem, down, 4);
  halve(down, stream, 7);
  int index = 10;
  for (const int inner : hidden) {
    const std::string name = at(index++) + ".conv_block.";
    const int input = builder.last();
    Node first = block_conv(builder, name + "1", name + "2", input, stream, inner, separable, mode);
    first.activation = Activation::relu;
    const int middle = builder.add(std::move(first));
    Node second = block_conv(builder, name + "6", name + "7", middle, inner, stream, separable, mode);
    second.residual = input;
    builder.add(std::move(second));
  }
  enlarge(stream, up, index);
  enlarge(up, last, index + 3);
  Node head = conv(builder.last(), last, out, 7, 3, mode);
  builder.load(head, at(index + 7), true);
  head.activation = Activation::tanh;
  builder.add(std::move(head));
  return std::move(builder.graph);
}

}  // namespace gancomp::engine
