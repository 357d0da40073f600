// The SPADE generator of gancomp/models/spade.py: a convolution of the label map at its smallest, then blocks of two
// convolutions of what the label map modulates, with doublings between.
#include <string>
#include <utility>
#include <vector>

#include "builder.h"

namespace gancomp::engine {
namespace {

class SpadeBuilder {
 public:
  SpadeBuilder(Weights& weights, const std::string& norm, int inputs, bool separable)
      : builder_(weights, norm), inputs_(inputs), separable_(separable) {
    builder_.graph.in_channels = inputs;
  }

  Graph& graph() { return builder_.graph; }

  // A 3x3 convolution of every `stride`-th label.
  int label(const std::string& name, int out, int stride, Activation activation) {
    Node node = square(Node::Kind::label, Node::kLabels, inputs_, out, 3);
    node.stride = stride;
    node.activation = activation;
    builder_.load(node, name, true);
    return builder_.add(std::move(node));
  }

  int enlarge(int input, int channels) {
    Node node = square(Node::Kind::enlarge, input, channels, channels, 1);
    return builder_.add(std::move(node));
  }

  // What the label map makes of `x`: in -> out channels by way of `inner`. Returns the last node.
  int block(const std::string& name, int x, int in, int inner, int out, int embed, int stride, bool shortcut) {
    int skip = x;
    if (shortcut) {
      skip = convolution(name + ".conv_s", spade(name + ".norm_s", x, in, embed, stride, Activation::none), in, out, 1, false);
    }
    const int first = spade(name + ".norm_0", x, in, embed, stride, Activation::leaky_relu);
    const int middle = convolution(name + ".conv_0", first, in, inner, 3, true);
    const int second = spade(name + ".norm_1", middle, inner, embed, stride, Activation::leaky_relu);
    const int last = convolution(name + ".conv_1", second, inner, out, 3, true);
    graph().nodes[last].residual = skip;
    return last;
  }

  void head(const std::string& name, int in, int out) {
    const int last = convolution(name, builder_.last(), in, out, 3, true);
    graph().nodes[last].input_activation = Activation::leaky_relu;
    graph().nodes[last].activation = Activation::tanh;
  }

 private:
  static Node square(Node::Kind kind, int input, int in, int out, int kernel) {
    Node node;
    node.kind = kind;
    node.inputs = {input};
    node.in_channels = in;
    node.out_channels = out;
    node.kernel = kernel;
    node.padding = kernel / 2;
    return node;
  }

  int convolution(const std::string& name, int input, int in, int out, int kernel, bool bias) {
    Node node = square(Node::Kind::conv, input, in, out, kernel);
    builder_.load(node, name, bias);
    return builder_.add(std::move(node));
  }

  // Makes a scale (with the 1 that is added to it) or a shift of the embedded label map.
  int side(const std::string& name, int embedded, int embed, int channels, float added) {
    int last;
    if (separable_) {
      Node depthwise = square(Node::Kind::depthwise, embedded, embed, embed, 3);
      depthwise.instance_norm = true;
      builder_.load(depthwise, name + ".conv.0", true);
      last = convolution(name + ".conv.2", builder_.add(std::move(depthwise)), embed, channels, 1, true);
    } else {
      last = convolution(name, embedded, embed, channels, 3, true);
    }
    for (float& bias : graph().nodes[last].bias) bias += added;
    return last;
  }

  int spade(const std::string& name, int x, int channels, int embed, int stride, Activation activation) {
    const int embedded = label(name + ".mlp_shared.0", embed, stride, Activation::relu);
    const int scale = side(name + ".mlp_gamma", embedded, embed, channels, 1.0f);
    const int shift = side(name + ".mlp_beta", embedded, embed, channels, 0.0f);
    Node node = square(Node::Kind::modulate, x, 3 * channels, channels, 1);
    node.inputs = {x, scale, shift};
    node.activation = activation;
    builder_.normalise_input(node, name + ".param_free_norm");
    return builder_.add(std::move(node));
  }

  GraphBuilder builder_;
  const int inputs_;
  const bool separable_;
};

}  // namespace

Graph build_spade(Config& config, Weights& weights) {
  constexpr int kMaxPixels = 1 << 20, kMaxRatio = 1000;
  const int stream = config.whole("stream", 1, kMaxChannels);
  const std::vector<int> inner = config.wholes("inner", 1, kMaxChannels), up = config.wholes("up", 1, kMaxChannels);
  const std::vector<int> embed = config.wholes("embed", 1, kMaxChannels);
  const int classes = config.whole("label_nc", 1, kMaxChannels / 2), out = config.whole("out_channels", 1, kMaxChannels);
  const bool edges = config.flag("instance_edges");
  const std::string upsampling = config.choice("upsampling", {"normal", "more", "most"});
  config.whole("crop_size", 1, kMaxPixels);     // of training only
  config.number("aspect_ratio", 0, kMaxRatio);  // likewise
  const bool separable = config.flag("separable");
  const std::string norm = config.choice("norm", {"batch", "instance"});
  config.finish();
  const size_t doubled = upsampling == "most" ? 5 : 4;
  config.check_length("inner", inner, 3);
  config.check_length("up", up, doubled);
  config.check_length("embed", embed, inner.size() + doubled);

  SpadeBuilder builder(weights, norm, classes + edges, separable);
  builder.graph().classes = classes;
  builder.graph().edges = edges;
  builder.graph().out_channels = out;
  int stride = upsampling == "normal" ? 32 : upsampling == "more" ? 64 : 128;
  builder.graph().size_multiple = stride;

  int x = builder.label("fc", stream, stride, Activation::none);
  const char* const middle[] = {"head_0", "G_middle_0", "G_middle_1"};
  for (size_t i = 0; i < inner.size(); ++i) {
    if (i == 1 || (i == 2 && upsampling != "normal")) {
      x = builder.enlarge(x, stream);
      stride /= 2;
    }
    x = builder.block(middle[i], x, stream, inner[i], stream, embed[i], stride, false);
  }
  int width = stream;
  for (size_t i = 0; i < up.size(); ++i) {
    x = builder.enlarge(x, width);
    stride /= 2;
    x = builder.block("up_" + std::to_string(i), x, width, up[i], up[i], embed[inner.size() + i], stride, true);
    width = up[i];
  }
  builder.head("conv_img", width, out);
  return std::move(builder.graph());
}

}  // namespace gancomp::engine
