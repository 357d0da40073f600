#include "compile.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "gancomp/engine.h"

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

int round_up(int channels) { return (channels + kBlock - 1) / kBlock * kBlock; }

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

Floats padded(const std::vector<float>& values) {
  if (values.empty()) return Floats();
  Floats result(round_up(static_cast<int>(values.size())));
  std::memcpy(result.data(), values.data(), values.size() * sizeof(float));
  return result;
}

// Where each input channel lies when every input is filled up to whole blocks.
std::vector<int> channel_places(const Program& program, const Node& node) {
  std::vector<int> places;
  if (node.inputs[0] == Node::kImage) {
    for (int c = 0; c < node.in_channels; ++c) places.push_back(c);
    return places;
  }
  int start = 0;
  for (int input : node.inputs) {
    const Value& value = program.values[input];
    for (int c = 0; c < value.channels; ++c) places.push_back(start + c);
    start += value.blocks() * kBlock;
  }
  return places;
}

struct Tap {
  int row, column;  // in the kernel
};

// Weights in the order of BlockedConvParams. at(o, i, tap) reads the node's.
template <typename At>
Floats pack(const std::vector<int>& places, int out_channels, const std::vector<Tap>& taps, const At& at) {
  const int in_channels = places.back() + 1, out_padded = round_up(out_channels);
  Floats packed(static_cast<size_t>(in_channels) * taps.size() * out_padded);
  std::vector<int> channel_at(in_channels, -1);
  for (size_t i = 0; i < places.size(); ++i) channel_at[places[i]] = static_cast<int>(i);
  float* to = packed.data();
  for (int group = 0; group < out_padded; group += kGroup * kBlock) {
    const int width = std::min(kGroup * kBlock, out_padded - group);
    for (int block = 0; block < in_channels; block += kBlock) {
      for (const Tap& tap : taps) {
        for (int place = block; place < std::min(block + kBlock, in_channels); ++place, to += width) {
          if (channel_at[place] < 0) continue;
          for (int o = group; o < std::min(group + width, out_channels); ++o) to[o - group] = at(o, channel_at[place], tap);
        }
      }
    }
  }
  return packed;
}

// A row of taps of an image whose pixels are not filled up to blocks: kernel columns times channels, as they lie.
Floats pack_image_conv(const Node& node) {
  std::vector<Tap> taps;
  std::vector<int> places;
  for (int i = 0; i < node.kernel; ++i) taps.push_back({i, 0});
  for (int i = 0; i < node.kernel * node.in_channels; ++i) places.push_back(i);
  return pack(places, node.out_channels, taps, [&](int o, int place, Tap tap) {
    const int column = place / node.in_channels, channel = place % node.in_channels;
    return node.weight[((static_cast<size_t>(o) * node.in_channels + channel) * node.kernel + tap.row) * node.kernel + column];
  });
}

Floats pack_conv(const Node& node, const std::vector<int>& places) {
  std::vector<Tap> taps;
  for (int i = 0; i < node.kernel; ++i) {
    for (int j = 0; j < node.kernel; ++j) taps.push_back({i, j});
  }
  const int k = node.kernel;
  return pack(places, node.out_channels, taps, [&](int o, int i, Tap tap) {
    return node.weight[((static_cast<size_t>(o) * node.in_channels + i) * k + tap.row) * k + tap.column];
  });
}

// Output position 2 m + parity sees input m + d through kernel position parity + padding - 2 d, for every d that has one.
struct PhaseAxis {
  int first = 0;
  std::vector<int> kernel_positions;
};

PhaseAxis phase_axis(const Node& node, int parity) {
  PhaseAxis axis;
  for (int d = -node.kernel; d <= node.kernel; ++d) {
    const int position = parity + node.padding - 2 * d;
    if (position < 0 || position >= node.kernel) continue;
    if (axis.kernel_positions.empty()) axis.first = d;
    axis.kernel_positions.push_back(position);
  }
  return axis;
}

std::vector<Phase> pack_transposed(const Node& node, const std::vector<int>& places) {
  std::vector<Phase> phases;
  const int k = node.kernel;
  for (int parity_row = 0; parity_row < 2; ++parity_row) {
    for (int parity_column = 0; parity_column < 2; ++parity_column) {
      const PhaseAxis rows = phase_axis(node, parity_row), columns = phase_axis(node, parity_column);
      std::vector<Tap> taps;
      for (int row : rows.kernel_positions) {
        for (int column : columns.kernel_positions) taps.push_back({row, column});
      }
      if (taps.empty()) unsupported("a transposed convolution with a kernel of " + std::to_string(k));
      Phase phase;
      phase.first_row = rows.first, phase.first_column = columns.first;
      phase.taps_h = static_cast<int>(rows.kernel_positions.size());
      phase.taps_w = static_cast<int>(columns.kernel_positions.size());
      phase.weight = pack(places, node.out_channels, taps, [&](int o, int i, Tap tap) {
        return node.weight[((static_cast<size_t>(i) * node.out_channels + o) * k + tap.row) * k + tap.column];
      });
      phases.push_back(std::move(phase));
    }
  }
  return phases;
}

