// The reader of model files: what graph a file gives, and that whatever is wrong with a file gives one clear line.
#include <malloc.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <new>

#include "check.h"
#include "gancomp/engine.h"
#include "graph_checks.h"
#include "model_file.h"
#include "reference_graph.h"
#include "small_files.h"

namespace {

size_t live_bytes = 0, peak_bytes = 0;  // this test has one thread

}  // namespace

// Counts what the reader holds at a time. Not inlined, because GCC would then see new and free meet, and warn.
__attribute__((noinline)) void* operator new(std::size_t size) {
  void* const memory = std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  live_bytes += malloc_usable_size(memory);
  peak_bytes = std::max(peak_bytes, live_bytes);
  return memory;
}
__attribute__((noinline)) void operator delete(void* memory) noexcept {
  live_bytes -= malloc_usable_size(memory);
  std::free(memory);
}
__attribute__((noinline)) void operator delete(void* memory, std::size_t) noexcept {
  live_bytes -= malloc_usable_size(memory);
  std::free(memory);
}

namespace {

using namespace gancomp::engine;
using gancomp::EngineError;
using graph_checks::check_node;
using graph_checks::parse;
using graph_checks::with;
using small_files::File;
using small_files::Json;
using small_files::resnet_config;
using small_files::resnet_file;
using small_files::spade_file;
using small_files::unet_config;
using small_files::unet_file;
using Code = EngineError::Code;

// Bytes that reading may hold at a time: a small multiple of the file's, and what the C++ library takes for any file.
size_t allowed_memory(size_t file) { return 16 * file + (256 << 10); }

struct Outcome {
  bool ok = false;
  Code code{};
  std::string message;
};

Outcome outcome(const std::string& bytes) {
  Outcome result;
  const size_t before = live_bytes;
  peak_bytes = live_bytes;
  try {
    parse(bytes);
    result.ok = true;
  } catch (const EngineError& error) {
    result.code = error.code();
    result.message = error.what();
    bool printable = true;
    for (const char c : result.message) printable = printable && (static_cast<unsigned char>(c) >= 0x20 && c != 0x7F);
    CHECK(printable, "a message of one printable line: %s", result.message.c_str());
    CHECK(result.message.size() < 512, "a line of %zu bytes", result.message.size());
    CHECK(result.message.rfind("file: ", 0) == 0, "the file's name first: %s", result.message.c_str());
  }
  CHECK(peak_bytes - before <= allowed_memory(bytes.size()), "%zu bytes held for a file of %zu", peak_bytes - before,
        bytes.size());
  return result;
}

void expect_error(const std::string& bytes, Code code, const std::string& part) {
  const Outcome result = outcome(bytes);
  CHECK(!result.ok, "accepted, expected an error with: %s", part.c_str());
  if (result.ok) return;
  CHECK(result.code == code, "code %d: %s", static_cast<int>(result.code), result.message.c_str());
  CHECK(result.message.find(part) != std::string::npos, "expected '%s' in: %s", part.c_str(), result.message.c_str());
}

void expect_format(const std::string& bytes, const std::string& part) { expect_error(bytes, Code::format, part); }

// --- graphs ---------------------------------------------------------------------------------------------------------

void test_resnet() {
  where = "dense resnet";
  const auto conv = Node::Kind::conv, up = Node::Kind::transposed;
  const auto reflect = Padding::reflect, zero = Padding::zero;
  const auto relu = Activation::relu, none = Activation::none;
  File file = resnet_file();
  Graph graph = parse(file.bytes());
  CHECK(graph.nodes.size() == 10, "%zu nodes", graph.nodes.size());
  CHECK(graph.in_channels == 2 && graph.out_channels == 1 && graph.size_multiple == 4, "%d", graph.size_multiple);
  check_node(graph, 0, conv, {Node::kImage}, 2, 2, 7, 1, 3, reflect, true, relu);
  check_node(graph, 1, conv, {0}, 2, 3, 3, 2, 1, zero, true, relu);
  check_node(graph, 2, conv, {1}, 3, 4, 3, 2, 1, zero, true, relu);
  check_node(graph, 3, conv, {2}, 4, 5, 3, 1, 1, reflect, true, relu);
  check_node(graph, 4, conv, {3}, 5, 4, 3, 1, 1, reflect, true, none, 2);
  check_node(graph, 5, conv, {4}, 4, 2, 3, 1, 1, reflect, true, relu);
  check_node(graph, 6, conv, {5}, 2, 4, 3, 1, 1, reflect, true, none, 4);
  check_node(graph, 7, up, {6}, 4, 3, 3, 2, 1, zero, true, relu);
  check_node(graph, 8, up, {7}, 3, 2, 3, 2, 1, zero, true, relu);
  check_node(graph, 9, conv, {8}, 2, 1, 7, 1, 3, reflect, false, Activation::tanh);
  const char* const names[] = {"1",  "4",  "7", "10.conv_block.1", "10.conv_block.6", "11.conv_block.1", "11.conv_block.6",
                               "12", "15", "19"};
  int64_t parameters = 0;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const Node& node = graph.nodes[i];
    const std::string name = std::string("model.") + names[i];
    CHECK(node.weight == file.values(name + ".weight") && node.bias == file.values(name + ".bias"), "%s", name.c_str());
    CHECK(node.input_activation == none && node.eps == 1e-5f && node.norm_scale.empty() && node.norm_shift.empty(), "%zu", i);
    CHECK(node.output_padding == (node.kind == up ? 1 : 0), "node %zu", i);
    parameters += static_cast<int64_t>(node.weight.size() + node.bias.size());
  }
  CHECK(graph.parameters == parameters, "%lld", static_cast<long long>(graph.parameters));

