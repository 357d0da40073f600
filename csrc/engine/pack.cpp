#include "pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "gancomp/engine.h"

namespace gancomp::engine {
namespace {

int round_up(int channels) { return (channels + kBlock - 1) / kBlock * kBlock; }

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

}  // namespace

Floats padded(const std::vector<float>& values) {
  if (values.empty()) return Floats();
  Floats result(round_up(static_cast<int>(values.size())));
  std::memcpy(result.data(), values.data(), values.size() * sizeof(float));
  return result;
}

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
      if (taps.empty()) {
        throw EngineError(
            EngineError::Code::unsupported,
            "the engine cannot run this network: a transposed convolution with a " + ("kernel of " + std::to_string(k)));
      }
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

Floats pack_label_table(const Node& node, int classes, bool edges) {
  const int codes = (edges ? 2 * classes : classes) + 1, blocks = round_up(node.out_channels) / kBlock;
  Floats packed(static_cast<size_t>(blocks) * 9 * codes * kBlock);
  for (int o = 0; o < node.out_channels; ++o) {
    const auto weight = [&](int i, int tap) { return node.weight[(static_cast<size_t>(o) * node.in_channels + i) * 9 + tap]; };
    for (int tap = 0; tap < 9; ++tap) {
      float* const rows = packed.data() + (static_cast<size_t>(o / kBlock) * 9 + tap) * codes * kBlock + o % kBlock;
      for (int code = 0; code + 1 < codes; ++code) {
        const float edge = code < classes ? 0.0f : weight(classes, tap);
        rows[code * kBlock] = weight(code % classes, tap) + edge;
        if (!std::isfinite(rows[code * kBlock])) {
          throw EngineError(EngineError::Code::format,
                            "weights of the label map: the sum of a label's and of an edge's is not finite");
        }
      }
    }
  }
  return packed;
}

}  // namespace gancomp::engine
