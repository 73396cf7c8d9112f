// Sums of |w - x| over windows of an image, and their gradients.
//
// Images are [n, height, width, channels]; a window reads zeros outside. Packed weights have the
// same layout on every instruction set: panels of 16 channels, [panel][tap][row][16].
#pragma once

#include <cstdint>

#include "native/isa.h"

namespace l1_conv2d {

constexpr int panel_width = 16;

struct Layer {
    std::int64_t images, height, width, sources;
    std::int64_t destinations, kernel_height, kernel_width, stride, padding;
    std::int64_t out_height, out_width;

    std::int64_t taps() const { return kernel_height * kernel_width; }
    std::int64_t depth() const { return taps() * sources; }
    std::int64_t pixels() const { return images * height * width; }
    std::int64_t outputs() const { return images * out_height * out_width; }
};

inline std::int64_t panels(std::int64_t channels) {
    return (channels + panel_width - 1) / panel_width;
}

inline std::int64_t packed_floats(const Layer& layer, bool masked) {
    return panels(layer.destinations) * panel_width *
           (masked ? 2 * layer.depth() : layer.depth() + 1);
}

// Bytes are taken 8 channels of x and of w at a time.
constexpr int byte_group = 8;

inline std::int64_t byte_groups(std::int64_t channels) {
    return (channels + byte_group - 1) / byte_group;
}

// A window is one segment a tap, or one segment in all where its channels are few.
struct Segments {
    bool copied;
    std::int64_t count, length;

    explicit Segments(const Layer& layer)
        : copied(layer.sources < byte_group && layer.taps() > 1),
          count(copied ? 1 : layer.taps()),
          length(copied ? layer.depth() : layer.sources) {}
    std::int64_t padded() const { return byte_groups(length) * byte_group; }
    std::int64_t groups() const { return count * byte_groups(length); }
};

// Whether windows slide over rows of pixels (sliding.h) instead: one instruction then takes 4 taps
// of 4 or 8 pixels. AMD's processors split it up into many.
inline bool slides(const Layer& layer, bool masked) {
#if defined(__x86_64__)
    static const bool quick = __builtin_cpu_is("intel");
#else
    constexpr bool quick = false;
#endif
    const std::int64_t width = layer.kernel_width;
    const bool full = width == 3 || width == 4 || (width >= 6 && width <= 8);
    return quick && !masked && layer.stride == 1 && full && layer.kernel_height <= 8 &&
           layer.sources >= byte_group;
}

// Runs of 4 taps in a row of a filter.
inline std::int64_t quads(const Layer& layer) { return (layer.kernel_width + 3) / 4; }

inline std::int64_t packed_bytes(const Layer& layer, bool masked) {
    const std::int64_t panels = byte_groups(layer.destinations);
    if (slides(layer, masked))
        return panels * layer.sources * layer.kernel_height * quads(layer) * 4 * byte_group;
    const std::int64_t size = panels * Segments(layer).groups() * byte_group * byte_group;
    return masked ? 2 * size : size;
}

enum Mode { clipped = 0, sign = 1 };

struct Kernels {
    // weight [D, S, kh, kw] → packed [panels(D)][taps][S][16], then the sums of each row's |D|
    // weights [panels(D)][16]. With `live` (bytes, the weight's layer) instead of the sums: the
    // masks as words of bits, in the layout of the weights.
    void (*pack)(const float* weight, const std::uint8_t* live, const Layer& layer, float* packed,
                 int threads);
    // y [outputs, D] = -Σ_live |w - x|; `masked` where pack was given `live`.
    void (*prepared)(const float* x, const float* packed, bool masked, const Layer& layer,
                     float* y, int threads);
    // The same from weights as they lie. `live` may be null for all; up to `most` live edges are
    // taken one by one.
    void (*forward)(const float* x, const float* weight, const std::uint8_t* live,
                    std::int64_t most, const Layer& layer, float* y, int threads);
    // result [pixels, S] = Σ_live grad · clamp(w - x, ±1), or · sign(w - x).
    void (*input_gradient)(const float* grad, const float* x, const float* weight,
                           const std::uint8_t* live, std::int64_t most, const Layer& layer,
                           int mode, float* result, int threads);
    // result [D, S, kh, kw] = Σ over pixels of grad · sign(x - w) where `learn`, else 0.
    void (*sign_weight_gradient)(const float* grad, const float* x, const float* weight,
                                 const std::uint8_t* learn, const Layer& layer, float* result,
                                 int threads);
    // weight bytes [D, S, kh, kw] → packed [⌈D/8⌉][groups][8 of D][8 of S], 0 behind S and D and
    // on dead edges; with `live`, the masks (255 or 0) in the same layout behind it. Where windows
    // slide: [⌈D/8⌉][S][kh][quads][8 of D][4 taps].
    void (*pack_bytes)(const std::uint8_t* weight, const std::uint8_t* live, const Layer& layer,
                       std::uint8_t* packed, int threads);
    // y [outputs, D] = -Σ_live |w - x|, where a pixel outside the image has value `outside`.
    void (*forward_bytes)(const std::uint8_t* x, const std::uint8_t* packed, bool masked,
                          std::uint8_t outside, const Layer& layer, std::int32_t* y, int threads);
};

}  // namespace l1_conv2d

WIRING_DECLARE_KERNELS(l1_conv2d)