  where = "separable resnet";
  const Json separable = with(with(resnet_config(), "separable", true), "hidden", {5});
  file = resnet_file(separable);
  graph = parse(file.bytes());
  CHECK(graph.nodes.size() == 10, "%zu nodes", graph.nodes.size());
  check_node(graph, 3, Node::Kind::depthwise, {2}, 4, 4, 3, 1, 1, reflect, true, none);
  check_node(graph, 4, conv, {3}, 4, 5, 1, 1, 0, zero, true, relu);
  check_node(graph, 5, Node::Kind::depthwise, {4}, 5, 5, 3, 1, 1, reflect, true, none);
  check_node(graph, 6, conv, {5}, 5, 4, 1, 1, 0, zero, true, none, 2);
  CHECK(graph.nodes[5].weight == file.values("model.10.conv_block.6.conv.0.weight"), "depthwise weights");
  CHECK(graph.nodes[6].bias == file.values("model.10.conv_block.6.conv.2.bias"), "pointwise biases");
  // The norm inside a separable convolution is there without norms elsewhere.
  graph = parse(resnet_file(with(separable, "norm", "none")).bytes());
  check_node(graph, 3, Node::Kind::depthwise, {2}, 4, 4, 3, 1, 1, reflect, true, none);
  check_node(graph, 4, conv, {3}, 4, 5, 1, 1, 0, zero, false, relu);

  where = "resnet paddings";
  for (const auto& [name, mode] : {std::pair{"replicate", Padding::replicate}, std::pair{"zero", zero}}) {
    graph = parse(resnet_file(with(resnet_config(), "padding", name)).bytes());
    check_node(graph, 0, conv, {Node::kImage}, 2, 2, 7, 1, 3, mode, true, relu);
    check_node(graph, 1, conv, {0}, 2, 3, 3, 2, 1, zero, true, relu);
    check_node(graph, 4, conv, {3}, 5, 4, 3, 1, 1, mode, true, none, 2);
    check_node(graph, 9, conv, {8}, 2, 1, 7, 1, 3, mode, false, Activation::tanh);
  }

  where = "resnet without blocks";
  graph = parse(resnet_file(with(resnet_config(), "hidden", Json::array())).bytes());
  CHECK(graph.nodes.size() == 6, "%zu nodes", graph.nodes.size());
  check_node(graph, 3, up, {2}, 4, 3, 3, 2, 1, zero, true, relu);

