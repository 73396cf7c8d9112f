#include "native/bind.h"
#include "xxhash32/cpu.h"

namespace nb = nanobind;
using wiring::Address;
using wiring::at;

namespace {
wiring::Variants<xxhash32::Kernels> kernels(WIRING_LIST_KERNELS(xxhash32));
}

NB_MODULE(_cpu, module) {
    wiring::bind_variants(module, kernels);
    module.def(
        "places",
        [](std::int64_t row, std::uint32_t weights, std::uint32_t seed, std::uint32_t other,
           std::int64_t first, std::int64_t last, Address places, int threads) {
            kernels->places(row, weights, seed, other, first, last, at<std::int32_t>(places),
                            threads);
        },
        nb::call_guard<nb::gil_scoped_release>());
}
