#include "config.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "checked.h"

namespace gancomp::engine {
namespace {

using Json = nlohmann::json;
using Value = Config::Value;
using Kind = Value::Kind;

// A list of as many numbers takes some seven thousand bytes.
constexpr size_t kMaxItems = 1000;
constexpr size_t kMaxText = size_t{16} << 10;

// Reads one object of plain values and lists of them; anything deeper ends the reading at once.
class ConfigReader final : public nlohmann::json_sax<Json> {
 public:
  std::map<std::string, Value> fields;

  bool null() override { return add({Kind::null, "null"}); }
  bool boolean(bool value) override { return add({Kind::flag, value ? "true" : "false", value ? 1 : 0}); }
  bool number_integer(number_integer_t value) override {
    return add({Kind::whole, std::to_string(value), value, static_cast<double>(value)});
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (value <= static_cast<uint64_t>(INT64_MAX)) return number_integer(static_cast<number_integer_t>(value));
    return add({Kind::real, std::to_string(value), 0, static_cast<double>(value)});
  }
  bool number_float(number_float_t value, const string_t& literal) override { return add({Kind::real, literal, 0, value}); }
  bool string(string_t& value) override { return add({Kind::text, "\"" + value + "\"", 0, 0, std::move(value)}); }
  bool binary(binary_t&) override { return false; }

  bool start_object(size_t) override {
    if (std::exchange(in_object_, true)) fail_format("config: nested too deeply");
    return true;
  }
  bool key(string_t& name) override {
    field_ = &fields[name];
    if (!field_->shown.empty()) fail_format("config: " + in_quotes(name) + " is there twice");
    return true;
  }
  bool end_object() override { return true; }
  bool start_array(size_t) override {
    if (!in_object_) return false;
    if (in_list_) fail_format("config: nested too deeply");
    add({Kind::list, "[...]"});
    in_list_ = true;
    return true;
  }
  bool end_array() override {
    in_list_ = false;
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception&) override { return false; }

 private:
  bool add(Value value) {
    if (!in_object_) return false;
    if (in_list_) {
      if (field_->items.size() == kMaxItems)
        fail_format("config: a list of more than " + std::to_string(kMaxItems) + " values");
      field_->items.push_back(std::move(value));
    } else {
      *field_ = std::move(value);
    }
    return true;
  }

  bool in_object_ = false, in_list_ = false;
  Value* field_ = nullptr;
};

[[noreturn]] void wrong(const std::string& name, const Value& value, const std::string& expected) {
  fail_format("config: " + name + "=" + one_line(value.shown) + ": expected " + expected);
}

int checked_whole(const std::string& name, const Value& value, int low, int high) {
  if (value.kind != Kind::whole || value.whole < low || value.whole > high) {
    wrong(name, value, "a whole number between " + std::to_string(low) + " and " + std::to_string(high));
  }
  return static_cast<int>(value.whole);
}

}  // namespace

Config::Config(const std::string& json) {
  if (json.size() > kMaxText) {
    fail_format("config: " + std::to_string(json.size()) + " bytes, at most " + std::to_string(kMaxText) + " are allowed");
  }
  ConfigReader reader;
  if (!Json::sax_parse(json, &reader)) fail_format("config: " + in_quotes(json) + " is not a JSON object");
  fields_ = std::move(reader.fields);
}

const Value& Config::at(const char* name) {
  const auto found = fields_.find(name);
  if (found == fields_.end()) fail_format(std::string("config: ") + name + " is missing");
  asked_.insert(name);
  return found->second;
}

std::string Config::text(const char* name) {
  const Value& value = at(name);
  if (value.kind != Kind::text) wrong(name, value, "a string");
  return value.text;
}

std::string Config::choice(const char* name, std::initializer_list<const char*> allowed) {
  const Value& value = at(name);
  std::string names;
  for (const char* const option : allowed) {
    if (value.kind == Kind::text && value.text == option) return option;
    names += (names.empty() ? "" : ", ") + std::string(option);
  }
  wrong(name, value, "one of " + names);
}

bool Config::flag(const char* name) {
  const Value& value = at(name);
  if (value.kind != Kind::flag) wrong(name, value, "true or false");
  return value.whole != 0;
}

double Config::number(const char* name, int low, int high) {
  const Value& value = at(name);
  const bool is_number = value.kind == Kind::whole || value.kind == Kind::real;
  if (!is_number || !(value.number >= low && value.number <= high)) {
    wrong(name, value, "a number between " + std::to_string(low) + " and " + std::to_string(high));
  }
  return value.number;
}

int Config::whole(const char* name, int low, int high) { return checked_whole(name, at(name), low, high); }

std::vector<int> Config::wholes(const char* name, int low, int high) {
  const Value& value = at(name);
  if (value.kind != Kind::list) wrong(name, value, "a list of whole numbers");
  std::vector<int> result;
  for (const Value& item : value.items) {
    result.push_back(checked_whole(name + ("[" + std::to_string(result.size()) + "]"), item, low, high));
  }
  return result;
}

void Config::check_length(const char* name, const std::vector<int>& values, size_t length) {
  if (values.size() == length) return;
  fail_format(std::string("config: ") + name + ": has " + std::to_string(values.size()) + " values, expected " +
              std::to_string(length));
}

void Config::finish() const {
  for (const auto& [name, value] : fields_) {
    if (asked_.count(name) == 0) fail_format("config: unknown field " + in_quotes(name));
  }
}

}  // namespace gancomp::engine