  where = "affine norm";
  file = resnet_file(with(resnet_config(), "norm", "instance_affine"));
  graph = parse(file.bytes());
  CHECK(graph.nodes[4].norm_scale == file.values("model.10.conv_block.7.weight"), "scale");
  CHECK(graph.nodes[4].norm_shift == file.values("model.10.conv_block.7.bias"), "shift");
  CHECK(graph.nodes[9].norm_scale.empty() && !graph.nodes[9].instance_norm, "head");

  where = "supernet";
  file = resnet_file();
  file.header["__metadata__"]["gancomp.space"] = R"({"name": "x", "choices": [[1], [1]]})";
  CHECK(parse(file.bytes()).nodes.size() == 10, "the largest network");
}

// BatchNorm with running statistics against its definition, applied to the output of the bare convolution.
void test_batch_norm(const File& file, const char* conv, const char* norm, size_t index) {
  const Graph graph = parse(file.bytes());
  const Node& folded = graph.nodes.at(index);
  CHECK(!folded.instance_norm && folded.norm_scale.empty(), "folded");
  Node bare = folded;
  bare.weight = file.values(std::string(conv) + ".weight");
  bare.bias.clear();
  Planes image(bare.in_channels, 6, 5);
  for (size_t i = 0; i < image.data.size(); ++i) image.data[i] = std::sin(static_cast<double>(i));
  const Planes expected = reference_convolution(bare, image), got = reference_convolution(folded, image);
  const auto values = [&](const char* name) { return file.values(norm + std::string(name)); };
  const std::vector<float> mean = values(".running_mean"), variance = values(".running_var");
  const std::vector<float> scale = values(".weight"), shift = values(".bias");
  double error = 0, largest = 1;
  for (size_t i = 0; i < got.data.size(); ++i) {
    const size_t c = i / (static_cast<size_t>(got.height) * got.width);
    const double y = (expected.data[i] - mean[c]) / std::sqrt(variance[c] + 1e-5) * scale[c] + shift[c];
    error = std::max(error, std::fabs(y - got.data[i]));
    largest = std::max(largest, std::fabs(y));
  }
  // Folding rounds every weight once, to float32.
  const double terms = static_cast<double>(bare.weight.size()) / bare.out_channels + 1;
  CHECK(error <= terms * largest * 0x1p-24, "%s: off by %g", conv, error);
}

void test_batch_norms() {
  where = "batch norm";
  const File resnet = resnet_file(with(resnet_config(), "norm", "batch"));
  test_batch_norm(resnet, "model.4", "model.5", 1);
  test_batch_norm(resnet, "model.12", "model.13", 7);  // transposed
  const File unet = unet_file(with(unet_config(), "norm", "batch"));
  test_batch_norm(unet, "model.model.1.model.1", "model.model.1.model.2", 1);
  int64_t trained = 0;
  for (const auto& [name, entry] : resnet.header.items()) {
    if (name == "__metadata__" || name.find("running") != std::string::npos || name.find("num_batches") != std::string::npos) {
      continue;
    }
    trained += static_cast<int64_t>(resnet.values(name).size());
  }
  CHECK(parse(resnet.bytes()).parameters == trained, "statistics are no parameters");
  File file = resnet;
  file.header.erase("model.5.num_batches_tracked");
  expect_format(file.bytes(), "tensors before it end");  // its bytes are nobody's now
}

