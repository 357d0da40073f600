// The pybind11 module gancomp._C: what was built, what this processor has, which kernels are in use, and the engine.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "bindings.h"
#include "gancomp/ops.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native build facts, kernel selection and inference engine of gancomp.";
  m.def(
      "built_isas",
      [] {
        std::vector<std::string> names;
        for (const char* const* name = gancomp::built_isas(); *name != nullptr; ++name) names.emplace_back(*name);
        return names;
      },
      "Instruction sets compiled into this build, best first.");
  m.def(
      "supported_isas",
      [] {
        std::vector<std::string> names;
        for (const char* const* name = gancomp::built_isas(); *name != nullptr; ++name) {
          if (gancomp::cpu_kernels_for(*name) != nullptr) names.emplace_back(*name);
        }
        return names;
      },
      "Instruction sets of this build that this processor can run, best first.");
  m.def(
      "isa",
      [] {
        const char* error = "";
        const gancomp::CpuKernels* kernels = gancomp::cpu_kernels(&error);
        if (kernels == nullptr) throw py::value_error(error);
        return std::string(kernels->isa);
      },
      "The instruction set whose kernels run now.");
  m.def(
      "set_isa",
      [](const std::optional<std::string>& name) {
        if (!gancomp::select_isa(name ? name->c_str() : nullptr)) {
          throw py::value_error("isa='" + *name + "': this build or this processor lacks it");
        }
      },
      py::arg("name"), "Use the kernels of an instruction set; None goes back to the automatic choice.");
  m.attr("compiler") = GANCOMP_COMPILER;
  m.attr("build_type") = GANCOMP_BUILD_TYPE;
  m.attr("cuda_architectures") = GANCOMP_CUDA_BUILT;
#ifdef GANCOMP_ENGINE
  bind_engine(m);
#endif
  bind_roofline(m);
}
