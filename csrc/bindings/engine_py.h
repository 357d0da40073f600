// The engine's part of the module gancomp._C.
#pragma once

#include <pybind11/pybind11.h>

void bind_engine(pybind11::module_& m);
