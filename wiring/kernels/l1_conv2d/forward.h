// -Σ |w - x| by direct convolution: lanes over output channels, x broadcast.
//
// |x - w| = 2 max(x, w) - x - w, and Σ x and Σ w do not depend on the pair: two instructions a term
// instead of three. Like a dot product's, the error goes with Σ|x| + Σ|w|; sums of 128 terms are
// added up apart. Up to 6 roundings of that were seen, 2 where every difference is taken: where
// x and w lie far from 0 and close together, that is what remains. Infinite values give NaN.
#pragma once

#include "l1_conv2d/lanes.h"
#include "l1_conv2d/windows.h"
#include "native/parallel.h"
#include "native/transpose.h"

namespace WIRING_ISA {
namespace {

using l1_conv2d::panel_width;
using l1_conv2d::panels;

constexpr int vectors = panel_width / Floats::lanes;  // of one panel
constexpr std::int64_t block = 128;
// Below this many channels the taps of a window are copied together.
constexpr std::int64_t few_channels = 16;

#if defined(WIRING_ISA_avx512) || defined(WIRING_ISA_avx512popcnt)
constexpr int most_panels = 4;
constexpr int tile_of(int count) { return count == 4 ? 6 : count == 3 ? 8 : 12; }
#elif defined(WIRING_ISA_neon)
constexpr int most_panels = 1;
constexpr int tile_of(int) { return 4; }
#else
constexpr int most_panels = 1;
constexpr int tile_of(int) { return vectors == 2 ? 6 : 2; }
#endif

// One panel of weights [depth][16], d the first of its rows; lanes behind the last row stay as
// they are.
void pack_panel(const float* weight, const Layer& layer, std::int64_t d, float* to) {
    const std::int64_t depth = layer.depth(), taps = layer.taps();
    const std::int64_t rows = std::min<std::int64_t>(panel_width, layer.destinations - d);
    const float* from = weight + d * depth;
    if (taps == 1) return transpose<true>(from, depth, rows, depth, to, panel_width);
    for (std::int64_t s = 0; s < layer.sources; ++s)
        transpose<true>(from + s * taps, depth, rows, taps, to + s * panel_width,
                  layer.sources * panel_width);
}

// The masks of the same panel: all bits but the sign's where an edge lives, so that they make |x|.
void pack_masks(const std::uint8_t* live, const Layer& layer, std::int64_t d, float* to) {
    const std::int64_t rows = std::min<std::int64_t>(panel_width, layer.destinations - d);
    for (std::int64_t lane = 0; lane < rows; ++lane)
        for (std::int64_t s = 0; s < layer.sources; ++s)
            for (std::int64_t tap = 0; tap < layer.taps(); ++tap) {
                const bool lives = live[((d + lane) * layer.sources + s) * layer.taps() + tap];
                to[(tap * layer.sources + s) * panel_width + lane] =
                    as_float(lives ? 0x7fffffffu : 0u);
            }
}

void pack_weights(const float* weight, const std::uint8_t* live, const Layer& layer, float* packed,
                  int threads) {
    const std::int64_t size = layer.depth() * panel_width;
    const std::int64_t all = panels(layer.destinations) * size;
    parallel(panels(layer.destinations), threads, [=](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t p = begin; p < end; ++p) {
            float* to = packed + p * size;
            const std::int64_t d = p * panel_width;
            if (d + panel_width > layer.destinations) {
                std::fill_n(to, size, 0.0f);
                if (live) std::fill_n(to + all, size, 0.0f);
            }
            pack_panel(weight, layer, d, to);
            if (live) {
                pack_masks(live, layer, d, to + all);
                continue;
            }
            double sums[panel_width] = {};
            for (std::int64_t k = 0; k < layer.depth(); ++k)
                for (int lane = 0; lane < panel_width; ++lane)
                    sums[lane] += to[k * panel_width + lane];
            for (int lane = 0; lane < panel_width; ++lane)
                packed[all + d + lane] = static_cast<float>(sums[lane]);
        }
    });
}

// totals[t][·] += Σ over `count` channels of max(w, x), or of |x - w| where it is live.
template <int T, int P, bool Masked>
inline void accumulate(const float* const (&rows)[T], const float* weight, const float* mask,
                       std::int64_t panel_stride, std::int64_t count, Floats* totals) {
    constexpr int columns = P * vectors;
    Floats sums[T][columns];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 16
        for (int j = 0; j < columns; ++j) sums[t][j] = Floats::all(0.0f);
#pragma GCC unroll 1
    for (std::int64_t s = 0; s < count; ++s) {
        Floats w[columns], m[columns];
#pragma GCC unroll 16
        for (int j = 0; j < columns; ++j) {
            const std::int64_t at =
                (j / vectors) * panel_stride + s * panel_width + (j % vectors) * Floats::lanes;
            w[j] = Floats::load(weight + at);
            if (Masked) m[j] = Floats::load(mask + at);
        }
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) {
            const Floats x = Floats::all(rows[t][s]);
#pragma GCC unroll 16
            for (int j = 0; j < columns; ++j)
                // max gives its second operand, x, where they do not compare.
                sums[t][j] = sums[t][j] + (Masked ? (x - w[j]) & m[j] : max(w[j], x));
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 16
        for (int j = 0; j < columns; ++j)
            totals[t * columns + j] = totals[t * columns + j] + sums[t][j];
}

struct ForwardTask {
    const float *x, *packed, *pixel_sums, *outside;
    Layer layer;
    float* y;
    bool copied;
};

// One tile: T output pixels from `first`, P panels from `panel`.
template <int T, int P, bool Masked>
void forward_tile(const ForwardTask& task, std::int64_t first, std::int64_t panel, float* copies) {
    constexpr int columns = P * vectors;
    const Layer& layer = task.layer;
    const std::int64_t depth = layer.depth(), panel_stride = depth * panel_width;
    const float* weight = task.packed + panel * panel_stride;
    const float* mask = weight + panels(layer.destinations) * panel_stride;
    const Windows<T, float> windows(task.x, task.outside, layer.sources, layer, first,
                                    layer.outputs());
    Floats totals[T * columns];
    for (auto& total : totals) total = Floats::all(0.0f);
    const float* rows[T];
    auto sum_row = [&](std::int64_t offset, std::int64_t length) {
        for (std::int64_t s = 0; s < length; s += block) {
            const std::int64_t at = (offset + s) * panel_width;
            accumulate<T, P, Masked>(rows, weight + at, mask + at, panel_stride,
                                     std::min(block, length - s), totals);
            for (auto& row : rows) row += block;
        }
    };
    if (task.copied) {
        copy_windows<T, float>(windows, layer, layer.sources, copies, depth);
        for (int t = 0; t < T; ++t) rows[t] = copies + t * depth;
        sum_row(0, depth);
    } else {
        std::int64_t tap = 0;
        for (std::int64_t i = 0; i < layer.kernel_height; ++i)
            for (std::int64_t j = 0; j < layer.kernel_width; ++j, ++tap) {
                for (int t = 0; t < T; ++t) rows[t] = windows.row(t, i, j);
                sum_row(tap * layer.sources, layer.sources);
            }
    }
    const float* weight_sums = task.packed + panels(layer.destinations) * panel_stride;
    for (int t = 0; t < T && first + t < layer.outputs(); ++t) {
        float of_x = 0.0f;
        if (!Masked) {
            const std::int64_t image =
                (first + t) / (layer.out_height * layer.out_width) * layer.height * layer.width;
            for (std::int64_t i = 0; i < layer.kernel_height; ++i)
                for (std::int64_t j = 0; j < layer.kernel_width; ++j) {
                    const std::int64_t pixel = windows.pixel(t, i, j);
                    if (pixel >= 0) of_x += task.pixel_sums[image + pixel];
                }
        }
        for (int j = 0; j < columns; ++j) {
            const std::int64_t d = panel * panel_width + j * Floats::lanes;
            if (d >= layer.destinations) break;
            Floats value = Floats::all(0.0f) - totals[t * columns + j];
            if (!Masked)
                value = Floats::all(of_x) + Floats::load(weight_sums + d) + value + value;
            float* to = task.y + (first + t) * layer.destinations + d;
            if (d + Floats::lanes <= layer.destinations)
                value.store(to);
            else
                value.store(to, static_cast<int>(layer.destinations - d));
        }
    }
}

template <int P, bool Masked>
void forward_group(const ForwardTask& task, std::int64_t panel, std::int64_t begin,
                   std::int64_t end, float* copies) {
    for (std::int64_t first = begin; first < end; first += tile_of(P))
        forward_tile<tile_of(P), P, Masked>(task, first, panel, copies);
}

template <bool Masked>
void forward_panels(const ForwardTask& task, int count, std::int64_t panel, std::int64_t begin,
                    std::int64_t end, float* copies) {
    if constexpr (most_panels >= 4) {
        if (count == 4) return forward_group<4, Masked>(task, panel, begin, end, copies);
        if (count == 3) return forward_group<3, Masked>(task, panel, begin, end, copies);
        if (count == 2) return forward_group<2, Masked>(task, panel, begin, end, copies);
    }
    forward_group<1, Masked>(task, panel, begin, end, copies);
}

void dense_forward(const float* x, const float* packed, bool masked, const Layer& layer, float* y,
             int threads) {
    const std::int64_t pixels = masked ? 0 : layer.pixels();
    Scratch<float> sums(pixels), outside(layer.sources);
    std::fill_n(outside.data(), layer.sources, 0.0f);
    parallel(pixels, threads, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t p = begin; p < end; ++p) {
            const float* row = x + p * layer.sources;
            Floats sum = Floats::all(0.0f);
            std::int64_t s = 0;
            for (; s + Floats::lanes <= layer.sources; s += Floats::lanes)
                sum = sum + Floats::load(row + s);
            if (s < layer.sources)
                sum = sum + Floats::load(row + s, static_cast<int>(layer.sources - s));
            sums[p] = sum.sum();
        }
    });
    const bool copied = layer.sources < few_channels && layer.taps() > 1;
    const ForwardTask task{x, packed, sums.data(), outside.data(), layer, y, copied};
    // A part is up to `most_panels` panels and a run of pixels; threads share the parts.
    constexpr std::int64_t run = 96;  // a multiple of every tile
    const std::int64_t groups = (panels(layer.destinations) + most_panels - 1) / most_panels;
    const std::int64_t runs = (layer.outputs() + run - 1) / run;
    const std::int64_t copy = copied ? 12 * layer.depth() : 0;
    Scratch<float> copies(copy * std::max(1, threads));
    parallel(groups * runs, threads, [&](int thread, std::int64_t begin, std::int64_t end) {
        for (std::int64_t part = begin; part < end; ++part) {
            const std::int64_t panel = part / runs * most_panels, first = part % runs * run;
            const int count = static_cast<int>(
                std::min<std::int64_t>(most_panels, panels(layer.destinations) - panel));
            const std::int64_t last = std::min(first + run, layer.outputs());
            float* mine = copies.data() + thread * copy;
            if (masked)
                forward_panels<true>(task, count, panel, first, last, mine);
            else
                forward_panels<false>(task, count, panel, first, last, mine);
        }
    });
}

}  // namespace
}  // namespace WIRING_ISA
