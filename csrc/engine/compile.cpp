#include "compile.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "gancomp/engine.h"
#include "pack.h"

namespace gancomp::engine {

Floats::Floats(size_t size) : size_(size) {
  if (size == 0) return;
  const size_t bytes = (size * sizeof(float) + 63) / 64 * 64;
  if (bytes / sizeof(float) < size) throw std::bad_alloc();
  data_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
  if (!data_) throw std::bad_alloc();
  std::memset(data_.get(), 0, bytes);
}

void Floats::Free::operator()(float* p) const { std::free(p); }

namespace {

[[noreturn]] void unsupported(const std::string& what) {
  throw EngineError(EngineError::Code::unsupported, "the engine cannot run this network: " + what);
}

float slope_of(Activation activation) {
  switch (activation) {
    case Activation::relu:
      return 0.0f;
    case Activation::leaky_relu:
      return 0.2f;
    default:
      return 1.0f;
  }
}

class Compiler {
 public:
  Compiler(const Graph& graph, bool int8) : graph_(graph), int8_(int8) {}

  Program run() {
    program_.in_channels = graph_.in_channels;
    program_.out_channels = graph_.out_channels;
    program_.size_multiple = graph_.size_multiple;
    program_.parameters = graph_.parameters;
    program_.image_pixel = graph_.in_channels <= kMaxImagePixel ? graph_.in_channels : kBlock;
    program_.classes = graph_.classes;
    program_.edges = graph_.edges;
    list_users();
    if (graph_.classes > 0) add_codes();
    for (size_t i = 0; i < graph_.nodes.size(); ++i) add(static_cast<int>(i));
    keep_finished_values();
    return std::move(program_);
  }

 private:
  void add(int index) {
    const Node& node = graph_.nodes[index];
    const bool last = index + 1 == static_cast<int>(graph_.nodes.size());
    check(node, last);
    program_.values.push_back(value_of(node, index));
    for (int input : node.inputs) {
      if (input >= 0) ++program_.values[input].uses;
    }
    if (node.residual >= 0) ++program_.values[node.residual].uses;

    if (absorbed_[index]) return;
    if (node.kind == Node::Kind::label) return add_label(node, index);
    if (node.kind == Node::Kind::modulate) return add_modulate(node, index);

    Step step;
    step.inputs = node.inputs;
    step.input_slope = slope_of(node.input_activation);
    step.output = index;
    step.kernel = node.kernel, step.stride = node.stride, step.padding = node.padding;
    step.padding_mode = node.padding_mode;
    step.in_channels = node.in_channels, step.out_channels = node.out_channels;
    if (node.kind == Node::Kind::enlarge) {
      step.kind = Step::Kind::enlarge;
      step.name = "enlarge " + std::to_string(node.in_channels);
      program_.steps.push_back(std::move(step));
      return;
    }
    step.add = program_.values[index].added_to >= 0;
    const std::vector<int> places = channel_places(program_, node);
    const std::string size = std::to_string(node.kernel) + "x" + std::to_string(node.kernel);
    const std::string channels = std::to_string(node.in_channels) + "->" + std::to_string(node.out_channels);
    // A bias in front of an InstanceNorm changes nothing.
    if (!node.instance_norm) step.bias = padded(node.bias);
    if (node.kind == Node::Kind::transposed) {
      step.kind = Step::Kind::transposed;
      step.phases = pack_transposed(node, places);
      step.name = "transposed " + size + " " + channels;
    } else if (node.kind == Node::Kind::depthwise) {
      step.kind = Step::Kind::depthwise;
      step.weight = pack_depthwise(node);
      step.name = "depthwise " + size + " " + std::to_string(node.in_channels);
    } else if (last && node.stride == 1 && node.out_channels <= kMaxHeadChannels && !node.instance_norm &&
               node.inputs[0] != Node::kImage) {
      step.kind = Step::Kind::head;
      step.weight = pack_head(node, places);
      step.output = -1;
      step.tanh = node.activation == Activation::tanh;
      step.name = "head " + size + " " + channels;
    } else if (winograd(node)) {
      add_winograd(node, std::move(step), channels);
      if (last) add_emit(index, node);
      return;
    } else {
      step.kind = folds(node) || reads_in_place(node) ? Step::Kind::pointwise : Step::Kind::conv;
      const bool narrow = node.inputs[0] == Node::kImage && program_.image_pixel != kBlock;
      step.weight = narrow ? pack_image_conv(node) : pack_conv(node, places);
      step.name = (step.kind == Step::Kind::pointwise ? "pointwise " : "conv " + size + " ") + channels;
    }
    if (int8_ && quantizes(node, step)) {
      step.int8 = true;
      step.name = "int8 " + step.name;
      if (!step.reads_image()) program_.values[node.inputs[0]].extremes = true;
    }
    const bool emits = last && step.output >= 0;
    program_.steps.push_back(std::move(step));
    if (emits) add_emit(index, node);
  }

