#include "xnor_conv2d/cpu.h"

#include <nanobind/stl/tuple.h>

#include <tuple>

#include "native/bind.h"

using std::int32_t;
using std::int64_t;
using std::uint64_t;
using std::uint8_t;
using wiring::Address;
using wiring::at;
using xnor_conv2d::Rows;
using xnor_conv2d::Shape;
using xnor_conv2d::Weights;

namespace {

wiring::Variants<xnor_conv2d::Kernels> kernels(WIRING_LIST_KERNELS(xnor_conv2d));

// n, h, w, channels, d, kh, kw, stride, padding.
using Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                         int64_t>;

Shape shape(const Sizes& sizes) {
    const auto [n, h, w, channels, d, kh, kw, stride, padding] = sizes;
    return {n,  h,  w,      (channels + 63) / 64,
            channels,       d,
            kh, kw, stride, padding,
            (h + 2 * padding - kh) / stride + 1, (w + 2 * padding - kw) / stride + 1};
}

Weights weights(Address sign, Address live, Address live_bits, Address alpha) {
    return {at<const uint64_t>(sign), at<const uint64_t>(live), at<const int32_t>(live_bits),
            at<const float>(alpha)};
}

Rows rows(Address weight, Address live, int64_t d, int64_t k) {
    return {at<const float>(weight), at<const uint8_t>(live), d, k};
}

}  // namespace

NB_MODULE(_cpu, module) {
    using Free = nanobind::call_guard<nanobind::gil_scoped_release>;
    wiring::bind_variants(module, kernels);
    module.attr("PANEL") = xnor_conv2d::panel;
    module.def(
        "row_scales",
        [](Address weight, Address live, int64_t d, int64_t k, Address alpha, int threads) {
            kernels->row_scales(rows(weight, live, d, k), at<float>(alpha), threads);
        },
        Free());
    module.def(
        "binary_filters",
        [](Address weight, Address live, int64_t d, int64_t k, Address alpha, Address filters,
           int threads) {
            kernels->binary_filters(rows(weight, live, d, k), at<const float>(alpha),
                                    at<float>(filters), threads);
        },
        Free());
    module.def(
        "binary_gradient",
        [](Address weight, Address live, int64_t d, int64_t k, Address alpha, Address grad,
           Address learn, int mode, int64_t sources, Address result, int threads) {
            kernels->binary_gradient(rows(weight, live, d, k), at<const float>(alpha),
                                     at<const float>(grad), at<const uint8_t>(learn),
                                     static_cast<xnor_conv2d::Gradient>(mode), sources,
                                     at<float>(result), threads);
        },
        Free());
    module.def(
        "panels",
        [](Address words, int64_t d, int64_t k, Address to) {
            kernels->panels(at<const uint64_t>(words), d, k, at<uint64_t>(to));
        },
        Free());
    module.def(
        "live_bits",
        [](Address live, const Sizes& sizes, Address bits) {
            return kernels->live_bits(at<const uint64_t>(live), shape(sizes), at<int32_t>(bits));
        },
        Free());
    module.def(
        "xnor",
        [](Address x, Address sign, Address live, Address live_bits, Address alpha, Address scale,
           Address y, const Sizes& sizes, int threads) {
            kernels->xnor(at<const uint64_t>(x), weights(sign, live, live_bits, alpha),
                          at<const float>(scale), at<float>(y), shape(sizes), threads);
        },
        Free());
    module.def(
        "xnor_floats",
        [](Address x, bool planes, Address sign, Address live, Address live_bits, Address alpha,
           Address scale, Address y, const Sizes& sizes, int threads) {
            kernels->xnor_floats({at<const float>(x), planes}, weights(sign, live, live_bits, alpha),
                                 at<const float>(scale), at<float>(y), shape(sizes), threads);
        },
        Free());
    module.def("has_signed_sums", [] { return kernels->signed_sums != nullptr; });
    module.def(
        "signed_sums",
        [](Address x, bool planes, Address panels, Address alpha, Address y, const Sizes& sizes,
           int threads) {
            kernels->signed_sums({at<const float>(x), planes}, at<const uint64_t>(panels),
                                 at<const float>(alpha), at<float>(y), shape(sizes), threads);
        },
        Free());
    module.def(
        "planes",
        [](Address x, int x_bits, Address panels, int w_bits, Address y, const Sizes& sizes,
           int threads) {
            kernels->planes(at<const uint64_t>(x), x_bits, at<const uint64_t>(panels), w_bits,
                            at<int32_t>(y), shape(sizes), threads);
        },
        Free());
}
