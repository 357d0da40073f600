// Weights in the order in which the kernels read them.
#pragma once

#include <vector>

#include "compile.h"

namespace gancomp::engine {

// One number per channel, filled up to whole blocks; empty stays empty.
Floats padded(const std::vector<float>& values);

// Where each input channel lies when every input is filled up to whole blocks.
std::vector<int> channel_places(const Program& program, const Node& node);

// A row of taps of an image whose pixels are not filled up to blocks: kernel columns times channels, as they lie.
Floats pack_image_conv(const Node& node);
Floats pack_conv(const Node& node, const std::vector<int>& places);
// Throws EngineError (unsupported) where a phase has no taps.
std::vector<Phase> pack_transposed(const Node& node, const std::vector<int>& places);
// Winograd's right factors G g G^T of every pair of channels, as 36 packed 1x1 convolutions.
Floats pack_winograd(const Node& node, const std::vector<int>& places);
Floats pack_depthwise(const Node& node);
Floats pack_head(const Node& node, const std::vector<int>& places);
// What each tap adds for each code, in the order of LabelConvParams; zeros for the outside.
Floats pack_label_table(const Node& node, int classes, bool edges);

}  // namespace gancomp::engine
