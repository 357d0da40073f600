// What a generator computes, free of architecture names, file formats and memory layouts.
#pragma once

#include <cstdint>
#include <vector>

namespace gancomp::engine {

enum class Padding { zero, reflect, replicate };
enum class Activation { none, relu, leaky_relu, tanh };  // leaky_relu has slope 0.2

// One convolution and what belongs to it:
//   value = activation(norm(convolve(concat(input_activation(inputs))))) + residual
// or one of these:
//   label:    activation(3x3 convolution of the one-hot image of every `stride`-th pixel of the label map, zeros around it)
//   modulate: activation(norm(inputs[0]) * inputs[1] + inputs[2]), the norm that of every plane or, without instance_norm,
//             (x - norm_mean) * norm_scale
//   enlarge:  every pixel of the input four times
struct Node {
  enum class Kind { conv, depthwise, transposed, label, modulate, enlarge };
  static constexpr int kImage = -1;   // as an input: the image that the network is given
  static constexpr int kNone = -2;    // as a residual: nothing is added
  static constexpr int kLabels = -3;  // as an input: the label map that the network is given instead of an image

  Kind kind = Kind::conv;
  std::vector<int> inputs{kImage};  // earlier nodes (or kImage), concatenated along channels
  Activation input_activation = Activation::none;
  int in_channels = 0;  // of all inputs together
  int out_channels = 0;
  int kernel = 1;  // side of the square kernel
  int stride = 1;
  int padding = 0;                            // on every side; for transposed the amount cut from the full output
  int output_padding = 0;                     // transposed only
  Padding padding_mode = Padding::zero;       // conv and depthwise; transposed knows zero only
  std::vector<float> weight;                  // conv, label [O, I, k, k]; depthwise [C, 1, k, k]; transposed [I, O, k, k]
  std::vector<float> bias;                    // [O]; empty: zero
  bool instance_norm = false;                 // normalise every plane
  float eps = 1e-5f;                          // added to the variance
  std::vector<float> norm_scale, norm_shift;  // [O] after the normalisation; empty: one and zero
  std::vector<float> norm_mean;               // [O] modulate without instance_norm only
  Activation activation = Activation::none;
  int residual = kNone;  // an earlier node of the same shape, added last
};

// Nodes in an order in which they can run; the last one's value is the output image.
struct Graph {
  int in_channels = 3;
  int out_channels = 3;
  int size_multiple = 1;   // heights and widths that the nodes map to an equal output size are multiples of it
  int classes = 0;         // of a network of label maps, whose one-hot image has in_channels: 0: the network takes images
  bool edges = false;      // whether an edge channel follows the classes
  int64_t parameters = 0;  // scalars in all trained tensors of the file; BatchNorm folded into a convolution counts as well
  std::vector<Node> nodes;
};

}  // namespace gancomp::engine
