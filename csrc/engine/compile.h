// From a graph to steps: what is fused with what, and weights in the order the kernels read them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gancomp/ops.h"
#include "graph.h"

namespace gancomp::engine {

// Floats on a cache line boundary.
class Floats {
 public:
  Floats() = default;
  explicit Floats(size_t size);  // zeros
  float* data() { return data_.get(); }
  const float* data() const { return data_.get(); }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

 private:
  struct Free {
    void operator()(float* p) const;
  };
  std::unique_ptr<float, Free> data_;
  size_t size_ = 0;
};

constexpr size_t kMaxInputs = 3;

// What a convolution left in memory, and what stands between that and the value of its node.
struct Value {
  int channels = 0;
  bool norm = false;
  float eps = 1e-5f;
  Floats norm_scale, norm_shift;  // [blocks * 16] or empty
  float slope = 1.0f;             // of negative values
  int residual = Node::kNone;
  bool statistics = false;  // whether the sums of its strips are taken: for its own norm, or for that of a modulation
  bool stored = true;       // in memory; a value of which only the statistics are wanted is not
  int added_to = -1;        // the value in whose memory this one is made, by adding to it; -1: its own
  bool extremes = false;    // whether a user needs its smallest and largest values
  int uses = 0;             // by later steps, residuals included
  int kept_by = -1;         // the step that writes the finished value; -1: every user finishes it for itself

  int blocks() const { return (channels + kBlock - 1) / kBlock; }
};

// A phase of a transposed convolution: the outputs of one parity of rows and columns. Its taps are neighbouring inputs.
struct Phase {
  int first_row = 0, first_column = 0;  // of the taps, relative to the output's own input pixel
  int taps_h = 0, taps_w = 0;
  Floats weight;
};

// Codes of a label map: the label, `classes` more where there is an edge, and one for what lies outside the map.
// What steps make of them: a 3x3 convolution with its activation, and two depthwise ones of that.
struct Embedding {
  int channels = 0;
  float slope = 1.0f;
  Floats table;         // [block][9][codes][16]
  Floats bias;          // [blocks * 16] or empty
  Floats depthwise[2];  // [blocks][9][16] or empty

  int blocks() const { return (channels + kBlock - 1) / kBlock; }
};

// How a step modulates its first input.
struct Modulation {
  bool doubled = false;  // the input has half the rows and columns
  float slope = 1.0f;
  Floats mean, factor;  // [blocks * 16] of the input's normalisation; empty: by its own statistics
  Floats weight[2];     // of 1x1 convolutions that make scales and shifts; empty: the second and third input are these
  Floats bias[2];
};

struct Step {
  enum class Kind {
    conv,               // gather rows, convolve
    pointwise,          // 1x1 of rows as they lie; the norm of a depthwise output is folded into the weights
    depthwise,          // gather rows of a block, filter
    transposed,         // gather rows, convolve by phases
    winograd_input,     // 3x3: gather rows of a block, transform,
    winograd_multiply,  // multiply by the transformed weights,
    winograd_output,    // transform back; three steps of one convolution
    head,               // gather rows, convolve into the output image
    emit,               // value to output image
    labels,             // the label map that is given to codes
    label,              // convolve codes
    label_statistics,   // convolve codes, filter, take the statistics alone
    modulate,           // with scales and shifts as they lie,
    label_modulate,     // or made of codes
    enlarge,            // double
  };
  Kind kind = Kind::conv;
  std::vector<int> inputs;  // values; the image is Node::kImage and stands alone, as do the labels, Node::kLabels; none: what
                            // the step before prepared
  float input_slope = 1.0f;
  int output = -1;  // value (that the last step of a convolution writes); -1: the output image
  int second_output = -1;
  int kernel = 1, stride = 1, padding = 0;  // stride of a step that reads codes: pixels of the image to one of its own
  Padding padding_mode = Padding::zero;
  int in_channels = 0, out_channels = 0;
  bool tanh = false;
  bool add = false;   // to what lies in the output's memory
  bool int8 = false;  // quantize what is gathered and convolve bytes
  Floats weight, bias;
  std::vector<Phase> phases;  // transposed: row parity major
  int embedding = -1;         // of the program's
  Modulation modulation;
  std::string name;

  int out_blocks() const { return (out_channels + kBlock - 1) / kBlock; }
  // Whether it reads its inputs through the gather; otherwise rows as they lie, or what another step prepared.
  bool gathers() const {
    return kind == Kind::conv || kind == Kind::depthwise || kind == Kind::transposed || kind == Kind::winograd_input ||
           kind == Kind::head;
  }
  int taps() const { return kernel * kernel; }
  bool reads_image() const { return !inputs.empty() && inputs[0] == Node::kImage; }
  // Whether it needs codes around every pixel of its own.
  bool reads_codes() const { return kind == Kind::label || kind == Kind::label_statistics || kind == Kind::label_modulate; }
  bool modulates() const { return kind == Kind::modulate || kind == Kind::label_modulate; }
  // Whether it gathers and works on one block of channels after the other.
  bool by_block() const { return kind == Kind::depthwise || kind == Kind::winograd_input; }
};

struct Program {
  int in_channels = 0, out_channels = 0, size_multiple = 1;
  int64_t parameters = 0;
  int classes = 0;            // of a network of label maps; 0: it takes images
  bool edges = false;         // of instances, in the label maps
  int image_pixel = kBlock;   // floats of a gathered image pixel
  std::vector<Value> values;  // by node
  std::vector<Step> steps;
  std::vector<Embedding> embeddings;

  // Of labels, with and without an edge; the one for the outside is this number.
  int inside_codes() const { return edges ? 2 * classes : classes; }
  // Input channels of a step's packed weights: inputs that end within a block count as whole ones, a row of taps of an image of
  // few channels as one.
  int packed_channels(const Step& step) const;
};

// With `int8`, convolutions whose range is known from a norm are done in bytes, where the error of that is small.
// Throws EngineError (unsupported) for a graph with something the steps cannot do.
Program compile(const Graph& graph, bool int8);

}  // namespace gancomp::engine
