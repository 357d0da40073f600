// Steps of networks of label maps. Where scales and shifts come from separable convolutions of the embedded labels, these are
// made anew wherever they are needed: that takes less time than to write them to memory and to read them back.
#include <algorithm>
#include <cstring>

#include "execute.h"

namespace gancomp::engine {

// Rows of the given label map to codes.
void Execution::labels(const Task& task) const {
  const int classes = program_.classes, width = plan_.width;
  const int64_t plane = static_cast<int64_t>(plan_.height) * width;
  const int64_t begin = task.begin * static_cast<int64_t>(width), count = (task.end - task.begin) * static_cast<int64_t>(width);
  int32_t* const codes = codes_ + begin;
  bool wrong = false;
  if (images_.x_labels != nullptr) {
    const int32_t* const x = images_.x_labels + task.image * plane * (1 + program_.edges) + begin;
    for (int64_t i = 0; i < count; ++i) {
      const bool known = x[i] >= 0 && x[i] < classes;
      wrong |= !known;
      codes[i] = known ? x[i] : 0;
      if (program_.edges && x[plane + i] != 0) codes[i] += classes;
    }
  } else {
    // One number of each pixel's is one, at the place that is its code, and all others are zero.
    const float* x = images_.x_planes + task.image * plane * program_.in_channels + begin;
    std::fill(codes, codes + count, -1);
    for (int c = 0; c < classes; ++c, x += plane) {
      int32_t wrongs = 0;
      for (int64_t i = 0; i < count; ++i) {
        const bool one = x[i] == 1.0f;
        wrongs |= one ? codes[i] != -1 : x[i] != 0.0f;
        codes[i] = one ? c : codes[i];
      }
      wrong |= wrongs != 0;
    }
    for (int64_t i = 0; i < count; ++i) {
      wrong |= codes[i] < 0;
      codes[i] = std::max(codes[i], 0);
      if (program_.edges) {
        wrong |= x[i] != 0.0f && x[i] != 1.0f;
        if (x[i] != 0.0f) codes[i] += classes;
      }
    }
  }
  if (wrong) wrong_labels_.store(true, std::memory_order_relaxed);
}

// A piece of a strip: its rows and columns, and the codes around them in the scratch.
struct Execution::Piece {
  int row, column, rows, columns, part;
  const int32_t* codes;  // those of the first tap of the pixel that is `around` above and left of the piece
  int64_t code_row;
};

// Calls use(piece) for every piece of the strip, with the codes `around` it.
template <typename Use>
void Execution::each_piece(const Task& task, int around, const Use& use) const {
  const StepPlan& p = task.plan;
  const int outside = program_.inside_codes();
  int32_t* const codes = reinterpret_cast<int32_t*>(task.scratch);
  for (int tile = 0; tile < p.tiles; ++tile) {
    Piece piece{};
    piece.row = task.begin, piece.rows = task.end - task.begin;
    piece.column = tile * p.tile_width, piece.columns = std::min(p.tile_width, p.out_width - piece.column);
    piece.part = task.strip * p.tiles + tile;
    piece.codes = codes;
    piece.code_row = piece.columns + 2 * around;
    const int* const columns = p.image_columns.data() + piece.column + kCodesAround - around;
    for (int i = 0; i < piece.rows + 2 * around; ++i) {
      int32_t* const to = codes + i * piece.code_row;
      const int row = p.image_rows[piece.row + i + kCodesAround - around];
      const int32_t* const from = codes_ + static_cast<int64_t>(std::max(row, 0)) * plan_.width;
      for (int64_t j = 0; j < piece.code_row; ++j) to[j] = row < 0 || columns[j] < 0 ? outside : from[columns[j]];
    }
    use(piece);
  }
}

LabelConvParams Execution::label_params(const Task& task, const Piece& piece) const {
  const Embedding& embedding = program_.embeddings[task.step.embedding];
  LabelConvParams l;
  l.codes = piece.codes, l.code_row = piece.code_row;
  l.codes_count = program_.inside_codes() + 1;
  l.table = embedding.table.data();
  l.bias = embedding.bias.data();
  l.slope = embedding.slope;
  l.blocks = embedding.blocks();
  l.rows = piece.rows, l.width = piece.columns;
  return l;
}

void Execution::label(const Task& task) const {
  const ValuePlan& out = plan_.values[task.step.output];
  each_piece(task, 1, [&](const Piece& piece) {
    LabelConvParams l = label_params(task, piece);
    l.y = arena_ + out.data + piece.row * out.row_stride() + piece.column * kBlock;
    l.y_block = out.block_stride(), l.y_row = out.row_stride();
    l.sums = part_sums(task.step.output, piece.part);
    kernels_.label_conv(l);
  });
}

// One block of the embedded codes of a piece and the pixels around it, which are zero outside the map.
void Execution::embed(const Task& task, const Piece& piece, int block) const {
  float* const to = task.scratch + task.plan.embedded;
  const int64_t row_floats = static_cast<int64_t>(piece.columns + 2) * kBlock;
  const int top = piece.row == 0, bottom = piece.row + piece.rows == task.plan.out_height;
  const int left = piece.column == 0, right = piece.column + piece.columns == task.plan.out_width;
  LabelConvParams l = label_params(task, piece);
  l.codes += top * piece.code_row + left;
  l.table += static_cast<int64_t>(block) * 9 * l.codes_count * kBlock;
  if (l.bias != nullptr) l.bias += block * kBlock;
  l.blocks = 1;
  l.rows += 2 - top - bottom, l.width += 2 - left - right;
  l.y = to + top * row_floats + left * kBlock;
  l.y_row = row_floats;
  kernels_.label_conv(l);
  const auto clear = [](float* from, int64_t floats) { std::memset(from, 0, static_cast<size_t>(floats) * sizeof(float)); };
  if (top) clear(to, row_floats);
  if (bottom) clear(to + (piece.rows + 1) * row_floats, row_floats);
  for (int i = 0; i < piece.rows + 2; ++i) {
    if (left) clear(to + i * row_floats, kBlock);
    if (right) clear(to + (i + 1) * row_floats - kBlock, kBlock);
  }
}

void Execution::filter(const Task& task, const Piece& piece, int block, int side, const float* mean, float* to,
                       const ChannelSums& sums) const {
  BlockedDepthwiseParams d;
  d.x = task.scratch + task.plan.embedded;
  d.x_row = static_cast<int64_t>(piece.columns + 2) * kBlock;
  d.weight = program_.embeddings[task.step.embedding].depthwise[side].data() + block * 9 * kBlock;
  d.mean = mean;
  d.y = to;
  d.y_row = static_cast<int64_t>(piece.columns) * kBlock;
  d.rows = piece.rows, d.width = piece.columns;
  d.sums = sums;
  kernels_.blocked_depthwise(d);
}

void Execution::label_statistics(const Task& task) const {
  const int outputs[] = {task.step.output, task.step.second_output};
  each_piece(task, 2, [&](const Piece& piece) {
    for (int block = 0; block < program_.embeddings[task.step.embedding].blocks(); ++block) {
      embed(task, piece, block);
      for (int side : {0, 1}) {
        const ChannelSums sums = part_sums(outputs[side], piece.part).from(block * kBlock);
        filter(task, piece, block, side, nullptr, task.scratch + task.plan.filtered, sums);
      }
    }
  });
}

// The first input's pixels and the outputs of a piece, without scales and shifts.
BlockedModulateParams Execution::modulate_params(const Task& task, int row, int column) const {
  const Modulation& modulation = task.step.modulation;
  const ValuePlan &in = plan_.values[task.step.inputs[0]], &out = plan_.values[task.step.output];
  BlockedModulateParams m;
  m.x = arena_ + in.data;
  m.x_block = in.block_stride(), m.x_row = in.row_stride();
  m.doubled = modulation.doubled;
  m.row = row, m.column = column;
  m.mean = task.norms[0].mean, m.factor = task.norms[0].scale;
  m.slope = modulation.slope;
  m.blocks = task.step.out_blocks();
  m.y = arena_ + out.data + row * out.row_stride() + column * kBlock;
  m.y_block = out.block_stride(), m.y_row = out.row_stride();
  return m;
}

void Execution::modulate(const Task& task) const {
  const ValuePlan &scale = plan_.values[task.step.inputs[1]], &shift = plan_.values[task.step.inputs[2]];
  BlockedModulateParams m = modulate_params(task, task.begin, 0);
  m.scale = arena_ + scale.data + task.begin * scale.row_stride();
  m.shift = arena_ + shift.data + task.begin * shift.row_stride();
  m.side_block = scale.block_stride(), m.side_row = scale.row_stride();
  m.rows = task.end - task.begin, m.width = task.plan.out_width;
  kernels_.blocked_modulate(m);
}

// Puts the norms of the filtered codes into the weights of the convolutions behind. Their means are taken off before: where a
// label map is all one label, there is no variance, and nothing else must be left of the codes.
void Execution::fold_sides(const Task& task) const {
  float* to = task.scratch + task.plan.weights;
  for (int side : {0, 1}) {
    const Modulation& modulation = task.step.modulation;
    fold_weights(task.step, modulation.weight[side], modulation.bias[side], {nullptr, task.norms[side + 1].scale}, to);
    to += modulation.weight[side].size() + task.step.out_blocks() * kBlock;
  }
}

void Execution::label_modulate(const Task& task) const {
  const Step& step = task.step;
  const StepPlan& p = task.plan;
  const int blocks = program_.embeddings[step.embedding].blocks(), out_blocks = step.out_blocks();
  each_piece(task, 2, [&](const Piece& piece) {
    const int64_t pixels = static_cast<int64_t>(piece.rows) * piece.columns, floats = pixels * kBlock;
    float* const filtered = task.scratch + p.filtered;
    for (int block = 0; block < blocks; ++block) {
      embed(task, piece, block);
      for (int side : {0, 1}) {
        const float* const mean = task.norms[side + 1].mean + block * kBlock;
        filter(task, piece, block, side, mean, filtered + (side * blocks + block) * floats, {});
      }
    }
    BlockedModulateParams m = modulate_params(task, piece.row, piece.column);
    m.rows = piece.rows, m.width = piece.columns;
    m.side_block = floats, m.side_row = piece.columns * kBlock;
    // Scales and shifts of one group of blocks after the other, which the nearest cache has room for.
    for (int first = 0; first < out_blocks; first += kGroup) {
      m.blocks = std::min(kGroup, out_blocks - first);
      const float* weights = task.scratch + p.weights;
      for (int side : {0, 1}) {
        BlockedConvParams c;
        c.x = filtered + side * blocks * floats;
        c.x_block = floats;
        c.in_channels = step.in_channels;
        c.weight = weights + static_cast<int64_t>(first) * kBlock * step.in_channels;
        c.bias = weights + step.modulation.weight[side].size() + first * kBlock;
        c.out_blocks = m.blocks;
        c.y = task.scratch + p.sides + side * kGroup * floats;
        c.y_block = floats;
        c.rows = 1, c.width = static_cast<int>(pixels);
        kernels_.blocked_conv(c);
        weights += step.modulation.weight[side].size() + out_blocks * kBlock;
      }
      m.scale = task.scratch + p.sides, m.shift = m.scale + kGroup * floats;
      kernels_.blocked_modulate(m);
      m.x += kGroup * m.x_block, m.y += kGroup * m.y_block;
      m.mean += kGroup * kBlock, m.factor += kGroup * kBlock;
    }
  });
}

void Execution::enlarge(const Task& task) const {
  const ValuePlan &in = plan_.values[task.step.inputs[0]], &out = plan_.values[task.step.output];
  for (int block = 0; block < task.step.out_blocks(); ++block) {
    for (int row = task.begin; row < task.end; ++row) {
      const float* from = arena_ + in.data + block * in.block_stride() + row / 2 * in.row_stride();
      float* to = arena_ + out.data + block * out.block_stride() + row * out.row_stride();
      for (int j = 0; j < in.width; ++j, from += kBlock) {
        for (int copy = 0; copy < 2; ++copy, to += kBlock) std::memcpy(to, from, kBlock * sizeof(float));
      }
    }
  }
}

}  // namespace gancomp::engine