void test_unet() {
  where = "unet";
  const auto conv = Node::Kind::conv, up = Node::Kind::transposed;
  const auto zero = Padding::zero;
  const auto none = Activation::none;
  File file = unet_file();
  const Graph graph = parse(file.bytes());
  CHECK(graph.nodes.size() == 10, "%zu nodes", graph.nodes.size());
  CHECK(graph.in_channels == 2 && graph.out_channels == 3 && graph.size_multiple == 32, "%d", graph.size_multiple);
  check_node(graph, 0, conv, {Node::kImage}, 2, 1, 4, 2, 1, zero, false, none);
  check_node(graph, 1, conv, {0}, 1, 2, 4, 2, 1, zero, true, none);
  check_node(graph, 2, conv, {1}, 2, 4, 4, 2, 1, zero, true, none);
  check_node(graph, 3, conv, {2}, 4, 8, 4, 2, 1, zero, true, none);
  check_node(graph, 4, conv, {3}, 8, 8, 4, 2, 1, zero, false, none);
  check_node(graph, 5, up, {4}, 8, 8, 4, 2, 1, zero, true, none);
  check_node(graph, 6, up, {3, 5}, 16, 4, 4, 2, 1, zero, true, none);
  check_node(graph, 7, up, {2, 6}, 8, 2, 4, 2, 1, zero, true, none);
  check_node(graph, 8, up, {1, 7}, 4, 1, 4, 2, 1, zero, true, none);
  check_node(graph, 9, up, {0, 8}, 2, 3, 4, 2, 1, zero, false, Activation::tanh);
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const Activation expected = i == 0 ? none : i < 5 ? Activation::leaky_relu : Activation::relu;
    CHECK(graph.nodes[i].input_activation == expected && graph.nodes[i].output_padding == 0, "node %zu", i);
  }
  CHECK(graph.nodes[5].weight == file.values("model.model.1.model.3.model.3.model.3.model.3.weight"), "innermost");
  CHECK(graph.nodes[9].weight == file.values("model.model.3.weight"), "outermost");
  const Graph deep = parse(unet_file(with(unet_config(), "n_levels", 7)).bytes());
  CHECK(deep.nodes.size() == 14 && deep.size_multiple == 128, "%zu nodes", deep.nodes.size());
  CHECK(deep.nodes[7].inputs == std::vector<int>{6} && deep.nodes[8].inputs == (std::vector<int>{5, 7}), "inner levels");
}

void test_dtypes() {
  where = "dtypes";
  // The stem's 196 weights take all finite numbers of 16 bits, a file at a time.
  const std::string name = "model.1.weight";
  for (const char* const dtype : {"F16", "BF16"}) {
    const bool half = std::strcmp(dtype, "F16") == 0;
    const int fraction_bits = half ? 10 : 7, bias = half ? 15 : 127, top = half ? 31 : 255;
    for (uint32_t first = 0; first < 65536; first += 196) {
      File file = resnet_file();
      file.header.erase(name);
      std::string data;
      std::vector<double> expected;
      for (uint32_t bits = first; bits < first + 196; ++bits) {
        uint16_t stored = static_cast<uint16_t>(bits < 65536 ? bits : 0);
        const int exponent = stored >> fraction_bits & top;
        if (exponent == top) stored = 0;
        const int fraction = stored & ((1 << fraction_bits) - 1), shown = stored >> fraction_bits & top;
        const double value =
            std::ldexp(shown == 0 ? fraction : fraction + (1 << fraction_bits), std::max(shown, 1) - bias - fraction_bits);
        expected.push_back((stored & 0x8000) != 0 ? -value : value);
        data += static_cast<char>(stored & 0xFF);
        data += static_cast<char>(stored >> 8);
      }
      // The stem's floats came first: 16-bit ones take half their bytes, and all others move up.
      file.data = data + file.data.substr(4 * 196);
      for (auto& [key, entry] : file.header.items()) {
        if (key == "__metadata__") continue;
        for (auto& offset : entry["data_offsets"]) offset = offset.get<size_t>() - 2 * 196;
      }
      file.header[name] = {{"dtype", dtype}, {"shape", {2, 2, 7, 7}}, {"data_offsets", {0, 2 * 196}}};
      const std::vector<float> got = parse(file.bytes()).nodes[0].weight;
      CHECK(std::equal(got.begin(), got.end(), expected.begin(), expected.end(),
                       [](float a, double b) { return double{a} == b && std::signbit(a) == std::signbit(b); }),
            "%s from %u", dtype, first);
    }
  }
}

// --- errors ---------------------------------------------------------------------------------------------------------

