// -Σ |w - x| of unsigned bytes, exact: lanes over output channels, 8 channels of x in each.
//
// Rows are padded with zeros on both sides to whole groups of 8, which adds |0 - 0|.
#pragma once

#include "l1_conv2d/windows.h"
#include "native/bytes.h"
#include "native/parallel.h"

namespace WIRING_ISA {
namespace {

using l1_conv2d::byte_group;
using l1_conv2d::byte_groups;
using l1_conv2d::Segments;

constexpr int byte_vectors = byte_group / Bytes::groups;  // of a panel of 8 output channels
constexpr int byte_panel = byte_group * byte_group;

#if defined(WIRING_ISA_avx512) || defined(WIRING_ISA_avx512popcnt)
constexpr int most_byte_panels = 4;
constexpr int byte_tile = 4;
#elif defined(WIRING_ISA_avx2) || defined(WIRING_ISA_neon)
constexpr int most_byte_panels = 1;
constexpr int byte_tile = 4;
#else
constexpr int most_byte_panels = 1;
constexpr int byte_tile = 1;
#endif

void pack_grouped(const std::uint8_t* weight, const std::uint8_t* live, const Layer& layer,
                std::uint8_t* packed, int threads) {
    const Segments segments(layer);
    const std::int64_t taps = layer.taps(), groups = segments.groups();
    const std::int64_t size = byte_groups(layer.destinations) * groups * byte_panel;
    std::fill_n(packed, live ? 2 * size : size, std::uint8_t{0});
    parallel(layer.destinations, threads, [=](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t d = begin; d < end; ++d) {
            std::uint8_t* row =
                packed + d / byte_group * groups * byte_panel + d % byte_group * byte_group;
            for (std::int64_t s = 0; s < layer.sources; ++s)
                for (std::int64_t tap = 0; tap < taps; ++tap) {
                    const std::int64_t place = tap * layer.sources + s;
                    const std::int64_t k = place / segments.length * segments.padded() +
                                           place % segments.length;
                    const std::int64_t at = k / byte_group * byte_panel + k % byte_group;
                    const std::int64_t from = (d * layer.sources + s) * taps + tap;
                    if (live && !live[from]) continue;
                    row[at] = weight[from];
                    if (live) row[size + at] = 255;
                }
        }
    });
}

struct ByteTask {
    const std::uint8_t *x, *packed, *outside;
    std::int64_t channels;  // of x, as it lies in memory
    Layer layer;
    Segments segments;
    std::int32_t* y;
};

// totals[t][·] += distances of row t to the filters of P panels, over `groups` groups of 8.
template <int T, int P, bool Masked>
inline void add_distances(const std::uint8_t* const (&rows)[T], const std::uint8_t* weight,
                          const std::uint8_t* mask, std::int64_t panel_stride, std::int64_t groups,
                          ByteSums (&totals)[T][P * byte_vectors]) {
    constexpr int columns = P * byte_vectors;
    for (std::int64_t first = 0; first < groups; first += most_distances) {
        ByteSums sums[T][columns];
        const std::int64_t end = std::min<std::int64_t>(groups, first + most_distances);
#pragma GCC unroll 1
        for (std::int64_t g = first; g < end; ++g) {
            Bytes w[columns], m[columns];
#pragma GCC unroll 16
            for (int j = 0; j < columns; ++j) {
                const std::int64_t at = (j / byte_vectors) * panel_stride + g * byte_panel +
                                        (j % byte_vectors) * Bytes::groups * byte_group;
                w[j] = Bytes::load(weight + at);
                if (Masked) m[j] = Bytes::load(mask + at);
            }
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t) {
                const Bytes x = Bytes::repeat(rows[t] + g * byte_group);
#pragma GCC unroll 16
                for (int j = 0; j < columns; ++j)
                    sums[t][j].add_distance(Masked ? x & m[j] : x, w[j]);
            }
        }
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t)
#pragma GCC unroll 16
            for (int j = 0; j < columns; ++j) totals[t][j].add(sums[t][j]);
    }
}

