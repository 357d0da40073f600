// The parts of the module gancomp._C that have files of their own.
#pragma once

#include <pybind11/pybind11.h>

void bind_engine(pybind11::module_& m);
void bind_roofline(pybind11::module_& m);