void test_container_errors() {
  where = "container";
  const File good = resnet_file();
  const std::string bytes = good.bytes();
  expect_format("", "has 0 bytes");
  expect_format(std::string(7, '\0'), "has 7 bytes");
  expect_format(std::string(8, '\0'), "'{'");
  expect_format(std::string(8, '\xFF') + "{}", "header length 18446744073709551615");
  expect_format(File::with_header(good.header.dump(), "").substr(0, 100), "header length");
  expect_format(File::with_header(std::string((16 << 20) + 1, ' '), ""), "header length 16777217");
  for (const char* const text : {"{", "{}x", "{\"a\":}", "{]", "{\"a\" 1}", "{\"\xFF\":1}"}) {
    expect_format(File::with_header(text, ""), "not valid JSON");
  }
  expect_format(File::with_header("[]", ""), "'{'");
  expect_format(File::with_header("\xEF\xBB\xBF{}", ""), "'{'");
  expect_format(File::with_header(std::string("{}\0{", 4), ""), "zero byte");
  expect_format(File::with_header("{}", ""), "gancomp.config");
  expect_format(File::with_header("{}", "x"), "1 bytes of tensors");
  // Trailing blanks are the format's own padding.
  CHECK(outcome(File::with_header(good.header.dump() + "   ", good.data)).ok, "blanks");

  where = "hostile JSON";
  std::string deep(1 << 20, '[');
  expect_format(File::with_header("{\"a\":" + deep, ""), "'a' is a list, expected an object");
  deep.clear();
  for (int i = 0; i < 100000; ++i) deep += "{\"a\":";
  expect_format(File::with_header(deep, ""), "unknown field 'a'");
  std::string wide = "{\"a\":{\"shape\":[0";
  for (int i = 0; i < 1000000; ++i) wide += ",0";
  expect_format(File::with_header(wide, ""), "more than 8 numbers");
  std::string many = "{";
  for (int i = 0; i < 20000; ++i) {
    many += (i == 0 ? "\"" : ",\"") + std::to_string(i) + "\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}";
  }
  expect_format(File::with_header(many + "}", ""), "gancomp.config");
  std::string metadata = "{\"__metadata__\":{";
  for (int i = 0; i < 100000; ++i) metadata += (i == 0 ? "\"" : ",\"") + std::to_string(i) + "\":\"\"";
  expect_format(File::with_header(metadata + "}}", ""), "gancomp.config");
  const std::string entry = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  expect_format(File::with_header("{\"a\":" + entry + ",\"a\":" + entry + "}", "x"), "'a' is there twice");
  expect_format(File::with_header(R"({"__metadata__":{},"__metadata__":{}})", ""), "'__metadata__' is there twice");
  expect_format(File::with_header(R"({"__metadata__":{"gancomp.config":"1","gancomp.config":"2"}})", ""), "there twice");
  expect_format(File::with_header(R"({"a":{"dtype":"U8","dtype":"U8"}})", ""), "'dtype' is there twice");
  expect_format(File::with_header(R"({"a":{"dtype":"U8","shape":[1]}})", ""), "'data_offsets' is missing");
  expect_format(File::with_header(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1]}})", ""), "'data_offsets' is missing");
  expect_format(File::with_header(R"({"a":{"dtype":"U8","data_offsets":[0,0]}})", ""), "'shape' is missing");
  expect_format(File::with_header(R"({"a":{"shape":[1],"data_offsets":[0,0]}})", ""), "'dtype' is missing");
  expect_format(File::with_header(R"({"a":1})", ""), "'a' is a number, expected an object");
  expect_format(File::with_header(R"({"a":{"dtype":1}})", ""), "'dtype' is a number, expected a string");
  expect_format(File::with_header(R"({"a":{"dtype":[]}})", ""), "'dtype' is a list, expected a string");
  expect_format(File::with_header(R"({"a":{"shape":"x"}})", ""), "'shape' is a string, expected a list");
  expect_format(File::with_header(R"({"a":{"shape":[null]}})", ""), "'shape' holds null");
  expect_format(File::with_header(R"({"a":{"shape":[[]]}})", ""), "'shape' holds a list");
  expect_format(File::with_header(R"({"a":{"shape":[-1]}})", ""), "'shape' holds a negative number");
  expect_format(File::with_header(R"({"a":{"shape":[1.5]}})", ""), "not whole");
  expect_format(File::with_header(R"({"a":{"shape":[99999999999999999999]}})", ""), "not whole");
  expect_format(File::with_header(R"({"a":{"shape":[true]}})", ""), "a truth value");
  expect_format(File::with_header(R"({"a":{"data_offsets":[0,1,2]}})", ""), "more than 2 numbers");
  expect_format(File::with_header(R"({"__metadata__":{"a":1}})", ""), "metadata 'a' is a number");
  expect_format(File::with_header("{\"a\\n\\u0000b\":1}", ""), "'a\\x0a\\x00b'");
  expect_format(File::with_header("{\"" + std::string(1000, 'a') + "\":1}", ""), std::string(80, 'a') + "...'");
  std::string wide_names;  // of characters that take several in a message
  for (int i = 0; i < 100; ++i) wide_names += "\x7F";
  expect_format(File::with_header("{\"" + wide_names + "\":{\"" + wide_names + "\":1}}", ""),
                "\\x7f...': unknown field '\\x7f");
  expect_format(File::with_header("{\"" + std::string(79, 'a') + "\xC3\xA4\":1}", ""), std::string(79, 'a') + "...'");

  where = "offsets";
  const std::string name = "model.4.weight", quoted = "'model.4.weight'";
  const auto offsets = [&](const Json& begin, const Json& end) {
    File file = good;
    file.header[name]["data_offsets"] = {begin, end};
    return file.bytes();
  };
  const size_t begin = good.header[name]["data_offsets"][0], end = good.header[name]["data_offsets"][1];
  expect_format(offsets(begin, good.data.size() + 1), "not a range inside");
  expect_format(offsets(end, begin), "not a range inside");
  expect_format(offsets(begin, UINT64_MAX), "not a range inside");
  expect_format(offsets(UINT64_MAX, UINT64_MAX), "not a range inside");
  expect_format(offsets(-1, end), "a negative number");
  expect_format(offsets(begin, end - 1), "does not fill the");
  expect_format(offsets(begin - 4, end - 4), quoted + ": begins at byte");  // overlaps the tensor before
  expect_format(offsets(begin + 4, end + 4), quoted + ": begins at byte");  // leaves a gap, overlaps the one behind
  expect_format(good.bytes() + "x", "the file has 4609 bytes of tensors");
  expect_format(good.bytes().substr(0, good.bytes().size() - 1), "not a range inside");

  where = "shapes";
  const auto shape = [&](const Json& value) {
    File file = good;
    file.header[name]["shape"] = value;
    return file.bytes();
  };
  expect_format(shape({3, 2, 3, 4}), "does not fill the");
  expect_format(shape({2, 3, 3, 3}), quoted + ": shape [2, 3, 3, 3], but the configuration wants [3, 2, 3, 3]");
  expect_format(shape({54}), quoted + ": shape [54]");
  expect_format(shape(Json::array()), "does not fill the");
  expect_format(shape({0, 2, 3, 3}), "does not fill the");
  expect_format(shape({4294967296, 4294967296, 2, 3}), "too many elements");
  expect_format(shape({UINT64_MAX, 2, 3, 3}), "too many elements");
  expect_format(shape({int64_t{1} << 62, 1}), "does not fill the");  // 2^64 bytes

  where = "tensors";
  File file = good;
  file.header[name]["dtype"] = "I32";
  expect_error(file.bytes(), Code::unsupported, quoted + ": dtype I32: the engine reads F32, F16 and BF16");
  file.header[name]["dtype"] = "F33";
  expect_error(file.bytes(), Code::unsupported, quoted + ": unknown dtype 'F33'");
  file.header[name]["dtype"] = "F16";
  expect_format(file.bytes(), "does not fill the");
  file = good;
  file.header["model.x\ny.weight"] = file.header[name];
  file.header.erase(name);
  expect_format(file.bytes(), "tensor 'model.4.weight' is missing");
  file = good;
  file.add("model.99.weight", {1});
  expect_format(file.bytes(), "tensor 'model.99.weight' belongs to no part of the network");
  for (const float value : {NAN, INFINITY, -INFINITY}) {
    file = good;
    file.set(name, 17, value);
    expect_format(file.bytes(), quoted + ": element 17 is " + (std::isnan(value) ? "not a number" : "infinite"));
  }
  file = resnet_file(with(resnet_config(), "norm", "batch"));
  file.set("model.5.running_var", 1, -1.0f);
  expect_format(file.bytes(), "'model.5.running_var': element 1 is negative");
  file.set("model.5.running_var", 1, 0.0f);
  file.set("model.5.weight", 1, 3e38f);
  expect_format(file.bytes(), "'model.5.*': channel 1 scales weights beyond float32");
}

