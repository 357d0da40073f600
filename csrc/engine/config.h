// The configuration of a network: the JSON object that gancomp writes beside the weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace gancomp::engine {

// Every field must be there, in its range, and asked for; the methods throw EngineError (format) otherwise.
class Config {
 public:
  explicit Config(const std::string& json);

  std::string text(const char* name);
  std::string choice(const char* name, std::initializer_list<const char*> allowed);
  bool flag(const char* name);
  double number(const char* name, int low, int high);
  int whole(const char* name, int low, int high);
  std::vector<int> wholes(const char* name, int low, int high);
  // Throws unless a list that was read has so many values.
  static void check_length(const char* name, const std::vector<int>& values, size_t length);
  // Throws unless every field was asked for.
  void finish() const;

  struct Value {
    enum class Kind { null, flag, whole, real, text, list };
    Kind kind = Kind::null;
    std::string shown;  // for messages
    int64_t whole = 0;  // also 0 or 1 of a flag
    double number = 0;  // of whole and real
    std::string text{};
    std::vector<Value> items{};  // none of them a list
  };

 private:
  const Value& at(const char* name);

  std::map<std::string, Value> fields_;
  std::set<std::string> asked_;
};

}  // namespace gancomp::engine
