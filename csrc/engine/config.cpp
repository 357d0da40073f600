#include "config.h"

#include <nlohmann/json.hpp>
#include <set>

#include "checked.h"

namespace gancomp::engine {
namespace {

using Json = nlohmann::json;

// A thousand blocks take some seven thousand bytes. Parsed, hostile text takes some thirty times its size.
constexpr size_t kMaxText = size_t{16} << 10;

[[noreturn]] void wrong(const std::string& name, const Json& value, const std::string& expected) {
  fail_format("config: " + name + "=" + one_line(value.dump()) + ": expected " + expected);
}

int checked_whole(const std::string& name, const Json& value, int low, int high) {
  // Unsigned first: a value above the signed range would compare as a negative one.
  const bool fits =
      value.is_number_unsigned() ? value.get<uint64_t>() <= uint64_t{static_cast<unsigned>(high)} : value.is_number_integer();
  if (!fits || value.get<int64_t>() < low) {
    wrong(name, value, "a whole number between " + std::to_string(low) + " and " + std::to_string(high));
  }
  return static_cast<int>(value.get<int64_t>());
}

}  // namespace

struct Config::Impl {
  Json object;
  std::set<std::string> asked;

  const Json& at(const char* name) {
    const auto found = object.find(name);
    if (found == object.end()) fail_format(std::string("config: ") + name + " is missing");
    asked.insert(name);
    return *found;
  }
};

Config::Config(const std::string& json) : impl_(std::make_unique<Impl>()) {
  if (json.size() > kMaxText) {
    fail_format("config: " + std::to_string(json.size()) + " bytes, at most " + std::to_string(kMaxText) + " are allowed");
  }
  bool deep = false;
  const auto shallow = [&](int depth, Json::parse_event_t event, Json&) {
    deep = deep || (depth > 1 && (event == Json::parse_event_t::array_start || event == Json::parse_event_t::object_start));
    return !deep;
  };
  impl_->object = Json::parse(json, shallow, /*allow_exceptions=*/false);
  if (deep) fail_format("config: nested too deeply");
  if (!impl_->object.is_object()) fail_format("config: " + in_quotes(json) + " is not a JSON object");
}

Config::~Config() = default;

std::string Config::text(const char* name) {
  const Json& value = impl_->at(name);
  if (!value.is_string()) wrong(name, value, "a string");
  return value.get<std::string>();
}

std::string Config::choice(const char* name, std::initializer_list<const char*> allowed) {
  const Json& value = impl_->at(name);
  std::string names;
  for (const char* const option : allowed) {
    if (value == option) return option;
    names += (names.empty() ? "" : ", ") + std::string(option);
  }
  wrong(name, value, "one of " + names);
}

bool Config::flag(const char* name) {
  const Json& value = impl_->at(name);
  if (!value.is_boolean()) wrong(name, value, "true or false");
  return value.get<bool>();
}

double Config::number(const char* name, double low, double high) {
  const Json& value = impl_->at(name);
  if (!value.is_number() || !(value.get<double>() >= low && value.get<double>() <= high)) {
    wrong(name, value, "a number between " + Json(low).dump() + " and " + Json(high).dump());
  }
  return value.get<double>();
}

int Config::whole(const char* name, int low, int high) { return checked_whole(name, impl_->at(name), low, high); }

std::vector<int> Config::wholes(const char* name, int low, int high, size_t max_count) {
  const Json& value = impl_->at(name);
  if (!value.is_array() || value.size() > max_count) {
    wrong(name, value, "a list of at most " + std::to_string(max_count) + " whole numbers");
  }
  std::vector<int> result;
  for (const Json& item : value) {
    result.push_back(checked_whole(name + ("[" + std::to_string(result.size()) + "]"), item, low, high));
  }
  return result;
}

void Config::finish() const {
  for (const auto& [name, value] : impl_->object.items()) {
    if (impl_->asked.count(name) == 0) fail_format("config: unknown field " + in_quotes(name));
  }
}

}  // namespace gancomp::engine
