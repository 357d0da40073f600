// Parameters of the engine's kernels. Each works on one strip of rows in the calling thread; who runs which strip is the
// caller's business. Ring 0: raw pointers, sizes in elements, no allocation.
//
// Blocked layout: channels lie in blocks of 16, [block][row][pixel][16]; a block whose channels end early is filled up with
// zeros. Strides are in floats.
#pragma once

#include <cstdint>

namespace gancomp {

constexpr int kBlock = 16;         // channels of a block
constexpr int kGroup = 2;          // blocks of output channels that share a sweep over the input
constexpr int kMaxImagePixel = 4;  // an image of at most so many channels is gathered without filling up blocks
constexpr int kMaxHeadChannels = 4;

enum class BorderMode { zero, reflect, replicate };

// Sums of one strip around a pivot near its mean, by channel: exact for any mean, in one pass.
struct ChannelSums {
  float* pivot = nullptr;    // [blocks * 16]; null: no statistics are wanted
  float* sum = nullptr;      // sum of (y - pivot)
  float* squares = nullptr;  // sum of (y - pivot)^2
  float* low = nullptr;      // smallest and largest y; null: not wanted
  float* high = nullptr;

  // The same from channel `first` on. Inlined by force: what is compiled here for one instruction set may run on no other.
  inline __attribute__((always_inline)) ChannelSums from(int64_t first) const {
    ChannelSums sums = *this;
    if (pivot != nullptr) sums.pivot += first, sums.sum += first, sums.squares += first;
    if (low != nullptr) sums.low += first, sums.high += first;
    return sums;
  }
};
constexpr int kSumRows = 5;  // of a ChannelSums

// y = leaky((x - mean) * scale + shift) + residual, laid out with borders for a convolution.
struct BlockedGatherParams {
  const float* x = nullptr;
  int64_t x_block = 0, x_row = 0;
  int blocks = 0, height = 0, width = 0;
  const float *mean = nullptr, *scale = nullptr, *shift = nullptr;  // [blocks * 16]; null: x as it is
  float slope = 1.0f;                                               // of negative values: 0 is ReLU, 1 leaves them
  const float* residual = nullptr;                                  // same strides as x; null: none
  float* kept = nullptr;  // rows [kept_begin, kept_end) of the result are also written here, with the strides of x
  int kept_begin = 0, kept_end = 0;
  int row_begin = 0, row_end = 0;         // rows to gather; those outside [0, height) are border
  int border_left = 0, border_right = 0;  // pixels
  BorderMode mode = BorderMode::zero;
  float* y = nullptr;  // row `row_begin`, left border first
  int64_t y_block = 0, y_row = 0;
};

// The same from an image, whose rows and columns are looked up: padding to a size the network takes, and borders.
struct ImageGatherParams {
  const float* planes = nullptr;   // [C, H, W] in [-1, 1], or
  const uint8_t* bytes = nullptr;  // [H, W, C], v stands for v / 127.5 - 1
  int channels = 0, height = 0, width = 0;
  const int* rows = nullptr;     // [row_count] source row of every gathered row, -1: zeros
  const int* columns = nullptr;  // [column_count] likewise
  int row_count = 0, column_count = 0;
  int pixel = 0;  // floats of a gathered pixel: `channels`, or 16 in blocks
  float* y = nullptr;
  int64_t y_block = 0, y_row = 0;
};

// A 3x3 convolution of a label map's one-hot image: y = leaky(bias + the sum over nine taps of table[tap][code]).
struct LabelConvParams {
  const int32_t* codes = nullptr;  // of the first tap of the first pixel; every one below codes_count
  int64_t code_row = 0;            // codes between rows
  int codes_count = 0;
  const float* table = nullptr;  // [block][9][codes_count][16]
  const float* bias = nullptr;   // [blocks * 16]; null: zero
  float slope = 1.0f;            // of negative values
  int blocks = 0, rows = 0, width = 0;
  float* y = nullptr;
  int64_t y_block = 0, y_row = 0;
  ChannelSums sums;
};

// y = leaky((x - mean) * factor * scale + shift), the scales and shifts pixel by pixel.
struct BlockedModulateParams {
  const float* x = nullptr;
  int64_t x_block = 0, x_row = 0;
  bool doubled = false;                            // whether every pixel of x stands for four
  int row = 0, column = 0;                         // of the first pixel of y in x, before which doubled x is doubled
  const float *mean = nullptr, *factor = nullptr;  // [blocks * 16]
  const float *scale = nullptr, *shift = nullptr;  // of the first pixel of y, with the same strides
  int64_t side_block = 0, side_row = 0;
  float slope = 1.0f;
  int blocks = 0, rows = 0, width = 0;
  float* y = nullptr;
  int64_t y_block = 0, y_row = 0;
};

// Convolution of gathered rows. Weights: for every group of output blocks (2, the last may be 1):
// [input block][tap row][tap column][input channel of the block][output channel of the group].
// Of an image of few channels a row of taps lies in one piece: it is given as taps_w = 1 of taps * channels input channels.
struct BlockedConvParams {
  const float* x = nullptr;  // first tap of the first output pixel
  int64_t x_block = 0, x_row = 0;
  int x_pixel = kBlock;  // kBlock, or at most kMaxImagePixel
  int stride = 1;        // 1 or 2
  int in_channels = 0;
  int taps_h = 1, taps_w = 1;
  const float* weight = nullptr;
  const float* bias = nullptr;  // [out_blocks * 16]; null: zero
  int out_blocks = 0;
  float* y = nullptr;
  int64_t y_block = 0, y_row = 0;
  int y_pixel = kBlock;  // 2 * kBlock for a phase of a transposed convolution
  int rows = 0, width = 0;
  ChannelSums sums;      // added to, except where `first`
  bool first = true;     // whether this call begins the strip's sums
  bool add = false;      // to what is in y, which is then part of the result
  bool centred = false;  // whether y is known to be about zero in the mean, which is the best pivot
};

// Depthwise 3x3 of one block of gathered rows.
struct BlockedDepthwiseParams {
  const float* x = nullptr;
  int64_t x_row = 0;
  const float* weight = nullptr;  // [9][16]
  const float* bias = nullptr;    // [16]; null: zero
  const float* mean = nullptr;    // [16] taken off the result at the end; null: zero
  float* y = nullptr;
  int64_t y_row = 0;
  int rows = 0, width = 0;
  ChannelSums sums;  // of this block
};

// Winograd's F(4x4, 3x3). Tiles are numbered row by row; products lie as [product][block][tile][16], 36 of them.
constexpr int kWinogradTile = 4;
constexpr int kWinogradProducts = 36;

// One block of gathered rows (4 * tile_rows + 2 of them) into the left factors of the products.
struct WinogradInputParams {
  const float* x = nullptr;
  int64_t x_row = 0;
  int tile_rows = 0, tile_columns = 0;
  float* y = nullptr;     // of the first tile and the block
  int64_t y_product = 0;  // floats between products
};

// Products of one block into output rows.
struct WinogradOutputParams {
  const float* x = nullptr;  // of the first tile and the block
  int64_t x_product = 0;
  int tile_columns = 0;
  const float* bias = nullptr;  // [16]; null: zero
  float* y = nullptr;
  int64_t y_row = 0;
  int rows = 0, width = 0;  // outputs; what a tile has beyond is cut off
  bool add = false;         // to what is in y
  ChannelSums sums;         // of this block
};

// Convolution into few channels (an image): input channels are the lanes. Weights: [output][input block][tap row][tap
// column][16].
struct BlockedHeadParams {
  const float* x = nullptr;
  int64_t x_block = 0, x_row = 0;
  int in_blocks = 0, taps = 1;
  const float* weight = nullptr;
  const float* bias = nullptr;  // [out_channels]; null: zero
  int out_channels = 0;         // at most kMaxHeadChannels
  // In bytes instead of x and weight, whose strides and order are the same but for int8_head_row_bytes() a row of weights; 64
  // bytes may be read from the last pixel on.
  const uint8_t* x8 = nullptr;
  const int8_t* weight8 = nullptr;
  const float* out_unit = nullptr;  // [out_channels]
  bool tanh = true;
  int rows = 0, width = 0;
  float* planes = nullptr;       // [C, plane], first row of the strip; or
  uint8_t* bytes = nullptr;      // [row, width, C], trunc((v + 1) / 2 * 255)
  int64_t plane = 0, y_row = 0;  // floats between planes; elements between rows
  float* scratch = nullptr;      // kMaxHeadChannels * (width + 64) floats
};

// Blocked rows to an image: y = act((x - mean) * scale + shift), tanh or nothing.
struct BlockedEmitParams {
  const float* x = nullptr;  // first row
  int64_t x_block = 0, x_row = 0;
  const float *mean = nullptr, *scale = nullptr, *shift = nullptr;  // [channels]; null: x as it is
  int channels = 0, rows = 0, width = 0;
  bool tanh = true;
  float* planes = nullptr;  // as in BlockedHeadParams
  uint8_t* bytes = nullptr;
  int64_t plane = 0, y_row = 0;
};

// Statistics of whole planes from those of their strips, by channel.
struct MergeSumsParams {
  const float* sums = nullptr;      // [strips][kSumRows][channels], as ChannelSums lists them
  const int64_t* counts = nullptr;  // [strips] elements of a channel
  int strips = 0, channels = 0;     // channels: a multiple of 16
  float eps = 1e-5f;
  const float *norm_scale = nullptr, *norm_shift = nullptr;   // [channels]; null: one, zero
  float *mean = nullptr, *scale = nullptr, *shift = nullptr;  // [channels]
  float *low = nullptr, *high = nullptr;                      // [channels] extremes; null: not wanted
};

// --- 8-bit integers: unsigned activations times signed weights, four input channels at a time (VNNI) ---

// y = clip(round((x - mean) * inverse) + zero, 0, 255) of blocked rows; bytes lie as [block][row][pixel][16].
struct BlockedQuantizeParams {
  const float* x = nullptr;
  int64_t x_block = 0, x_row = 0;
  int blocks = 0, rows = 0, width = 0;
  const float *mean = nullptr, *inverse = nullptr;  // [blocks * 16]; mean null: zero
  int zero = 0;
  uint8_t* y = nullptr;
  int64_t y_block = 0, y_row = 0;  // bytes
};

// Weights in the order of BlockedConvParams times the unit of their input channel, as multiples of a unit per output channel:
// [group][input block][tap][four input channels][output channel of the group][input channel of the four].
struct Int8WeightsParams {
  const float* weight = nullptr;
  int in_channels = 0, taps = 1, out_blocks = 0;
  const float* in_unit = nullptr;  // [in_channels]; null: one
  int8_t* y = nullptr;             // int8_weight_bytes()
  float* out_unit = nullptr;       // [out_blocks * 16]
};
inline __attribute__((always_inline)) int64_t int8_weight_bytes(int in_channels, int taps, int out_blocks) {
  return static_cast<int64_t>((in_channels + 3) / 4) * 4 * taps * out_blocks * kBlock;
}

// As BlockedConvParams, of bytes: y = out_unit * sum.
struct Int8ConvParams {
  const uint8_t* x = nullptr;
  int64_t x_block = 0, x_row = 0;  // bytes
  int x_pixel = kBlock;            // bytes
  int stride = 1;
  int in_channels = 0;
  int taps_h = 1, taps_w = 1;
  const int8_t* weight = nullptr;
  const float* out_unit = nullptr;
  int out_blocks = 0;
  float* y = nullptr;
  int64_t y_block = 0, y_row = 0;
  int rows = 0, width = 0;
  ChannelSums sums;
};

// Weights of a head in bytes: from [output][input block][tap row][tap column][16] to the same with rows of
// int8_head_row_bytes(), each input channel times its unit, as multiples of a unit per output channel.
struct Int8HeadWeightsParams {
  const float* weight = nullptr;
  int in_blocks = 0, taps = 1, out_channels = 0;
  const float* in_unit = nullptr;  // [in_blocks * 16]
  int8_t* y = nullptr;
  float* out_unit = nullptr;  // [out_channels]
};
inline __attribute__((always_inline)) int64_t int8_head_row_bytes(int taps) { return (taps * kBlock + 63) / 64 * 64; }

}  // namespace gancomp
