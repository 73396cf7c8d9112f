// -Σ |w - x| of unsigned bytes where filters move by one pixel: lanes over pixels of a row.
//
// An image becomes planes [S][rows][groups][16]: group g of a row holds pixels 8g .. 8g + 15, so
// that one load has all that 8 windows read, and the next row of a filter is one offset away.
// Taps come in fours; where a row of a filter is shorter, its last taps are 0 and add x itself,
// which is the same for all filters and is taken out of the sums.
#pragma once

#include "l1_conv2d/cpu.h"
#include "native/parallel.h"
#include "native/slides.h"

namespace WIRING_ISA {
namespace {

using l1_conv2d::byte_group;
using l1_conv2d::byte_groups;
using l1_conv2d::Layer;
using l1_conv2d::quads;

constexpr int group_bytes = 16;
constexpr int slide_lanes = Slide::groups * slide_pixels;
// Vectors of pixels, and filters of a panel of 8, whose sums stay in registers together.
constexpr int slide_tile = Slide::groups == 4 ? 3 : Slide::groups == 2 ? 2 : 1;
constexpr int slide_filters = Slide::groups == 4 ? 8 : 4;

void pack_sliding(const std::uint8_t* weight, const Layer& layer, std::uint8_t* packed,
                  int threads) {
    const std::int64_t taps = quads(layer) * 4;
    parallel(byte_groups(layer.destinations), threads,
             [=](int, std::int64_t begin, std::int64_t end) {
        std::uint8_t* to = packed + begin * layer.sources * layer.kernel_height * taps * byte_group;
        for (std::int64_t panel = begin; panel < end; ++panel)
            for (std::int64_t row = 0; row < layer.sources * layer.kernel_height; ++row)
                for (std::int64_t quad = 0; quad < taps; quad += 4)
                    for (std::int64_t lane = 0; lane < byte_group; ++lane)
                        for (std::int64_t tap = quad; tap < quad + 4; ++tap) {
                            const std::int64_t d = panel * byte_group + lane;
                            const bool here =
                                d < layer.destinations && tap < layer.kernel_width;
                            const std::int64_t filter = d * layer.sources * layer.taps();
                            *to++ = here ? weight[filter + row * layer.kernel_width + tap]
                                         : std::uint8_t{0};
                        }
    });
}

struct SlidingImages {
    const Layer& layer;
    std::int64_t rows, groups, plane, size;  // of one image; a plane and an image in bytes

    explicit SlidingImages(const Layer& layer)
        : layer(layer), rows(layer.height + 2 * layer.padding),
          groups((layer.out_width + slide_pixels - 1) / slide_pixels),
          plane(rows * groups * group_bytes),
          // The last vector of the last plane reads on.
          size(layer.sources * plane + Slide::groups * group_bytes) {}

    std::int64_t positions() const { return layer.out_height * groups; }

    // One row of all planes of an image. `border` and `zeros` are rows of S channels.
    void pack_row(const std::uint8_t* x, std::int64_t row, const std::uint8_t* border,
                  const std::uint8_t* zeros, std::uint8_t* planes) const {
        const std::int64_t y = row - layer.padding;
        const std::uint8_t* pixels[16];
        for (std::int64_t g = 0; g < groups; ++g) {
            for (int i = 0; i < 16; ++i) {
                const std::int64_t column = g * slide_pixels + i - layer.padding;
                const bool inside = y >= 0 && y < layer.height && column >= 0 && column < layer.width;
                pixels[i] = inside ? x + (y * layer.width + column) * layer.sources
                            : column < layer.width + layer.padding ? border
                                                                   : zeros;
            }
            std::uint8_t* to = planes + (row * groups + g) * group_bytes;
            for (std::int64_t s = 0; s < layer.sources; s += 16) {
                transpose_bytes(pixels, static_cast<int>(std::min<std::int64_t>(16, layer.sources - s)),
                                to + s * plane, plane);
                for (auto& pixel : pixels) pixel += 16;
            }
        }
    }