  // With fewer channels the transforms cost more than the products save.
  static bool winograd(const Node& node) {
    constexpr int kFewest = 32;
    return node.kind == Node::Kind::conv && node.kernel == 3 && node.stride == 1 && node.padding == 1 &&
           node.inputs.size() == 1 && node.inputs[0] >= 0 && std::min(node.in_channels, node.out_channels) >= kFewest;
  }

  void add_winograd(const Node& node, Step step, const std::string& channels) {
    Step multiply;
    multiply.kind = Step::Kind::winograd_multiply;
    multiply.inputs.clear();
    multiply.output = step.output;
    multiply.in_channels = node.in_channels, multiply.out_channels = node.out_channels;
    multiply.weight = pack_winograd(node, channel_places(program_, node));
    multiply.name = "winograd 3x3 " + channels;
    Step output;
    output.kind = Step::Kind::winograd_output;
    output.inputs.clear();
    output.output = step.output;
    output.in_channels = output.out_channels = node.out_channels;
    output.bias = std::move(step.bias);
    output.add = std::exchange(step.add, false);
    output.name = "winograd output " + std::to_string(node.out_channels);
    step.kind = Step::Kind::winograd_input;
    step.out_channels = node.in_channels;
    step.name = "winograd input " + std::to_string(node.in_channels);
    program_.steps.push_back(std::move(step));
    program_.steps.push_back(std::move(multiply));
    program_.steps.push_back(std::move(output));
  }

  void add_emit(int index, const Node& node) {
    Step emit;
    emit.kind = Step::Kind::emit;
    emit.inputs = {index};
    emit.in_channels = emit.out_channels = node.out_channels;
    emit.tanh = node.activation == Activation::tanh;
    emit.name = "output " + std::to_string(node.out_channels);
    ++program_.values[index].uses;
    program_.steps.push_back(std::move(emit));
  }

  void check(const Node& node, bool last) const {
    if (node.activation == Activation::tanh && !last) unsupported("tanh before the last layer");
    if (node.activation != Activation::tanh && node.activation != Activation::none && last) {
      unsupported("a network that ends with ReLU");
    }
    if (last && node.residual != Node::kNone) unsupported("a network that ends with a sum");
    const bool of_labels = node.kind == Node::Kind::label, modulated = node.kind == Node::Kind::modulate;
    if (of_labels ? graph_.classes == 0 || node.inputs != std::vector<int>{Node::kLabels} || node.kernel != 3
                  : modulated && node.inputs.size() != 3) {
      unsupported("a label map's layer of other inputs");
    }
    if ((of_labels || modulated || node.kind == Node::Kind::enlarge) && (last || node.residual != Node::kNone)) {
      unsupported("a network that ends with a label map's layer, or a sum with one");
    }
    if (!of_labels && node.stride != 1 && node.stride != 2) unsupported("a stride of " + std::to_string(node.stride));
    if (node.kind == Node::Kind::transposed &&
        (node.stride != 2 || node.output_padding != 2 + 2 * node.padding - node.kernel)) {
      unsupported("a transposed convolution that does not double the size");
    }
    if (node.kind == Node::Kind::transposed && node.inputs[0] == Node::kImage)
      unsupported("a transposed convolution of the image");
    if (node.kind == Node::Kind::depthwise &&
        (node.kernel != 3 || node.stride != 1 || node.inputs.size() != 1 || node.inputs[0] < 0)) {
      unsupported("a depthwise convolution other than 3x3 with stride 1");
    }
    if (node.inputs.empty() || node.inputs.size() > (modulated ? kMaxInputs : 2))
      unsupported("a layer of more than two values");
    for (int input : node.inputs) {
      if ((input == Node::kLabels) != of_labels || (input == Node::kImage && graph_.classes > 0)) {
        unsupported("an input of another kind than the network's");
      }
      if (input == Node::kImage && (node.inputs.size() > 1 || node.input_activation != Activation::none)) {
        unsupported("the input image beside another value");
      }
    }
  }

