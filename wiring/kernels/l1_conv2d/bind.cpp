#include "l1_conv2d/cpu.h"
#include "native/bind.h"

namespace nb = nanobind;
using l1_conv2d::Layer;
using wiring::Address;
using wiring::at;

namespace {
wiring::Variants<l1_conv2d::Kernels> kernels(WIRING_LIST_KERNELS(l1_conv2d));
}

NB_MODULE(_cpu, module) {
    wiring::bind_variants(module, kernels);
    using Size = std::int64_t;
    const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
    nb::class_<Layer>(module, "Layer")
        .def("__init__",
             [](Layer* layer, Size images, Size height, Size width, Size sources,
                Size destinations, Size kernel_height, Size kernel_width, Size stride,
                Size padding) {
                 new (layer) Layer{images, height, width, sources, destinations, kernel_height,
                                   kernel_width, stride, padding,
                                   (height + 2 * padding - kernel_height) / stride + 1,
                                   (width + 2 * padding - kernel_width) / stride + 1};
             });
    module.def(
        "packed_floats",
        [](const Layer& layer, bool masked) {
            return l1_conv2d::packed_floats(layer, masked);
        });
    module.def(
        "pack",
        [](Address weight, Address live, const Layer& layer, Address packed, int threads) {
            kernels->pack(at<const float>(weight), at<const std::uint8_t>(live), layer,
                          at<float>(packed), threads);
        },
        unlocked);
    module.def(
        "prepared",
        [](Address x, Address packed, bool masked, const Layer& layer, Address y, int threads) {
            kernels->prepared(at<const float>(x), at<const float>(packed), masked, layer,
                              at<float>(y), threads);
        },
        unlocked);
    module.def(
        "forward",
        [](Address x, Address weight, Address live, Size most, const Layer& layer, Address y,
           int threads) {
            kernels->forward(at<const float>(x), at<const float>(weight),
                             at<const std::uint8_t>(live), most, layer, at<float>(y), threads);
        },
        unlocked);
    module.def(
        "input_gradient",
        [](Address grad, Address x, Address weight, Address live, Size most, const Layer& layer,
           int mode, Address result, int threads) {
            kernels->input_gradient(at<const float>(grad), at<const float>(x),
                                    at<const float>(weight), at<const std::uint8_t>(live), most,
                                    layer, mode, at<float>(result), threads);
        },
        unlocked);
    module.def(
        "sign_weight_gradient",
        [](Address grad, Address x, Address weight, Address learn, const Layer& layer,
           Address result, int threads) {
            kernels->sign_weight_gradient(at<const float>(grad), at<const float>(x),
                                          at<const float>(weight),
                                          at<const std::uint8_t>(learn), layer,
                                          at<float>(result), threads);
        },
        unlocked);
    module.def("packed_bytes", [](const Layer& layer, bool masked) {
        return l1_conv2d::packed_bytes(layer, masked);
    });
    module.def(
        "pack_bytes",
        [](Address weight, Address live, const Layer& layer, Address packed, int threads) {
            kernels->pack_bytes(at<const std::uint8_t>(weight), at<const std::uint8_t>(live),
                                layer, at<std::uint8_t>(packed), threads);
        },
        unlocked);
    module.def(
        "forward_bytes",
        [](Address x, Address packed, bool masked, std::uint8_t outside, const Layer& layer,
           Address y, int threads) {
            kernels->forward_bytes(at<const std::uint8_t>(x), at<const std::uint8_t>(packed),
                                   masked, outside, layer, at<std::int32_t>(y), threads);
        },
        unlocked);
}
