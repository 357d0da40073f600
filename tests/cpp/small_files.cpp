#include "small_files.h"

#include <algorithm>
#include <cstring>

namespace small_files {

void File::add(const std::string& name, const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t side : shape) count *= side;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    state_ = state_ * 1664525u + 1013904223u;
    value = static_cast<float>(static_cast<int32_t>(state_)) * 0x1p-31f;
  }
  add(name, shape, "F32", values.data(), values.size() * sizeof(float));
}

void File::add(const std::string& name, const std::vector<int64_t>& shape, const char* dtype, const void* bytes, size_t size) {
  header[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {data.size(), data.size() + size}}};
  data.append(static_cast<const char*>(bytes), size);
}

// The tensors' bytes are not aligned: floats are copied.
void File::set(const std::string& name, size_t index, float value) {
  std::memcpy(data.data() + begin(name) + index * sizeof(float), &value, sizeof(float));
}

std::vector<float> File::values(const std::string& name) const {
  const size_t end = header[name]["data_offsets"][1];
  std::vector<float> result((end - begin(name)) / sizeof(float));
  std::memcpy(result.data(), data.data() + begin(name), result.size() * sizeof(float));
  return result;
}

void File::set_config(const Json& config) { header["__metadata__"]["gancomp.config"] = config.dump(); }

std::string File::bytes() const { return with_header(header.dump(), data); }

std::string File::with_header(const std::string& text, const std::string& data) {
  std::string result;
  for (int i = 0; i < 8; ++i) result += static_cast<char>(uint64_t{text.size()} >> (8 * i) & 0xFF);
  return result + text + data;
}

size_t File::begin(const std::string& name) const { return header[name]["data_offsets"][0]; }

Json resnet_config() {
  return {{"arch", "resnet"},   {"stem", 2},          {"down", 3},
          {"stream", 4},        {"hidden", {5, 2}},   {"up", 3},
          {"last", 2},          {"in_channels", 2},   {"out_channels", 1},
          {"separable", false}, {"norm", "instance"}, {"padding", "reflect"},
          {"dropout", 0.0}};
}

Json unet_config() {
  return {{"arch", "unet"},    {"ngf", 1},           {"n_levels", 5}, {"in_channels", 2},
          {"out_channels", 3}, {"norm", "instance"}, {"dropout", 0.5}};
}

Json spade_config() {
  return {{"arch", "spade"},
          {"stream", 3},
          {"inner", {2, 1, 4}},
          {"up", {2, 3, 1, 2}},
          {"embed", {1, 2, 3, 1, 2, 1, 2}},
          {"label_nc", 3},
          {"instance_edges", true},
          {"out_channels", 2},
          {"upsampling", "normal"},
          {"crop_size", 64},
          {"aspect_ratio", 2.0},
          {"separable", true},
          {"norm", "batch"}};
}

namespace {

void add_norm(File& file, const Json& config, const std::string& name, int64_t channels) {
  const std::string norm = config["norm"];
  if (norm == "instance" || norm == "none") return;
  file.add(name + ".weight", {channels});
  file.add(name + ".bias", {channels});
  if (norm == "instance_affine") return;
  file.add(name + ".running_mean", {channels});
  file.add(name + ".running_var", {channels});
  for (int64_t c = 0; c < channels; ++c) file.set(name + ".running_var", static_cast<size_t>(c), 0.25f + static_cast<float>(c));
  const int64_t batches = 7;
  file.add(name + ".num_batches_tracked", {}, "I64", &batches, sizeof(batches));
}

}  // namespace

File resnet_file(const Json& config) {
  File file;
  file.header["__metadata__"] = {{"format", "pt"}, {"gancomp.version", "\"0.1.0\""}};
  file.set_config(config);
  const bool biased = config["norm"] != "batch";
  const auto at = [](size_t index) { return "model." + std::to_string(index); };
  const auto conv = [&](const std::string& name, int64_t out, int64_t in, int64_t kernel, int64_t channels, bool bias) {
    file.add(name + ".weight", {out, in, kernel, kernel});
    if (bias) file.add(name + ".bias", {channels});
  };
  const auto block_conv = [&](const std::string& name, int64_t out, int64_t in) {
    if (config["separable"]) {
      conv(name + ".conv.0", in, 1, 3, in, true);
      conv(name + ".conv.2", out, in, 1, out, true);
    } else {
      conv(name, out, in, 3, out, biased);
    }
  };
  const int64_t stem = config["stem"], down = config["down"], stream = config["stream"], up = config["up"],
                last = config["last"];
  conv(at(1), stem, config["in_channels"], 7, stem, biased);
  add_norm(file, config, at(2), stem);
  conv(at(4), down, stem, 3, down, biased);
  add_norm(file, config, at(5), down);
  conv(at(7), stream, down, 3, stream, biased);
  add_norm(file, config, at(8), stream);
  size_t index = 10;
  for (const int64_t hidden : config["hidden"]) {
    const std::string block = at(index++) + ".conv_block.";
    block_conv(block + "1", hidden, stream);
    add_norm(file, config, block + "2", hidden);
    block_conv(block + "6", stream, hidden);
    add_norm(file, config, block + "7", stream);
  }
  // Transposed: [in, out, 3, 3].
  conv(at(index), stream, up, 3, up, biased);
  add_norm(file, config, at(index + 1), up);
  conv(at(index + 3), up, last, 3, last, biased);
  add_norm(file, config, at(index + 4), last);
  conv(at(index + 7), config["out_channels"], last, 7, config["out_channels"], true);
  return file;
}

