// The tensors of a file as the floats that a network asks for, by name and shape.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "safetensors.h"

namespace gancomp::engine {

class Weights {
 public:
  explicit Weights(const SafeTensors& file) : file_(file) {}

  // The values of a parameter, row-major. Throws EngineError unless it is there with this shape, in a floating-point type that
  // the engine reads, and finite.
  std::vector<float> parameter(const std::string& name, const std::vector<int64_t>& shape);
  // The same for what is not trained: running statistics.
  std::vector<float> statistic(const std::string& name, const std::vector<int64_t>& shape);
  // Marks a tensor that has no influence as known, if it is there.
  void ignore(const std::string& name) { asked_.insert(name); }
  // Throws EngineError unless every tensor of the file was asked for.
  void finish() const;

  int64_t parameters() const { return parameters_; }  // scalars in all parameters so far

 private:
  const SafeTensors& file_;
  std::set<std::string> asked_;
  int64_t parameters_ = 0;
};

}  // namespace gancomp::engine