void test_config_errors() {
  where = "config";
  const auto raw = [](const std::string& text) {
    File file = resnet_file();
    file.header["__metadata__"]["gancomp.config"] = text;
    return file.bytes();
  };
  expect_format(raw(""), "config: '' is not a JSON object");
  expect_format(raw("[1]"), "is not a JSON object");
  expect_format(raw("{"), "is not a JSON object");
  expect_format(raw("{\"a\nb\"}"), "is not a JSON object");
  expect_format(raw(std::string(17000, ' ')), "config: 17000 bytes, at most 16384");
  expect_format(raw(std::string(8000, '[') + std::string(8000, ']')), "is not a JSON object");
  expect_format(raw("{\"arch\":" + std::string(8000, '[') + std::string(8000, ']') + "}"), "nested too deeply");
  std::string wide = "{\"arch\":[0";
  for (int i = 0; i < 8000; ++i) wide += ",0";
  expect_format(raw(wide + "]}"), "more than 1000 values");
  expect_format(raw("{}"), "config: arch is missing");
  expect_format(raw("{\"arch\": [0]}"), "config: arch=[...]: expected a string");
  expect_format(raw("{\"arch\": \"x\", \"arch\": \"y\"}"), "config: 'arch' is there twice");
  expect_format(raw("1"), "config: '1' is not a JSON object");
  expect_format(raw("{\"arch\": 1}"), "config: arch=1: expected a string");
  expect_error(raw("{\"arch\": \"patch\"}"), Code::unsupported, "arch='patch': the engine runs resnet, unet and spade");

  // The tensors stay those of the good file: a wrong width is told before any tensor is looked at.
  const auto resnet = [&](const std::string& name, const Json& value) {
    return raw(with(resnet_config(), name, value).dump());
  };
  for (const char* const name : {"stem", "down", "stream", "up", "last", "in_channels", "out_channels"}) {
    for (const Json& value : {Json(0), Json(-3), Json(65537), Json(UINT64_MAX), Json(INT64_MIN), Json(1.5), Json("8"),
                              Json(true), Json(nullptr), Json::array({8}), Json(1e300)}) {
      expect_format(resnet(name, value), std::string("config: ") + name + "=");
    }
    Json config = resnet_config();
    config.erase(name);
    expect_format(raw(config.dump()), std::string("config: ") + name + " is missing");
  }
  expect_format(resnet("hidden", 3), "config: hidden=3: expected a list of whole numbers");
  expect_format(resnet("hidden", Json(std::vector<int>(1001, 1))), "config: a list of more than 1000 values");
  expect_format(resnet("hidden", {5, 0}), "config: hidden[1]=0: expected a whole number between 1 and 65536");
  expect_format(resnet("separable", 1), "config: separable=1: expected true or false");
  expect_format(resnet("norm", "group"), "config: norm=\"group\":");
  expect_format(resnet("norm", 1), "expected one of instance, instance_affine, batch, none");
  expect_format(resnet("padding", "circular"), "expected one of reflect, replicate, zero");
  expect_format(resnet("dropout", 1.5), "config: dropout=1.5: expected a number between 0 and 1");
  expect_format(resnet("spectral\n", true), "config: unknown field 'spectral\\x0a'");
  // A config and tensors that disagree.
  expect_format(resnet("stem", 65536), "'model.1.weight': shape [2, 2, 7, 7], but the configuration wants [65536, 2, 7, 7]");
  expect_format(resnet("hidden", {5, 2, 2}), "tensor 'model.12.conv_block.1.weight' is missing");
  expect_format(resnet("separable", true), "'model.10.conv_block.1.conv.0.weight' is missing");
  expect_format(resnet("norm", "batch"), "'model.2.weight' is missing");

  const auto unet = [&](const std::string& name, const Json& value) {
    File file = unet_file();
    file.set_config(with(unet_config(), name, value));
    return file.bytes();
  };
  expect_format(unet("ngf", 8193), "config: ngf=8193: expected a whole number between 1 and 8192");
  expect_format(unet("n_levels", 4), "config: n_levels=4: expected a whole number between 5 and 12");
  expect_format(unet("n_levels", 13), "config: n_levels=13");
  expect_format(unet("norm", "x"), "expected one of");
  expect_format(unet("n_levels", 6), "'model.model.1.model.3.model.3.model.3.model.3.model.1.weight' is missing");
}

