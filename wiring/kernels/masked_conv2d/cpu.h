// Convolution and its gradients over live edges alone.
#pragma once

#include <cstdint>

#include "native/isa.h"

namespace masked_conv2d {

// x [images, sources, height, width], weights and masks [destinations, sources, kernel_h,
// kernel_w]. `x_last`, `y_last`: channels come last in memory, for x and for y (or its gradient).
struct Convolution {
    std::int64_t images, sources, height, width, destinations, kernel_h, kernel_w, stride, padding;
    bool x_last, y_last;
};

// Edges of one row follow one another from start[row] to start[row + 1].
struct Row {
    const std::int64_t* start;
    const void* edges;  // pairs of int32 offset, float32 weight
    const float* shift;  // [destinations] or null
    bool relu;
};

struct Kernels {
    // The first three do nothing and return false where the mask has more than `most` edges.
    bool (*forward)(const Convolution&, const float* x, const float* weight,
                    const std::uint8_t* live, float* y, std::int64_t most, int threads);
    bool (*input_gradient)(const Convolution&, const float* grad, const float* weight,
                           const std::uint8_t* live, float* dx, std::int64_t most, int threads);
    bool (*weight_gradient)(const Convolution&, const float* grad, const float* x,
                            const std::uint8_t* learn, float* dw, std::int64_t most, int threads);
    // result[i] = mask[i] ? x[i] : 0
    void (*mask)(const float* x, const std::uint8_t* mask, std::int64_t size, float* result,
                 int threads);
    // What offsets of prepared edges are made of: floats per plane, and per row of a plane.
    void (*layout)(const Convolution&, std::int64_t* line, std::int64_t* columns);
    void (*prepared)(const Convolution&, const float* x, const Row&, float* y, int threads);
};

}  // namespace masked_conv2d

WIRING_DECLARE_KERNELS(masked_conv2d)
