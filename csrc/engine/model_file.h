// A .safetensors file of a generator: its configuration and its tensors. Everything in it is checked before it is used.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "graph.h"

namespace gancomp::engine {

// Parses the bytes of a .safetensors file that gancomp wrote and builds the graph of its generator.
// Throws EngineError (format or unsupported), never anything else but std::bad_alloc; `name` is for messages.
Graph read_graph(const void* data, size_t size, const std::string& name);

// The same from a file. Throws EngineError also with code file.
Graph read_graph_file(const std::string& path);

}  // namespace gancomp::engine
