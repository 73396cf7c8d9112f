// Convolutions of packed bits: xor (or and) and popcount over channels-last words.
//
// Weights come in panels [⌈d/16⌉][kh·kw·words][16]: the same word of 16 destinations side by
// side, one 64-bit lane each, zeros behind the last destination.
#pragma once

#include <cstdint>

#include "native/isa.h"

namespace xnor_conv2d {

constexpr std::int64_t panel = 16;

// x [n, h, w, words]; weight [d, kh, kw, words]; y [n, oh, ow, d].
struct Shape {
    std::int64_t n, h, w, words, channels, d, kh, kw, stride, padding, oh, ow;

    std::int64_t taps() const { return kh * kw; }
    std::int64_t panels() const { return (d + panel - 1) / panel; }
};

// Packed weights of one layer: live panels and their bits at every tap, [taps, panels·16], or
// null where every edge lives.
struct Weights {
    const std::uint64_t* sign;
    const std::uint64_t* live;
    const std::int32_t* live_bits;
    const float* alpha;
};

// Floats [n, h, w, c], or [n, c, h, w] where `planes`.
struct Image {
    const float* data;
    bool planes;
};

// Float weights [d, k] and a byte of 0 or 1 for each, 1 where it lives.
struct Rows {
    const float* weight;
    const std::uint8_t* live;
    std::int64_t d, k;
};

enum class Gradient { exact, paper, repo };

struct Kernels {
    // alpha [d]: mean |weight| over the live ones of a row, 0 where none lives.
    void (*row_scales)(Rows rows, float* alpha, int threads);
    // filters [d, k]: alpha · sign(weight), 0 where dead.
    void (*binary_filters)(Rows rows, const float* alpha, float* filters, int threads);
    // result [d, k]: the gradient of the weights from `grad` of the filters, 0 unless learnt.
    void (*binary_gradient)(Rows rows, const float* alpha, const float* grad,
                            const std::uint8_t* learn, Gradient mode, std::int64_t sources,
                            float* result, int threads);
    // words [d, k] → panels.
    void (*panels)(const std::uint64_t* words, std::int64_t d, std::int64_t k,
                   std::uint64_t* panels);
    // live words [d, taps, words] → bits [taps, panels·16]; whether every edge lives.
    bool (*live_bits)(const std::uint64_t* live, Shape shape, std::int32_t* bits);
    // y = alpha · Σ live signs over the taps inside the image, · scale [n, oh, ow] if not null.
    void (*xnor)(const std::uint64_t* x, Weights weights, const float* scale, float* y,
                 Shape shape, int threads);
    void (*xnor_floats)(Image x, Weights weights, const float* scale, float* y, Shape shape,
                        int threads);
    // y = alpha · Σ sign(w) x, from panels; null where nothing here is faster than products.
    void (*signed_sums)(Image x, const std::uint64_t* panels, const float* alpha, float* y,
                        Shape shape, int threads);
    // y = Σ 2^(i+j) popcount(x_i & w_j); x [x_bits] images of words, w [w_bits] sets of panels.
    void (*planes)(const std::uint64_t* x, int x_bits, const std::uint64_t* panels, int w_bits,
                   std::int32_t* y, Shape shape, int threads);
};

}  // namespace xnor_conv2d

WIRING_DECLARE_KERNELS(xnor_conv2d)
