// The configuration of a network: the JSON object that gancomp writes beside the weights.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

namespace gancomp::engine {

// Every field must be there, in its range, and asked for; the methods throw EngineError (format) otherwise.
class Config {
 public:
  explicit Config(const std::string& json);
  ~Config();

  std::string text(const char* name);
  std::string choice(const char* name, std::initializer_list<const char*> allowed);
  bool flag(const char* name);
  double number(const char* name, double low, double high);
  int whole(const char* name, int low, int high);
  std::vector<int> wholes(const char* name, int low, int high, size_t max_count);
  // Throws unless every field was asked for.
  void finish() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gancomp::engine