  // What uses the value of each node; what another step does along with its own work.
  void list_users() {
    const int count = static_cast<int>(graph_.nodes.size());
    users_.resize(count);
    absorbed_.resize(count);
    for (int i = 0; i < count; ++i) {
      for (int input : graph_.nodes[i].inputs) {
        if (input >= 0) users_[input].push_back(i);
      }
      if (graph_.nodes[i].residual >= 0) users_[graph_.nodes[i].residual].push_back(i);
      // A modulation reads what lies before a doubling.
      if (graph_.nodes[i].kind == Node::Kind::modulate) {
        const int source = modulated(graph_.nodes[i]);
        if (source >= 0 && source != graph_.nodes[i].inputs[0]) users_[source].push_back(i);
      }
    }
    for (int i = 0; i < count; ++i) {
      const Node& node = graph_.nodes[i];
      if (node.kind == Node::Kind::enlarge) {
        bool only = true;
        for (int user : users_[i]) only &= modulates(graph_.nodes[user], i);
        absorbed_[i] = only;
      } else if (makes_sides(node)) {
        for (int side : {1, 2}) {
          const int depthwise = graph_.nodes[node.inputs[side]].inputs[0];
          absorbed_[node.inputs[side]] = absorbed_[depthwise] = absorbed_[graph_.nodes[depthwise].inputs[0]] = true;
        }
      }
    }
  }

  static bool modulates(const Node& node, int input) {
    return node.kind == Node::Kind::modulate && node.inputs.size() == 3 && node.inputs[0] == input && node.inputs[1] != input &&
           node.inputs[2] != input && node.residual != input;
  }

  // The value that a modulation reads, before the doubling in front of it.
  int modulated(const Node& node) const {
    const int input = node.inputs[0];
    return input >= 0 && graph_.nodes[input].kind == Node::Kind::enlarge ? graph_.nodes[input].inputs[0] : input;
  }

  // Whether scales and shifts come from separable convolutions of one embedded label map that nobody else reads.
  bool makes_sides(const Node& node) const {
    if (node.kind != Node::Kind::modulate || node.inputs.size() != 3 || node.inputs[1] < 0 || node.inputs[2] < 0) return false;
    int label = -1;
    for (int side : {1, 2}) {
      const Node& pointwise = graph_.nodes[node.inputs[side]];
      if (pointwise.kind != Node::Kind::conv || pointwise.kernel != 1 || pointwise.stride != 1 || pointwise.padding != 0 ||
          pointwise.inputs.size() != 1 || pointwise.inputs[0] < 0 || !plain(pointwise) || pointwise.instance_norm ||
          users_[node.inputs[side]].size() != 1) {
        return false;
      }
      const Node& depthwise = graph_.nodes[pointwise.inputs[0]];
      if (depthwise.kind != Node::Kind::depthwise || depthwise.kernel != 3 || depthwise.inputs[0] < 0 || !plain(depthwise) ||
          !depthwise.instance_norm || !depthwise.norm_scale.empty() || !depthwise.norm_shift.empty() ||
          depthwise.padding_mode != Padding::zero || users_[pointwise.inputs[0]].size() != 1) {
        return false;
      }
      if (side == 2 && depthwise.inputs[0] != label) return false;
      label = depthwise.inputs[0];
    }
    return graph_.nodes[label].kind == Node::Kind::label && users_[label].size() == 2;
  }

  static bool plain(const Node& node) {
    return node.activation == Activation::none && node.input_activation == Activation::none && node.residual == Node::kNone;
  }

  // Whether the sum of `node` can be made in its residual's memory: that is finished, and nobody reads it later.
  bool adds_in_place(const Node& node, int index) const {
    if (node.residual < 0 || node.kind != Node::Kind::conv || node.instance_norm || node.activation != Activation::none) {
      return false;
    }
    const Value& value = program_.values[node.residual];
    bool last = true;
    for (int user : users_[node.residual]) last &= user <= index;
    for (int input : node.inputs) last &= input != node.residual;
    return last && finished(value) && !absorbed_[node.residual];
  }

  static bool finished(const Value& value) { return !value.norm && value.slope == 1.0f && value.residual == Node::kNone; }

  void add_codes() {
    Step step;
    step.kind = Step::Kind::labels;
    step.inputs = {Node::kLabels};
    step.in_channels = graph_.in_channels;
    step.name = "labels " + std::to_string(graph_.in_channels);
    program_.steps.push_back(std::move(step));
  }

