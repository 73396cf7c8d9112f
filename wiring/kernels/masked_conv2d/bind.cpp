#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>

#include "masked_conv2d/cpu.h"
#include "native/bind.h"

namespace nb = nanobind;
using masked_conv2d::Convolution;
using wiring::Address;
using wiring::at;

namespace {

wiring::Variants<masked_conv2d::Kernels> kernels(WIRING_LIST_KERNELS(masked_conv2d));

// images, sources, height, width, destinations, kernel_h, kernel_w, stride, padding, x_last, y_last
using Sizes = std::array<std::int64_t, 11>;

Convolution convolution(const Sizes& s) {
    return {s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9] != 0, s[10] != 0};
}

}  // namespace

NB_MODULE(_cpu, module) {
    wiring::bind_variants(module, kernels);
    const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
    module.def(
        "forward",
        [](const Sizes& sizes, Address x, Address weight, Address live, Address y,
           std::int64_t most, int threads) {
            return kernels->forward(convolution(sizes), at<const float>(x), at<const float>(weight),
                                    at<const std::uint8_t>(live), at<float>(y), most, threads);
        },
        unlocked);
    module.def(
        "input_gradient",
        [](const Sizes& sizes, Address grad, Address weight, Address live, Address dx,
           std::int64_t most, int threads) {
            return kernels->input_gradient(convolution(sizes), at<const float>(grad),
                                           at<const float>(weight), at<const std::uint8_t>(live),
                                           at<float>(dx), most, threads);
        },
        unlocked);
    module.def(
        "weight_gradient",
        [](const Sizes& sizes, Address grad, Address x, Address learn, Address dw,
           std::int64_t most, int threads) {
            return kernels->weight_gradient(convolution(sizes), at<const float>(grad),
                                            at<const float>(x), at<const std::uint8_t>(learn),
                                            at<float>(dw), most, threads);
        },
        unlocked);
    module.def(
        "mask",
        [](Address x, Address mask, std::int64_t size, Address result, int threads) {
            kernels->mask(at<const float>(x), at<const std::uint8_t>(mask), size, at<float>(result),
                          threads);
        },
        unlocked);
    module.def("layout", [](const Sizes& sizes) {
        std::pair<std::int64_t, std::int64_t> line_and_columns;
        kernels->layout(convolution(sizes), &line_and_columns.first, &line_and_columns.second);
        return line_and_columns;
    });
    module.def(
        "prepared",
        [](const Sizes& sizes, Address x, Address start, Address edges, Address shift, bool relu,
           Address y, int threads) {
            kernels->prepared(convolution(sizes), at<const float>(x),
                              {at<const std::int64_t>(start), at<const void>(edges),
                               at<const float>(shift), relu},
                              at<float>(y), threads);
        },
        unlocked);
}
