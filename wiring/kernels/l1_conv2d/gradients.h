// Gradients of -Σ |w - x|, each output gathered whole by one thread: nothing is scattered.
#pragma once

#include "l1_conv2d/lanes.h"
#include "l1_conv2d/windows.h"
#include "native/parallel.h"
#include "native/transpose.h"

namespace WIRING_ISA {
namespace {

using l1_conv2d::panel_width;
using l1_conv2d::panels;

struct Clipped {
    static Floats of(Floats gap) { return fast_clamp(gap); }
};
struct Sign {
    static Floats of(Floats gap) { return sign(gap); }
};

// A panel is `gradient_vectors` vectors here; weights lie [panel][tap][D][16].
constexpr int gradient_vectors = panel_width / Floats::lanes;
constexpr int gradient_tile = Floats::lanes == 16 ? 8 : Floats::lanes == 8 ? 4 : 2;

// Input pixels whose rows and columns have the same remainder by the stride meet the same taps.
struct Phase {
    std::int64_t row, column, rows, columns, images;

    std::int64_t pixels() const { return images * rows * columns; }
};

struct InputGradientTask {
    const float *grad, *x, *packed, *none;
    bool masked;
    Layer layer;
    float* result;
};

template <int T, class Term, bool Masked>
inline void pull(const float* const (&grads)[T], const float* weight, const float* mask,
                 std::int64_t count, const Floats (&x)[T][gradient_vectors],
                 Floats (&sums)[T][gradient_vectors]) {
#pragma GCC unroll 1
    for (std::int64_t d = 0; d < count; ++d) {
        Floats w[gradient_vectors], m[gradient_vectors];
#pragma GCC unroll 16
        for (int j = 0; j < gradient_vectors; ++j) {
            w[j] = Floats::load(weight + d * panel_width + j * Floats::lanes);
            if (Masked) m[j] = Floats::load(mask + d * panel_width + j * Floats::lanes);
        }
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) {
            const Floats g = Floats::all(grads[t][d]);
#pragma GCC unroll 16
            for (int j = 0; j < gradient_vectors; ++j) {
                Floats term = Term::of(w[j] - x[t][j]);
                if (Masked) term = term & m[j];
                sums[t][j] = fma(g, term, sums[t][j]);
            }
        }
    }
}

template <int T, class Term, bool Masked>
void input_gradient_tile(const InputGradientTask& task, const Phase& phase, std::int64_t first,
                         std::int64_t panel) {
    const Layer& layer = task.layer;
    std::int64_t rows[T], columns[T], images[T];
    const std::int64_t left = phase.pixels() - first;
    const int filled = static_cast<int>(std::min<std::int64_t>(T, left));
    const int channels = static_cast<int>(
        std::min<std::int64_t>(panel_width, layer.sources - panel * panel_width));
    Floats x[T][gradient_vectors], sums[T][gradient_vectors];
    std::int64_t pixel[T];
    for (int t = 0; t < T; ++t) {
        const std::int64_t at = std::min(first + t, phase.pixels() - 1);
        columns[t] = at % phase.columns * layer.stride + phase.column;
        rows[t] = at / phase.columns % phase.rows * layer.stride + phase.row;
        images[t] = at / (phase.columns * phase.rows);
        pixel[t] = (images[t] * layer.height + rows[t]) * layer.width + columns[t];
        const float* from = task.x + pixel[t] * layer.sources + panel * panel_width;
        for (int j = 0; j < gradient_vectors; ++j) {
            const int some = std::min(Floats::lanes, std::max(0, channels - j * Floats::lanes));
            x[t][j] = some == Floats::lanes ? Floats::load(from + j * Floats::lanes)
                      : some > 0            ? Floats::load(from + j * Floats::lanes, some)
                                            : Floats::all(0.0f);
            sums[t][j] = Floats::all(0.0f);
        }
    }
    const std::int64_t count = layer.taps() * layer.destinations * panel_width;
    const float* weight = task.packed + panel * count;
    const float* mask = weight + panels(layer.sources) * count;
    const float* grads[T];
    for (std::int64_t i = 0; i < layer.kernel_height; ++i) {
        if ((phase.row + layer.padding - i) % layer.stride != 0) continue;
        for (std::int64_t j = 0; j < layer.kernel_width; ++j) {
            if ((phase.column + layer.padding - j) % layer.stride != 0) continue;
            bool any = false;
            for (int t = 0; t < T; ++t) {
                const std::int64_t y = rows[t] + layer.padding - i, u = columns[t] + layer.padding - j;
                const bool inside = y >= 0 && u >= 0 && y / layer.stride < layer.out_height &&
                                    u / layer.stride < layer.out_width;
                any |= inside;
                grads[t] = !inside ? task.none
                                   : task.grad + ((images[t] * layer.out_height + y / layer.stride) *
                                                      layer.out_width +
                                                  u / layer.stride) *
                                                     layer.destinations;
            }
            if (!any) continue;
            const std::int64_t at = (i * layer.kernel_width + j) * layer.destinations * panel_width;
            pull<T, Term, Masked>(grads, weight + at, mask + at, layer.destinations, x, sums);
        }
    }
    for (int t = 0; t < filled; ++t) {
        float* to = task.result + pixel[t] * layer.sources + panel * panel_width;
        for (int j = 0; j < gradient_vectors; ++j) {
            const int some = std::min(Floats::lanes, channels - j * Floats::lanes);
            if (some <= 0) break;
            if (some == Floats::lanes)
                sums[t][j].store(to + j * Floats::lanes);
            else
                sums[t][j].store(to + j * Floats::lanes, some);
        }
        // `fast_clamp` may lose a NaN.
        const float* from = task.x + (to - task.result);
        for (int lane = 0; lane < channels; ++lane)
            if (from[lane] != from[lane]) to[lane] = from[lane];
    }
}

template <class Term>
void input_gradient_as(const InputGradientTask& task, int threads) {
    const Layer& layer = task.layer;
    constexpr std::int64_t run = 64;
    for (std::int64_t row = 0; row < std::min(layer.stride, layer.height); ++row)
        for (std::int64_t column = 0; column < std::min(layer.stride, layer.width); ++column) {
            const Phase phase{row, column, (layer.height - row + layer.stride - 1) / layer.stride,
                              (layer.width - column + layer.stride - 1) / layer.stride,
                              layer.images};
            const std::int64_t runs = (phase.pixels() + run - 1) / run;
            parallel(runs * panels(layer.sources), threads,
                     [&](int, std::int64_t begin, std::int64_t end) {
                for (std::int64_t part = begin; part < end; ++part) {
                    const std::int64_t panel = part / runs, first = part % runs * run;
                    const std::int64_t last = std::min(first + run, phase.pixels());
                    for (std::int64_t at = first; at < last; at += gradient_tile) {
                        if (task.masked)
                            input_gradient_tile<gradient_tile, Term, true>(task, phase, at, panel);
                        else
                            input_gradient_tile<gradient_tile, Term, false>(task, phase, at, panel);
                    }
                }
            });
        }
}

void pack_sources(const float* weight, const std::uint8_t* live, const Layer& layer, float* packed,
                  int threads) {
    const std::int64_t taps = layer.taps(), step = layer.destinations * panel_width;
    const std::int64_t all = panels(layer.sources) * taps * step;
    parallel(panels(layer.sources), threads, [=](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t p = begin; p < end; ++p) {
            float* panel = packed + p * taps * step;
            const std::int64_t first = p * panel_width;
            const std::int64_t some = std::min<std::int64_t>(panel_width, layer.sources - first);
            if (some < panel_width) std::fill_n(panel, taps * step, 0.0f);
            for (std::int64_t d = 0; d < layer.destinations; ++d) {
                const std::int64_t from = (d * layer.sources + first) * taps;
                transpose<true>(weight + from, taps, some, taps, panel + d * panel_width, step);
                if (!live) continue;
                for (std::int64_t lane = 0; lane < panel_width; ++lane)
                    for (std::int64_t tap = 0; tap < taps; ++tap)
                        panel[all + tap * step + d * panel_width + lane] = as_float(
                            lane < some && live[from + lane * taps + tap] ? ~0u : 0u);
            }
        }
    });
}

void dense_input_gradient(const float* grad, const float* x, const float* weight,
                          const std::uint8_t* live, const Layer& layer, int mode, float* result,
                          int threads) {
    const std::int64_t size =
        panels(layer.sources) * layer.taps() * layer.destinations * panel_width;
    Scratch<float> packed(live ? 2 * size : size), none(layer.destinations);
    std::fill_n(none.data(), layer.destinations, 0.0f);
    pack_sources(weight, live, layer, packed.data(), threads);
    const InputGradientTask task{grad, x, packed.data(), none.data(), live != nullptr,
                                 layer, result};
    if (mode == l1_conv2d::sign)
        input_gradient_as<Sign>(task, threads);
    else
        input_gradient_as<Clipped>(task, threads);
}

}  // namespace
}  // namespace WIRING_ISA
