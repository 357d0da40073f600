// What a graph computes, by the obvious loops in double precision: the oracle of the engine's tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "graph.h"

namespace gancomp::engine {

struct Planes {
  int channels = 0, height = 0, width = 0;
  std::vector<double> data;  // [channels, height, width]

  Planes() = default;
  Planes(int c, int h, int w) : channels(c), height(h), width(w), data(static_cast<size_t>(c) * h * w, 0.0) {}
  double& at(int c, int y, int x) { return data[(static_cast<size_t>(c) * height + y) * width + x]; }
  double at(int c, int y, int x) const { return data[(static_cast<size_t>(c) * height + y) * width + x]; }
};

inline double reference_activation(Activation activation, double x) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::leaky_relu:
      return x < 0 ? 0.2 * x : x;
    case Activation::tanh:
      return std::tanh(x);
  }
  return x;
}

// The value at (y, x), which may lie outside.
inline double reference_padded(const Planes& planes, int c, int y, int x, Padding mode) {
  const bool inside = y >= 0 && y < planes.height && x >= 0 && x < planes.width;
  if (mode == Padding::zero) return inside ? planes.at(c, y, x) : 0.0;
  const auto index = [&](int i, int size) {
    if (mode == Padding::replicate) return std::clamp(i, 0, size - 1);
    return i < 0 ? -i : i >= size ? 2 * (size - 1) - i : i;
  };
  return planes.at(c, index(y, planes.height), index(x, planes.width));
}

inline Planes reference_convolution(const Node& node, const Planes& in) {
  const int k = node.kernel, s = node.stride, p = node.padding;
  const bool transposed = node.kind == Node::Kind::transposed, depthwise = node.kind == Node::Kind::depthwise;
  const auto size = [&](int n) { return transposed ? (n - 1) * s + k - 2 * p + node.output_padding : (n + 2 * p - k) / s + 1; };
  Planes out(node.out_channels, size(in.height), size(in.width));
  for (int o = 0; o < out.channels; ++o) {
    for (int y = 0; y < out.height; ++y) {
      for (int x = 0; x < out.width; ++x) out.at(o, y, x) = node.bias.empty() ? 0.0 : node.bias[o];
    }
  }
  const auto weight = [&](int a, int b, int dy, int dx, int columns) {
    return double{node.weight[((static_cast<size_t>(a) * columns + b) * k + dy) * k + dx]};
  };
  if (transposed) {
    // Every input pixel adds its filter to the output.
    for (int i = 0; i < in.channels; ++i) {
      for (int o = 0; o < out.channels; ++o) {
        for (int y = 0; y < in.height; ++y) {
          for (int x = 0; x < in.width; ++x) {
            for (int dy = 0; dy < k; ++dy) {
              for (int dx = 0; dx < k; ++dx) {
                const int oy = y * s + dy - p, ox = x * s + dx - p;
                if (oy < 0 || oy >= out.height || ox < 0 || ox >= out.width) continue;
                out.at(o, oy, ox) += in.at(i, y, x) * weight(i, o, dy, dx, out.channels);
              }
            }
          }
        }
      }
    }
    return out;
  }
  for (int o = 0; o < out.channels; ++o) {
    for (int y = 0; y < out.height; ++y) {
      for (int x = 0; x < out.width; ++x) {
        for (int i = depthwise ? o : 0; i < (depthwise ? o + 1 : in.channels); ++i) {
          for (int dy = 0; dy < k; ++dy) {
            for (int dx = 0; dx < k; ++dx) {
              out.at(o, y, x) += reference_padded(in, i, y * s + dy - p, x * s + dx - p, node.padding_mode) *
                                 weight(o, depthwise ? 0 : i, dy, dx, depthwise ? 1 : in.channels);
            }
          }
        }
      }
    }
  }
  return out;
}

inline void reference_instance_norm(const Node& node, Planes& planes) {
  const size_t count = static_cast<size_t>(planes.height) * planes.width;
  for (int c = 0; c < planes.channels; ++c) {
    double* const plane = planes.data.data() + c * count;
    double mean = 0, variance = 0;
    for (size_t i = 0; i < count; ++i) mean += plane[i] / static_cast<double>(count);
    for (size_t i = 0; i < count; ++i) variance += (plane[i] - mean) * (plane[i] - mean) / static_cast<double>(count);
    const double scale = node.norm_scale.empty() ? 1.0 : node.norm_scale[c],
                 shift = node.norm_shift.empty() ? 0.0 : node.norm_shift[c];
    for (size_t i = 0; i < count; ++i) plane[i] = (plane[i] - mean) / std::sqrt(variance + double{node.eps}) * scale + shift;
  }
}

// The value of every node for one image.
inline std::vector<Planes> reference_values(const Graph& graph, const Planes& image) {
  std::vector<Planes> values;
  const auto value = [&](int node) -> const Planes& { return node == Node::kImage ? image : values[node]; };
  for (const Node& node : graph.nodes) {
    Planes in = value(node.inputs[0]);
    for (size_t i = 1; i < node.inputs.size(); ++i) {
      const Planes& more = value(node.inputs[i]);
      in.channels += more.channels;
      in.data.insert(in.data.end(), more.data.begin(), more.data.end());
    }
    for (double& x : in.data) x = reference_activation(node.input_activation, x);
    Planes out = reference_convolution(node, in);
    if (node.instance_norm) reference_instance_norm(node, out);
    for (double& x : out.data) x = reference_activation(node.activation, x);
    if (node.residual != Node::kNone) {
      for (size_t i = 0; i < out.data.size(); ++i) out.data[i] += value(node.residual).data[i];
    }
    values.push_back(std::move(out));
  }
  return values;
}

}  // namespace gancomp::engine
