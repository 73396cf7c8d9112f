// What every bind.cpp needs: addresses from Python, and the choice of instruction set.
//
// Tensors cross as addresses and sizes: op.py has checked type, shape and layout, and a tensor
// object would cost more than many of these kernels do.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>

#include "native/isa.h"

namespace wiring {

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

template <class Kernels>
void bind_variants(nanobind::module_& module, Variants<Kernels>& variants) {
    module.def("instruction_sets", [&variants] { return variants.names(); });
    module.def("instruction_set", [&variants] { return variants.chosen(); });
    module.def("choose", [&variants](const std::string& set) { variants.choose(set); });
}

}  // namespace wiring