  int add_embedding(const Node& label) {
    Embedding embedding;
    embedding.channels = label.out_channels;
    embedding.slope = slope_of(label.activation);
    embedding.table = pack_label_table(label, graph_.classes, graph_.edges);
    embedding.bias = padded(label.bias);
    program_.embeddings.push_back(std::move(embedding));
    return static_cast<int>(program_.embeddings.size()) - 1;
  }

  Step label_step(Step::Kind kind, const Node& label) const {
    Step step;
    step.kind = kind;
    step.inputs = {Node::kLabels};
    step.stride = label.stride;
    step.kernel = 3, step.padding = 1;
    step.in_channels = label.in_channels, step.out_channels = label.out_channels;
    return step;
  }

  void add_label(const Node& node, int index) {
    Step step = label_step(Step::Kind::label, node);
    step.output = index;
    step.embedding = add_embedding(node);
    step.name = "label 3x3 " + std::to_string(node.in_channels) + "->" + std::to_string(node.out_channels);
    program_.steps.push_back(std::move(step));
  }

  void add_modulate(const Node& node, int index) {
    const int source = modulated(node);
    if (source < 0 || !finished(program_.values[source])) unsupported("a modulation of an unfinished value");
    Step step;
    step.kind = Step::Kind::modulate;
    step.inputs = {source, node.inputs[1], node.inputs[2]};
    step.output = index;
    step.in_channels = step.out_channels = node.out_channels;
    step.modulation.doubled = source != node.inputs[0];
    step.modulation.slope = slope_of(node.activation);
    step.modulation.mean = padded(node.norm_mean);
    step.modulation.factor = padded(node.norm_scale);
    step.name = "modulate " + std::to_string(node.out_channels);
    if (makes_sides(node)) {
      add_sides(node, step);
    } else if (!finished(program_.values[node.inputs[1]]) || !finished(program_.values[node.inputs[2]])) {
      unsupported("a modulation by unfinished values");
    }
    program_.steps.push_back(std::move(step));
  }

  // Scales and shifts are made where they are used, from the codes; only the statistics of what the depthwise convolutions
  // give are taken before.
  void add_sides(const Node& node, Step& step) {
    const int depthwise[] = {graph_.nodes[node.inputs[1]].inputs[0], graph_.nodes[node.inputs[2]].inputs[0]};
    const Node& label = graph_.nodes[graph_.nodes[depthwise[0]].inputs[0]];
    Step statistics = label_step(Step::Kind::label_statistics, label);
    statistics.embedding = step.embedding = add_embedding(label);
    statistics.output = depthwise[0], statistics.second_output = depthwise[1];
    statistics.name = "label statistics " + std::to_string(label.out_channels);
    step.kind = Step::Kind::label_modulate;
    step.stride = label.stride;
    step.kernel = label.kernel;
    step.in_channels = label.out_channels;
    step.name = "label modulate " + std::to_string(label.out_channels) + "->" + std::to_string(node.out_channels);
    for (int side : {0, 1}) {
      step.inputs[side + 1] = depthwise[side];
      program_.values[depthwise[side]].stored = false;
      program_.embeddings.back().depthwise[side] = pack_depthwise(graph_.nodes[depthwise[side]]);
      const Node& pointwise = graph_.nodes[node.inputs[side + 1]];
      step.modulation.weight[side] = pack_conv(pointwise, channel_places(program_, pointwise));
      step.modulation.bias[side] = padded(pointwise.bias);
    }
    program_.steps.push_back(std::move(statistics));
  }

  Value value_of(const Node& node, int index) const {
    Value value;
    value.channels = node.out_channels;
    const bool of_labels = node.kind == Node::Kind::label || node.kind == Node::Kind::modulate;
    value.norm = value.statistics = node.instance_norm && !of_labels;
    for (const Node& other : graph_.nodes) {
      if (other.kind == Node::Kind::modulate && other.instance_norm) value.statistics |= modulated(other) == index;
    }
    value.eps = node.eps;
    if (value.norm) {
      value.norm_scale = padded(node.norm_scale);
      value.norm_shift = padded(node.norm_shift);
    }
    value.slope = of_labels ? 1.0f : slope_of(node.activation);
    if (adds_in_place(node, index)) {
      value.added_to = node.residual;
    } else {
      value.residual = node.residual;
    }
    return value;
  }

  // Whether `node` is a 1x1 convolution of a value that is finished as it lies.
  bool reads_in_place(const Node& node) const { return is_pointwise(node) && finished(program_.values[node.inputs[0]]); }