template <int T, int P, bool Masked>
void byte_tile_at(const ByteTask& task, std::int64_t first, std::int64_t panel,
                  std::uint8_t* copies) {
    constexpr int columns = P * byte_vectors;
    const Layer& layer = task.layer;
    const std::int64_t stride = task.segments.groups() * byte_panel;
    const std::uint8_t* weight = task.packed + panel * stride;
    const std::uint8_t* mask = weight + byte_groups(layer.destinations) * stride;
    const Windows<T, std::uint8_t> windows(task.x, task.outside, task.channels, layer, first,
                                           layer.outputs());
    const std::uint8_t* rows[T];
    ByteSums sums[T][columns];
    if (task.segments.copied) {
        const std::int64_t length = task.segments.padded();
        copy_windows<T, std::uint8_t>(windows, layer, layer.sources, copies, length);
        for (int t = 0; t < T; ++t) rows[t] = copies + t * length;
        add_distances<T, P, Masked>(rows, weight, mask, stride, length / byte_group, sums);
    } else {
        const std::int64_t groups = byte_groups(layer.sources);
        for (std::int64_t i = 0; i < layer.kernel_height; ++i)
            for (std::int64_t j = 0; j < layer.kernel_width; ++j) {
                for (int t = 0; t < T; ++t) rows[t] = windows.row(t, i, j);
                const std::int64_t at = (i * layer.kernel_width + j) * groups * byte_panel;
                add_distances<T, P, Masked>(rows, weight + at, mask + at, stride, groups, sums);
            }
    }
    std::int32_t values[P * byte_group];
    for (int t = 0; t < T && first + t < layer.outputs(); ++t) {
        for (int j = 0; j < columns; ++j) sums[t][j].store(values + j * Bytes::groups);
        const std::int64_t d = panel * byte_group;
        const std::int64_t some = std::min<std::int64_t>(P * byte_group, layer.destinations - d);
        std::int32_t* to = task.y + (first + t) * layer.destinations + d;
        for (std::int64_t i = 0; i < some; ++i) to[i] = -values[i];
    }
}

template <int P, bool Masked>
void byte_run(const ByteTask& task, std::int64_t panel, std::int64_t begin, std::int64_t end,
              std::uint8_t* copies) {
    for (std::int64_t first = begin; first < end; first += byte_tile)
        byte_tile_at<byte_tile, P, Masked>(task, first, panel, copies);
}

template <bool Masked>
void byte_panels(const ByteTask& task, int count, std::int64_t panel, std::int64_t begin,
                 std::int64_t end, std::uint8_t* copies) {
    if constexpr (most_byte_panels >= 4) {
        if (count == 4) return byte_run<4, Masked>(task, panel, begin, end, copies);
        if (count == 3) return byte_run<3, Masked>(task, panel, begin, end, copies);
        if (count == 2) return byte_run<2, Masked>(task, panel, begin, end, copies);
    }
    byte_run<1, Masked>(task, panel, begin, end, copies);
}

void forward_grouped(const std::uint8_t* x, const std::uint8_t* packed, bool masked,
                   std::uint8_t outside, const Layer& layer, std::int32_t* y, int threads) {
    const Segments segments(layer);
    const bool padded = !segments.copied && layer.sources % byte_group != 0;
    const std::int64_t channels = padded ? segments.padded() : layer.sources;
    Scratch<std::uint8_t> image(padded ? layer.pixels() * channels : 0), border(channels);
    std::fill_n(border.data(), channels, std::uint8_t{0});
    std::fill_n(border.data(), layer.sources, outside);
    if (padded)
        parallel(layer.pixels(), threads, [&](int, std::int64_t begin, std::int64_t end) {
            for (std::int64_t p = begin; p < end; ++p) {
                std::uint8_t* to = image.data() + p * channels;
                std::fill_n(to, channels, std::uint8_t{0});
                std::copy_n(x + p * layer.sources, layer.sources, to);
            }
        });
    const ByteTask task{padded ? image.data() : x, packed, border.data(), channels, layer,
                        segments, y};
    const std::int64_t copy = segments.copied ? byte_tile * segments.padded() : 0;
    Scratch<std::uint8_t> copies(copy * std::max(1, threads));
    std::fill_n(copies.data(), copy * std::max(1, threads), std::uint8_t{0});
    constexpr std::int64_t run = 96;
    const std::int64_t all = byte_groups(layer.destinations);
    const std::int64_t parts = (all + most_byte_panels - 1) / most_byte_panels;
    const std::int64_t runs = (layer.outputs() + run - 1) / run;
    parallel(parts * runs, threads, [&](int thread, std::int64_t begin, std::int64_t end) {
        for (std::int64_t part = begin; part < end; ++part) {
            const std::int64_t panel = part / runs * most_byte_panels, first = part % runs * run;
            const int count =
                static_cast<int>(std::min<std::int64_t>(most_byte_panels, all - panel));
            const std::int64_t last = std::min(first + run, layer.outputs());
            std::uint8_t* mine = copies.data() + thread * copy;
            if (masked)
                byte_panels<true>(task, count, panel, first, last, mine);
            else
                byte_panels<false>(task, count, panel, first, last, mine);
        }
    });
}

}  // namespace
}  // namespace WIRING_ISA
