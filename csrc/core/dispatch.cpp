// Chooses the kernels of an instruction set at run time. Compiled without ISA flags, so it runs on any processor.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "gancomp/ops.h"

namespace gancomp {

#define GANCOMP_DECLARE(name)            \
  namespace name {                       \
  extern const CpuKernels kernels_table; \
  }
GANCOMP_DECLARE(portable)
#ifdef GANCOMP_HAVE_AVX2
GANCOMP_DECLARE(avx2)
#endif
#ifdef GANCOMP_HAVE_AVX512
GANCOMP_DECLARE(avx512)
#endif
#ifdef GANCOMP_HAVE_AVX512VNNI
GANCOMP_DECLARE(avx512vnni)
#endif
#ifdef GANCOMP_HAVE_NEON
GANCOMP_DECLARE(neon)
#endif
#undef GANCOMP_DECLARE

namespace {

struct Entry {
  const CpuKernels* kernels;
  bool (*supported)();
};

bool always() { return true; }

#if defined(__x86_64__) || defined(_M_X64)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
bool has_avx512vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
#endif

const Entry entries[] = {
#ifdef GANCOMP_HAVE_AVX512VNNI
    {&avx512vnni::kernels_table, has_avx512vnni},
#endif
#ifdef GANCOMP_HAVE_AVX512
    {&avx512::kernels_table, has_avx512},
#endif
#ifdef GANCOMP_HAVE_AVX2
    {&avx2::kernels_table, has_avx2},
#endif
#ifdef GANCOMP_HAVE_NEON
    {&neon::kernels_table, always},
#endif
    {&portable::kernels_table, always},
};

std::atomic<const CpuKernels*> selected{nullptr};

const CpuKernels* best() {
  for (const Entry& entry : entries) {
    if (entry.supported()) return entry.kernels;
  }
  return nullptr;
}

}  // namespace

const CpuKernels* cpu_kernels_for(const char* isa) {
  for (const Entry& entry : entries) {
    if (std::strcmp(entry.kernels->isa, isa) == 0) return entry.supported() ? entry.kernels : nullptr;
  }
  return nullptr;
}

bool select_isa(const char* isa) {
  const CpuKernels* kernels = isa == nullptr ? nullptr : cpu_kernels_for(isa);
  if (isa != nullptr && kernels == nullptr) return false;
  selected.store(kernels, std::memory_order_release);
  return true;
}

const CpuKernels* cpu_kernels(const char** error) {
  const CpuKernels* kernels = selected.load(std::memory_order_acquire);
  if (kernels != nullptr) return kernels;
  static char message[160] = "";
  static const CpuKernels* const initial = []() -> const CpuKernels* {
    const char* name = std::getenv("GANCOMP_ISA");
    if (name == nullptr || *name == '\0') return best();
    const CpuKernels* named = cpu_kernels_for(name);
    if (named == nullptr) {
      std::snprintf(message, sizeof(message), "GANCOMP_ISA='%.40s': this build or this processor lacks it; leave it unset",
                    name);
    }
    return named;
  }();
  if (initial == nullptr && error != nullptr) *error = message;
  return initial;
}

const char* const* built_isas() {
  struct Names {
    const char* name[sizeof(entries) / sizeof(entries[0]) + 1] = {};
    Names() {
      for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); ++i) name[i] = entries[i].kernels->isa;
    }
  };
  static const Names names;
  return names.name;
}

}  // namespace gancomp