  static bool is_pointwise(const Node& node) {
    return node.kernel == 1 && node.stride == 1 && node.padding == 0 && node.inputs.size() == 1 && node.inputs[0] >= 0 &&
           node.input_activation == Activation::none;
  }

  // Whether `node` is the 1x1 convolution behind a normalised depthwise one that nobody else reads.
  bool folds(const Node& node) const {
    if (!is_pointwise(node)) return false;
    const Node& input = graph_.nodes[node.inputs[0]];
    int users = 0;
    for (const Node& other : graph_.nodes) {
      for (int i : other.inputs) users += i == node.inputs[0];
      users += other.residual == node.inputs[0];
    }
    // Without a norm of its own behind it, the mean would have to be carried into the bias.
    return users == 1 && node.instance_norm && input.instance_norm && input.norm_scale.empty() && input.norm_shift.empty() &&
           input.activation == Activation::none && input.residual == Node::kNone;
  }

  // Whether the inputs have a range to quantize by that is not much wider than most of their values: behind a norm, not behind
  // a sum. A zero point (of the image, and in front of pointwise convolutions) adds a constant to every output channel, which
  // only a norm behind takes away. Transposed convolutions stay as they are: they took 3 % of the time and 8 dB of the quality
  // of a published generator.
  bool quantizes(const Node& node, const Step& step) const {
    // A sum of more products of the largest bytes would not fit 32 bits.
    constexpr int64_t kMostProducts = INT32_MAX / (255 * 128);
    if (static_cast<int64_t>(node.in_channels) * node.kernel * node.kernel > kMostProducts) return false;
    if (step.kind == Step::Kind::depthwise || step.kind == Step::Kind::transposed) return false;
    if (step.reads_image()) {
      return program_.image_pixel != kBlock && node.padding_mode != Padding::zero && node.instance_norm;
    }
    if (step.kind == Step::Kind::pointwise) return program_.values[node.inputs[0]].norm;
    const Value& input = program_.values[node.inputs[0]];
    const bool rectified = input.slope * step.input_slope == 0.0f;
    return node.inputs.size() == 1 && input.norm && rectified && input.residual == Node::kNone &&
           (step.bias.empty() || step.kind == Step::Kind::head);
  }

  // A value that is added somewhere, or that has a sum in it and several users, is written out finished by its first user.
  void keep_finished_values() {
    for (size_t v = 0; v < program_.values.size(); ++v) {
      Value& value = program_.values[v];
      bool added = false;
      for (const Value& other : program_.values) added |= other.residual == static_cast<int>(v);
      if (!added && (value.residual == Node::kNone || value.uses < 2)) continue;
      for (size_t s = 0; s < program_.steps.size() && value.kept_by < 0; ++s) {
        const Step& step = program_.steps[s];
        const bool gathers = step.gathers() && step.inputs.size() == 1;
        if (gathers && step.inputs[0] == static_cast<int>(v) && step.input_slope == 1.0f) value.kept_by = static_cast<int>(s);
      }
      if (value.kept_by < 0) unsupported("a sum with a value that no layer reads");
    }
    for (const Value& value : program_.values) {
      if (value.residual == Node::kNone) continue;
      for (size_t s = 0; s < program_.steps.size(); ++s) {
        for (int input : program_.steps[s].inputs) {
          if (input >= 0 && &program_.values[input] == &value &&
              static_cast<int>(s) <= program_.values[value.residual].kept_by) {
            unsupported("a sum with a value of a later layer");
          }
        }
      }
    }
    for (const Step& step : program_.steps) {
      for (int input : step.inputs) {
        if (input >= 0 && step.input_slope != 1.0f && program_.values[input].residual != Node::kNone) {
          unsupported("an activation after a sum");
        }
      }
    }
  }

  const Graph& graph_;
  const bool int8_;
  Program program_;
  std::vector<std::vector<int>> users_;  // by node
  std::vector<bool> absorbed_;
};

}  // namespace

int Program::packed_channels(const Step& step) const {
  if (step.reads_image()) return image_pixel == kBlock ? step.in_channels : step.in_channels * step.kernel;
  if (step.inputs.empty()) return step.in_channels;
  int channels = 0;
  for (size_t i = 0; i + 1 < step.inputs.size(); ++i) channels += values[step.inputs[i]].blocks() * kBlock;
  return channels + values[step.inputs.back()].channels;
}

Program compile(const Graph& graph, bool int8) { return Compiler(graph, int8).run(); }

}  // namespace gancomp::engine