File unet_file(const Json& config) {
  File file;
  file.set_config(config);
  const bool biased = config["norm"] != "batch";
  const int64_t ngf = config["ngf"], levels = config["n_levels"];
  std::string module = "model.model.";
  for (int64_t level = 0; level < levels; ++level) {
    const bool outermost = level == 0, innermost = level == levels - 1;
    const int64_t outer = outermost ? int64_t{config["in_channels"]} : ngf * std::min<int64_t>(int64_t{1} << (level - 1), 8);
    const int64_t inner = ngf * std::min<int64_t>(int64_t{1} << level, 8);
    const int64_t result = outermost ? int64_t{config["out_channels"]} : outer;
    const std::string down = module + (outermost ? "0" : "1"), up = module + (outermost || innermost ? "3" : "5");
    file.add(down + ".weight", {inner, outer, 4, 4});
    if (biased) file.add(down + ".bias", {inner});
    if (!outermost && !innermost) add_norm(file, config, module + "2", inner);
    file.add(up + ".weight", {innermost ? inner : 2 * inner, result, 4, 4});
    if (biased || outermost) file.add(up + ".bias", {result});
    if (!outermost) add_norm(file, config, module + (innermost ? "4" : "6"), result);
    module += outermost ? "1.model." : "3.model.";
  }
  return file;
}

File spade_file(const Json& config) {
  File file;
  file.set_config(config);
  const int64_t labels = config["label_nc"].get<int64_t>() + (config["instance_edges"] ? 1 : 0);
  const auto conv = [&](const std::string& name, int64_t out, int64_t in, int64_t kernel, bool bias = true) {
    file.add(name + ".weight", {out, in, kernel, kernel});
    if (bias) file.add(name + ".bias", {out});
  };
  const auto spade = [&](const std::string& name, int64_t channels, int64_t embed) {
    if (config["norm"] == "batch") {
      file.add(name + ".param_free_norm.running_mean", {channels});
      file.add(name + ".param_free_norm.running_var", {channels});
      for (int64_t c = 0; c < channels; ++c) {
        file.set(name + ".param_free_norm.running_var", static_cast<size_t>(c), 0.5f + static_cast<float>(c));
      }
      const int64_t batches = 7;
      file.add(name + ".param_free_norm.num_batches_tracked", {}, "I64", &batches, sizeof(batches));
    }
    conv(name + ".mlp_shared.0", embed, labels, 3);
    for (const char* const side : {".mlp_gamma", ".mlp_beta"}) {
      if (config["separable"]) {
        conv(name + side + ".conv.0", embed, 1, 3);
        conv(name + side + ".conv.2", channels, embed, 1);
      } else {
        conv(name + side, channels, embed, 3);
      }
    }
  };
  const auto block = [&](const std::string& name, int64_t in, int64_t inner, int64_t out, int64_t embed, bool shortcut) {
    conv(name + ".conv_0", inner, in, 3);
    conv(name + ".conv_1", out, inner, 3);
    spade(name + ".norm_0", in, embed);
    spade(name + ".norm_1", inner, embed);
    if (!shortcut) return;
    conv(name + ".conv_s", out, in, 1, false);
    spade(name + ".norm_s", in, embed);
  };
  const int64_t stream = config["stream"];
  conv("fc", stream, labels, 3);
  const char* const middle[] = {"head_0", "G_middle_0", "G_middle_1"};
  for (size_t i = 0; i < 3; ++i) block(middle[i], stream, config["inner"][i], stream, config["embed"][i], false);
  int64_t width = stream;
  for (size_t i = 0; i < config["up"].size(); ++i) {
    const int64_t out = config["up"][i];
    block("up_" + std::to_string(i), width, out, out, config["embed"][3 + i], true);
    width = out;
  }
  conv("conv_img", config["out_channels"], width, 3);
  return file;
}

}  // namespace small_files
