// Builds the graph of each architecture from its configuration and weights.
#pragma once

#include <string>
#include <vector>

#include "config.h"
#include "graph.h"
#include "weights.h"

namespace gancomp::engine {

// Widest layer. With it no size of a layer overflows an int, nor a product of a few of them an int64_t.
constexpr int kMaxChannels = 65536;

// Adds nodes to a graph, each with its tensors taken from the weights under its PyTorch name.
class GraphBuilder {
 public:
  // `norm`: instance, instance_affine, batch or none.
  GraphBuilder(Weights& weights, std::string norm) : weights_(weights), norm_(std::move(norm)) {}

  // A norm's own convolution has no bias where the norm is BatchNorm, which shifts by itself.
  bool biased() const { return norm_ != "batch"; }
  // The last node; kImage where there is none yet.
  int last() const { return static_cast<int>(graph.nodes.size()) - 1; }

  // Fills in weight and bias of `node`, whose other fields are set, from NAME.weight and NAME.bias.
  void load(Node& node, const std::string& name, bool bias);
  // Puts the norm of the network behind `node`, from NAME.weight and so on. BatchNorm is folded into weight and bias.
  void normalise(Node& node, const std::string& name);
  // Gives `node` the constants of NAME.running_mean and NAME.running_var, or the planes' own norm.
  void normalise_input(Node& node, const std::string& name);
  // Returns the node's number.
  int add(Node node);

  Graph graph;

 private:
  void fold_batch_norm(Node& node, const std::string& name);
  std::vector<float> variance(const std::string& name, int channels);

  Weights& weights_;
  std::string norm_;
};

Graph build_resnet(Config& config, Weights& weights);
Graph build_unet(Config& config, Weights& weights);
Graph build_spade(Config& config, Weights& weights);

}  // namespace gancomp::engine