// Files damaged in one place: every length, and one bit of every byte, or of many of them.
void test_damage() {
  for (const std::string& bytes :
       {resnet_file(with(resnet_config(), "hidden", {1})).bytes(), unet_file().bytes(), spade_file().bytes()}) {
    where = "truncated";
    const size_t step = bytes.size() / 1000 + 1;
    for (size_t size = 0; size < bytes.size(); size += size < 6000 ? 1 : step) expect_format(bytes.substr(0, size), "");
    where = "flipped";
    size_t accepted = 0, refused = 0;
    for (size_t i = 0; i < bytes.size(); i += bytes.size() / 9000 + 1) {
      std::string damaged = bytes;
      damaged[i] = static_cast<char>(damaged[i] ^ 1 << (i * 5 % 8));
      ++(outcome(damaged).ok ? accepted : refused);
    }
    CHECK(accepted > 0 && refused > 0, "%zu accepted, %zu refused", accepted, refused);
  }
}

void test_files() {
  where = "files";
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / ("gancomp_test_" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  const auto expect_file_error = [](const std::filesystem::path& path, Code code, const std::string& part) {
    try {
      read_graph_file(path.string());
      CHECK(false, "accepted %s", path.c_str());
    } catch (const EngineError& error) {
      CHECK(error.code() == code, "code %d: %s", static_cast<int>(error.code()), error.what());
      CHECK(error.what() == path.string() + ": " + part, "%s", error.what());
    }
  };
  const std::filesystem::path path = folder / "net.safetensors";
  expect_file_error(path, Code::file, "no such file");
  expect_file_error(folder / std::string(300, 'x'), Code::file, "File name too long");
  expect_file_error(folder, Code::file, "not a file");
  const std::filesystem::path pipe = folder / "pipe";
  CHECK(mkfifo(pipe.c_str(), 0600) == 0, "mkfifo");
  expect_file_error(pipe, Code::file, "not a file");
  std::ofstream(path).flush();
  expect_file_error(path, Code::format, "has 0 bytes, too few for a .safetensors file");
  std::filesystem::resize_file(path, (uint64_t{4} << 30) + 1);  // sparse
  expect_file_error(path, Code::format, "4294967297 bytes, too many for a generator");
  std::filesystem::resize_file(path, 0);
  const std::string bytes = resnet_file().bytes();
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  CHECK(read_graph_file(path.string()).nodes.size() == 10, "read");
  std::filesystem::remove_all(folder);
}

}  // namespace

int main() {
  test_resnet();
  test_batch_norms();
  test_unet();
  test_dtypes();
  test_container_errors();
  test_config_errors();
  test_damage();
  test_files();
  return report();
}