// Winograd's right factors G g G^T of every pair of channels, as 36 packed 1x1 convolutions.
Floats pack_winograd(const Node& node, const std::vector<int>& places) {
  constexpr int kSide = kWinogradTile + 2;
  constexpr double kG[kSide][3] = {{0.25, 0, 0},
                                   {-1.0 / 6, -1.0 / 6, -1.0 / 6},
                                   {-1.0 / 6, 1.0 / 6, -1.0 / 6},
                                   {1.0 / 24, 1.0 / 12, 1.0 / 6},
                                   {1.0 / 24, -1.0 / 12, 1.0 / 6},
                                   {0, 0, 1}};
  Floats packed;
  for (int product = 0; product < kWinogradProducts; ++product) {
    const double *rows = kG[product / kSide], *columns = kG[product % kSide];
    const Floats one = pack(places, node.out_channels, {{0, 0}}, [&](int o, int i, Tap) {
      const float* g = node.weight.data() + (static_cast<size_t>(o) * node.in_channels + i) * 9;
      double sum = 0;
      for (int r = 0; r < 3; ++r) {
        for (int c = 0; c < 3; ++c) sum += rows[r] * columns[c] * g[3 * r + c];
      }
      return static_cast<float>(sum);
    });
    if (packed.empty()) packed = Floats(one.size() * kWinogradProducts);
    std::memcpy(packed.data() + product * one.size(), one.data(), one.size() * sizeof(float));
  }
  return packed;
}

Floats pack_depthwise(const Node& node) {
  const int taps = node.kernel * node.kernel;
  Floats packed(static_cast<size_t>(round_up(node.out_channels)) * taps);
  for (int c = 0; c < node.out_channels; ++c) {
    for (int t = 0; t < taps; ++t) packed.data()[(c / kBlock * taps + t) * kBlock + c % kBlock] = node.weight[c * taps + t];
  }
  return packed;
}

Floats pack_head(const Node& node, const std::vector<int>& places) {
  const int taps = node.kernel * node.kernel, blocks = places.back() / kBlock + 1;
  Floats packed(static_cast<size_t>(node.out_channels) * blocks * taps * kBlock);
  for (int o = 0; o < node.out_channels; ++o) {
    for (int i = 0; i < node.in_channels; ++i) {
      for (int t = 0; t < taps; ++t) {
        const int place = places[i];
        packed.data()[((static_cast<size_t>(o) * blocks + place / kBlock) * taps + t) * kBlock + place % kBlock] =
            node.weight[(static_cast<size_t>(o) * node.in_channels + i) * taps + t];
      }
    }
  }
  return packed;
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
    for (size_t i = 0; i < graph_.nodes.size(); ++i) add(static_cast<int>(i));
    keep_finished_values();
    return std::move(program_);
  }

 private:
  void add(int index) {
    const Node& node = graph_.nodes[index];
    const bool last = index + 1 == static_cast<int>(graph_.nodes.size());
    check(node, last);
    program_.values.push_back(value_of(node));
    for (int input : node.inputs) {
      if (input >= 0) ++program_.values[input].uses;
    }
    if (node.residual >= 0) ++program_.values[node.residual].uses;

    Step step;
    step.inputs = node.inputs;
    step.input_slope = slope_of(node.input_activation);
    step.output = index;
    step.kernel = node.kernel, step.stride = node.stride, step.padding = node.padding;
    step.padding_mode = node.padding_mode;
    step.in_channels = node.in_channels, step.out_channels = node.out_channels;
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
      step.kind = folds(node) ? Step::Kind::pointwise : Step::Kind::conv;
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
    if (node.stride != 1 && node.stride != 2) unsupported("a stride of " + std::to_string(node.stride));
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
    if (node.inputs.empty() || node.inputs.size() > kMaxInputs) unsupported("a layer of more than two values");
    for (int input : node.inputs) {
      if (input == Node::kImage && (node.inputs.size() > 1 || node.input_activation != Activation::none)) {
        unsupported("the input image beside another value");
      }
    }
  }

  Value value_of(const Node& node) const {
    Value value;
    value.channels = node.out_channels;
    value.norm = node.instance_norm;
    value.eps = node.eps;
    value.norm_scale = padded(node.norm_scale);
    value.norm_shift = padded(node.norm_shift);
    value.slope = slope_of(node.activation);
    value.residual = node.residual;
    return value;
  }

  // Whether `node` is the 1x1 convolution behind a normalised depthwise one that nobody else reads.
  bool folds(const Node& node) const {
    if (node.kernel != 1 || node.stride != 1 || node.padding != 0 || node.inputs.size() != 1 || node.inputs[0] < 0 ||
        node.input_activation != Activation::none) {
      return false;
    }
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
    if (step.kind == Step::Kind::pointwise) return true;
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
