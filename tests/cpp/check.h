// The C++ tests' one way to check: failures are printed and counted, and the test goes on.
#pragma once

#include <cstdio>
#include <string>

inline int failures = 0, checks = 0;
inline std::string where;  // what the checks below are about

#define CHECK(condition, ...)                                  \
  do {                                                         \
    ++checks;                                                  \
    if (!(condition)) {                                        \
      ++failures;                                              \
      std::printf("FAIL %s: %s: ", where.c_str(), #condition); \
      std::printf(__VA_ARGS__);                                \
      std::printf("\n");                                       \
    }                                                          \
  } while (false)

// What main returns.
inline int report() {
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
