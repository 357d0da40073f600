// What a generator computes, free of architecture names, file formats and memory layouts.
#pragma once

#include <cstdint>
#include <vector>

namespace gancomp::engine {

enum class Padding { zero, reflect, replicate };
enum class Activation { none, relu, leaky_relu, tanh };  // leaky_relu has slope 0.2

// One convolution and what belongs to it:
//   value = activation(norm(convolve(concat(input_activation(inputs))))) + residual
struct Node {
  enum class Kind { conv, depthwise, transposed };
  static constexpr int kImage = -1;  // as an input: the image that the network is given
  static constexpr int kNone = -2;   // as a residual: nothing is added

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
  std::vector<float> weight;                  // conv [O, I, k, k]; depthwise [C, 1, k, k]; transposed [I, O, k, k]
  std::vector<float> bias;                    // [O]; empty: zero
  bool instance_norm = false;                 // normalise every plane
  float eps = 1e-5f;                          // added to the variance
  std::vector<float> norm_scale, norm_shift;  // [O] after the normalisation; empty: one and zero
  Activation activation = Activation::none;
  int residual = kNone;  // an earlier node of the same shape, added last
};

// Nodes in an order in which they can run; the last one's value is the output image.
struct Graph {
  int in_channels = 3;
  int out_channels = 3;
  int size_multiple = 1;   // heights and widths that the nodes map to an equal output size are multiples of it
  int64_t parameters = 0;  // scalars in all trained tensors of the file; BatchNorm folded into a convolution counts as well
  std::vector<Node> nodes;
};

}  // namespace gancomp::engine