    // What the taps that are not there have added to the windows of one row: Σ of x behind them.
    void surplus_row(const std::uint8_t* x, std::int64_t row, std::uint8_t outside,
                     std::int32_t* surplus) const {
        const std::int64_t first = layer.kernel_width, last = quads(layer) * 4;
        std::fill_n(surplus, groups * slide_pixels, 0);
        if (first == last) return;
        for (std::int64_t i = 0; i < layer.kernel_height; ++i) {
            const std::int64_t y = row + i - layer.padding;
            for (std::int64_t u = first; u < layer.width + 2 * layer.padding; ++u) {
                const std::int64_t column = u - layer.padding;
                const bool inside = y >= 0 && y < layer.height && column >= 0 && column < layer.width;
                const std::int32_t sum =
                    inside ? sum_bytes(x + (y * layer.width + column) * layer.sources)
                           : static_cast<std::int32_t>(outside * layer.sources);
                for (std::int64_t tap = first; tap < last; ++tap)
                    if (u >= tap && u - tap < groups * slide_pixels) surplus[u - tap] += sum;
            }
        }
    }

    std::int32_t sum_bytes(const std::uint8_t* x) const {
        std::int32_t sum = 0;
        for (std::int64_t s = 0; s < layer.sources; ++s) sum += x[s];
        return sum;
    }
};

// sums[·][·] += one quad of taps: T vectors of pixels against F filters.
template <int Quad, int T, int F>
inline void slide_step(const std::uint8_t* x, const std::uint8_t* taps, SlideSums (&sums)[T][F]) {
    Slide pixels[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) pixels[t] = Slide::load(x + t * Slide::groups * group_bytes);
#pragma GCC unroll 8
    for (int f = 0; f < F; ++f) {
        std::int32_t w;
        std::memcpy(&w, taps + 4 * f, sizeof w);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) sums[t][f].template add<Quad>(pixels[t], w);
    }
}

// T vectors of pixels from `x` and F filters of a panel: sums [8][T * slide_lanes]. Filters have
// `Quads` quads a row.
template <int Quads, int T, int F>
inline void slide(const SlidingImages& images, const std::uint8_t* x, const std::uint8_t* weight,
                  std::int32_t* sums) {
    const Layer& layer = images.layer;
    const std::int64_t down = images.groups * group_bytes, steps = layer.kernel_height * Quads;
    const std::int64_t most = most_slides / steps;
    for (std::int64_t s = 0; s < layer.sources; s += most) {
        SlideSums part[T][F];
        const std::int64_t end = std::min(layer.sources, s + most);
        for (std::int64_t channel = s; channel < end; ++channel) {
            const std::uint8_t* from = x + channel * images.plane;
            const std::uint8_t* taps = weight + channel * steps * 4 * byte_group;
#pragma GCC unroll 1
            for (std::int64_t i = 0; i < layer.kernel_height; ++i, from += down) {
                slide_step<0>(from, taps, part);
                if constexpr (Quads == 2) slide_step<1>(from, taps + 4 * byte_group, part);
                taps += Quads * 4 * byte_group;
            }
        }
        for (int t = 0; t < T; ++t)
            for (int f = 0; f < F; ++f)
                part[t][f].add_to(sums + (f * T + t) * slide_lanes);
    }
}

template <int T>
void slide_tile_at(const SlidingImages& images, const std::uint8_t* planes,
                   const std::int32_t* surplus, const std::uint8_t* weight, std::int64_t first,
                   std::int64_t d, std::int32_t* y) {
    const Layer& layer = images.layer;
    alignas(64) std::int32_t sums[byte_group * T * slide_lanes];
    std::memset(sums, 0, sizeof sums);
    for (int f = 0; f < byte_group && d + f < layer.destinations; f += slide_filters) {
        const auto run = quads(layer) == 1 ? slide<1, T, slide_filters> : slide<2, T, slide_filters>;
        run(images, planes + first * group_bytes, weight + 4 * f, sums + f * T * slide_lanes);
    }
    const int some = static_cast<int>(std::min<std::int64_t>(byte_group, layer.destinations - d));
    for (std::int64_t g = 0; g < T * Slide::groups; ++g) {
        const std::int64_t position = first + g;
        if (position >= images.positions()) break;
        const std::int64_t row = position / images.groups;
        const std::int64_t column = position % images.groups * slide_pixels;
        subtract_transposed(
            surplus + position * slide_pixels, sums + g * slide_pixels, T * slide_lanes,
            static_cast<int>(std::min<std::int64_t>(slide_pixels, layer.out_width - column)), some,
            y + (row * layer.out_width + column) * layer.destinations + d, layer.destinations);
    }
}

void forward_sliding(const std::uint8_t* x, const std::uint8_t* packed, std::uint8_t outside,
                     const Layer& layer, std::int32_t* y, int threads) {
    const SlidingImages images(layer);
    // As many images at once as stay in a second-level cache, one for every thread at least.
    const std::int64_t wave = std::max<std::int64_t>(
        1, std::min(layer.images, std::max<std::int64_t>(threads, (1 << 20) / images.size)));
    const std::int64_t surplus_size = images.positions() * slide_pixels;
    Scratch<std::uint8_t> planes(static_cast<std::size_t>(wave * images.size));
    Scratch<std::int32_t> surplus(static_cast<std::size_t>(wave * surplus_size));
    Scratch<std::uint8_t> rows(static_cast<std::size_t>(2 * (layer.sources + 16)));
    std::uint8_t *border = rows.data(), *zeros = border + layer.sources + 16;
    std::fill_n(border, layer.sources + 16, outside);
    std::fill_n(zeros, layer.sources + 16, std::uint8_t{0});
    const std::int64_t panels = byte_groups(layer.destinations);
    const std::int64_t filter_bytes = layer.sources * layer.kernel_height * quads(layer) * 4 * byte_group;
    const std::int64_t vectors = (images.positions() + Slide::groups - 1) / Slide::groups;
    const std::int64_t tiles = (vectors + slide_tile - 1) / slide_tile;
    const std::int64_t image = layer.height * layer.width * layer.sources;
    for (std::int64_t first = 0; first < layer.images; first += wave) {
        const std::int64_t count = std::min(wave, layer.images - first);
        parallel(count * images.rows, threads, [&](int, std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) {
                const std::int64_t n = i / images.rows, row = i % images.rows;
                const std::uint8_t* from = x + (first + n) * image;
                std::uint8_t* to = planes.data() + n * images.size;
                images.pack_row(from, row, border, zeros, to);
                if (row < layer.out_height)
                    images.surplus_row(from, row, outside,
                                       surplus.data() + n * surplus_size +
                                           row * images.groups * slide_pixels);
                if (row == 0)
                    std::fill_n(to + layer.sources * images.plane, Slide::groups * group_bytes,
                                std::uint8_t{0});
            }
        });
        parallel(count * panels * tiles, threads, [&](int, std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) {
                const std::int64_t n = i / (panels * tiles), panel = i / tiles % panels;
                const std::int64_t vector = i % tiles * slide_tile;
                const auto tile = [&](auto run) {
                    run(images, planes.data() + n * images.size, surplus.data() + n * surplus_size,
                        packed + panel * filter_bytes, vector * Slide::groups, panel * byte_group,
                        y + (first + n) * layer.out_height * layer.out_width * layer.destinations);
                };
                switch (std::min<std::int64_t>(slide_tile, vectors - vector)) {
                    case 1: tile(slide_tile_at<1>); break;
                    case 2: tile(slide_tile_at<2>); break;
                    default: tile(slide_tile_at<3>);
                }
            }
        });
    }
}

}  // namespace
}  // namespace WIRING_ISA
