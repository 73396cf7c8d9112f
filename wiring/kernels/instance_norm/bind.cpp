#include "instance_norm/cpu.h"
#include "native/bind.h"

namespace nb = nanobind;
using wiring::Address;
using wiring::at;

namespace {
wiring::Variants<instance_norm::Kernels> kernels(WIRING_LIST_KERNELS(instance_norm));
}

NB_MODULE(_cpu, module) {
    wiring::bind_variants(module, kernels);
    module.def(
        "forward",
        [](Address x, Address weight, Address bias, std::int64_t n, std::int64_t pixels,
           std::int64_t channels, float eps, bool relu, Address y, int threads) {
            kernels->forward(at<const float>(x), at<const float>(weight), at<const float>(bias),
                             {n, pixels, channels, eps, relu}, at<float>(y), threads);
        },
        nb::call_guard<nb::gil_scoped_release>());
    module.def(
        "gradients",
        [](Address grad, Address x, Address weight, Address bias, std::int64_t n,
           std::int64_t pixels, std::int64_t channels, float eps, bool relu, Address dx,
           Address dweight, Address dbias, int threads) {
            kernels->gradients(at<const float>(grad), at<const float>(x), at<const float>(weight),
                               at<const float>(bias), {n, pixels, channels, eps, relu},
                               at<float>(dx), at<float>(dweight), at<float>(dbias), threads);
        },
        nb::call_guard<nb::gil_scoped_release>());
    module.def(
        "depthwise",
        [](Address x, Address weight, Address bias, Address filter, std::int64_t n,
           std::int64_t height, std::int64_t width, std::int64_t channels, std::int64_t stride,
           float eps, Address y, int threads) {
            kernels->depthwise(at<const float>(x), at<const float>(weight), at<const float>(bias),
                               at<const float>(filter), {n, height * width, channels, eps, true},
                               {height, width, stride}, at<float>(y), threads);
        },
        nb::call_guard<nb::gil_scoped_release>());
    module.def(
        "depthwise_gradients",
        [](Address grad, std::int64_t pitch, Address x, Address weight, Address bias,
           Address filter, std::int64_t n, std::int64_t height, std::int64_t width, std::int64_t channels, std::int64_t stride,
           float eps, Address dx, Address dweight, Address dbias, Address dfilter, int threads) {
            kernels->depthwise_gradients(
                at<const float>(grad), pitch, at<const float>(x), at<const float>(weight),
                at<const float>(bias), at<const float>(filter),
                {n, height * width, channels, eps, true}, {height, width, stride}, at<float>(dx),
                at<float>(dweight), at<float>(dbias), at<float>(dfilter), threads);
        },
        nb::call_guard<nb::gil_scoped_release>());
}
