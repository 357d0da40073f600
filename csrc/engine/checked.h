// What every reader of untrusted bytes needs: one-line errors, names made safe for them, arithmetic that cannot overflow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "gancomp/engine.h"

namespace gancomp::engine {

[[noreturn]] inline void fail(EngineError::Code code, const std::string& message) { throw EngineError(code, message); }

[[noreturn]] inline void fail_format(const std::string& message) { fail(EngineError::Code::format, message); }

// The text on one line and at most 80 bytes of it, control characters as \x1f; the text must be UTF-8 and so is the result.
inline std::string one_line(const std::string& text) {
  constexpr size_t kMax = 80;
  std::string result;
  for (size_t i = 0, next; i < text.size(); i = next) {
    next = i + 1;
    while (next < text.size() && (static_cast<unsigned char>(text[next]) & 0xC0) == 0x80) ++next;
    std::string character = text.substr(i, next - i);
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if (c < 0x20 || c == 0x7F) {
      char escape[8];
      std::snprintf(escape, sizeof(escape), "\\x%02x", c);
      character = escape;
    }
    if (result.size() + character.size() > kMax) return result + "...";
    result += character;
  }
  return result;
}

inline std::string in_quotes(const std::string& text) { return "'" + one_line(text) + "'"; }

// e.g. [16, 3, 7, 7]
inline std::string shape_text(const std::vector<int64_t>& shape) {
  std::string result = "[";
  for (size_t i = 0; i < shape.size(); ++i) result += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return result + "]";
}

// Returns whether a * b fits; only then is `result` set.
inline bool multiply(uint64_t a, uint64_t b, uint64_t* result) {
  if (a != 0 && b > UINT64_MAX / a) return false;
  *result = a * b;
  return true;
}

}  // namespace gancomp::engine
