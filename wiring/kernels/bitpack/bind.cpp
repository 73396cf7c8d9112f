#include "bitpack/cpu.h"
#include "native/bind.h"

using bitpack::Image;
using std::int64_t;
using std::uint64_t;
using std::uint8_t;
using wiring::Address;
using wiring::at;

namespace {

wiring::Variants<bitpack::Kernels> kernels(WIRING_LIST_KERNELS(bitpack));

Image image(int64_t n, int64_t c, int64_t pixels, bool planes) { return {n, c, pixels, planes}; }

}  // namespace

NB_MODULE(_cpu, module) {
    using Free = nanobind::call_guard<nanobind::gil_scoped_release>;
    wiring::bind_variants(module, kernels);
    module.def(
        "pack_signs",
        [](Address x, int64_t n, int64_t c, int64_t pixels, bool planes, Address words,
           int threads) {
            kernels->pack_signs(at<const float>(x), image(n, c, pixels, planes),
                                at<uint64_t>(words), threads);
        },
        Free());
    module.def(
        "pack_clipped",
        [](Address x, int64_t n, int64_t c, int64_t pixels, bool planes, Address words,
           int threads) {
            kernels->pack_clipped(at<const float>(x), image(n, c, pixels, planes),
                                  at<uint64_t>(words), threads);
        },
        Free());
    module.def(
        "pack_thresholds",
        [](Address x, Address threshold, Address flip, int64_t n, int64_t c, int64_t pixels,
           bool planes, Address words, int threads) {
            kernels->pack_thresholds(at<const float>(x), at<const float>(threshold),
                                     at<const uint64_t>(flip), image(n, c, pixels, planes),
                                     at<uint64_t>(words), threads);
        },
        Free());
    module.def(
        "pack_bits",
        [](Address x, int64_t n, int64_t c, int64_t pixels, bool planes, Address words,
           int threads) {
            kernels->pack_bits(at<const uint8_t>(x), image(n, c, pixels, planes),
                               at<uint64_t>(words), threads);
        },
        Free());
    module.def(
        "bit_planes",
        [](Address x, int bits, int64_t n, int64_t c, int64_t pixels, bool planes, Address words,
           int threads) {
            kernels->bit_planes(at<const uint8_t>(x), bits, image(n, c, pixels, planes),
                                at<uint64_t>(words), threads);
        },
        Free());
    module.def(
        "unpack_signs",
        [](Address words, int64_t rows, int64_t n, Address x, int threads) {
            kernels->unpack_signs(at<const uint64_t>(words), rows, n, at<float>(x), threads);
        },
        Free());
    module.def(
        "keep_bits",
        [](Address x, Address words, int64_t rows, int64_t n, Address y, int threads) {
            kernels->keep_bits(at<const float>(x), at<const uint64_t>(words), rows, n,
                               at<float>(y), threads);
        },
        Free());
}
