#include <nanobind/stl/pair.h>

#include <utility>

#include "native/bind.h"
#include "select_edges/cpu.h"

namespace nb = nanobind;
using wiring::Address;
using wiring::at;

namespace {
wiring::Variants<select_edges::Kernels> kernels(WIRING_LIST_KERNELS(select_edges));
}

NB_MODULE(_cpu, module) {
    wiring::bind_variants(module, kernels);
    // Returns how many scores are allowed, and whether one of those is NaN.
    module.def(
        "select_edges",
        [](Address scores, Address allowed, std::int64_t n, std::int64_t k, Address live,
           int threads) {
            const select_edges::Outcome outcome =
                kernels->select(at<const float>(scores), at<const std::uint8_t>(allowed), n, k,
                                at<std::uint8_t>(live), threads);
            return std::pair(outcome.usable, outcome.nan);
        },
        nb::call_guard<nb::gil_scoped_release>());
}
