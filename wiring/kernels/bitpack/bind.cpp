#include "bitpack/cpu.h"
#include "native/bind.h"

namespace nb = nanobind;
using wiring::Address;
using wiring::at;

namespace {
wiring::Variants<bitpack::Kernels> kernels(WIRING_LIST_KERNELS(bitpack));
}

NB_MODULE(_cpu, module) {
    wiring::bind_variants(module, kernels);
    module.def(
        "pack_signs",
        [](Address x, std::int64_t rows, std::int64_t n, Address words, int threads) {
            kernels->pack_signs(at<const float>(x), rows, n, at<std::uint64_t>(words), threads);
        },
        nb::call_guard<nb::gil_scoped_release>());
    module.def(
        "pack_bits",
        [](Address x, std::int64_t rows, std::int64_t n, Address words, int threads) {
            kernels->pack_bits(at<const std::uint8_t>(x), rows, n, at<std::uint64_t>(words),
                               threads);
        },
        nb::call_guard<nb::gil_scoped_release>());
    module.def(
        "unpack_signs",
        [](Address words, std::int64_t rows, std::int64_t n, Address x, int threads) {
            kernels->unpack_signs(at<const std::uint64_t>(words), rows, n, at<float>(x), threads);
        },
        nb::call_guard<nb::gil_scoped_release>());
}
