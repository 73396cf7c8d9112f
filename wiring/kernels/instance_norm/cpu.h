// Instance normalisation with an optional ReLU, and what the nodes of a graph do with it: ReLU and
// a 3x3 depthwise convolution. Images [N, pixels, channels].
#pragma once

#include <cstdint>

#include "native/isa.h"

namespace instance_norm {

struct Images {
    std::int64_t n, pixels, channels;  // pixels >= 1
    float eps;
    bool relu;
};

// A 3x3 window over an image of height x width pixels with a border of one 0.
struct Window {
    std::int64_t height, width, stride;
    std::int64_t rows() const { return (height - 1) / stride + 1; }
    std::int64_t columns() const { return (width - 1) / stride + 1; }
};

struct Kernels {
    // y like x; weight, bias [channels].
    void (*forward)(const float* x, const float* weight, const float* bias, const Images& images,
                    float* y, int threads);
    // grad, dx like x; dweight, dbias [channels].
    void (*gradients)(const float* grad, const float* x, const float* weight, const float* bias,
                      const Images& images, float* dx, float* dweight, float* dbias, int threads);
    // y [N, height', width', channels]: norm, ReLU, depthwise; filter [channels, 3, 3].
    void (*depthwise)(const float* x, const float* weight, const float* bias, const float* filter,
                      const Images& images, const Window& window, float* y, int threads);
    // grad like that y, its pixels `pitch` >= channels floats apart; dx like x; dfilter like filter.
    void (*depthwise_gradients)(const float* grad, std::int64_t pitch, const float* x, const float* weight,
                                const float* bias, const float* filter, const Images& images,
                                const Window& window, float* dx, float* dweight, float* dbias,
                                float* dfilter, int threads);
};

}  // namespace instance_norm

WIRING_DECLARE_KERNELS(instance_norm)
