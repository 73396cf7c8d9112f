// Images as planes, in which every tap of a filter is one address offset.
//
// An image [H, W] gets a border of zeros and falls apart into step*step phases: phase (a, b) holds
// the pixels (a + step*r, b + step*c). Tap (i, j) of a filter moved by `step` reads, at position
// (r, c), phase (i % step, j % step) at (r + i / step, c + j / step). With q = r * columns + c
// that is one constant: (i / step) * columns + j / step. Rows share borders: the zeros before a
// row are those behind the row above; images share them likewise. Positions q of all images follow
// one another, and a panel is a range of them, all channels: [channels, phases, block + halo].
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "native/floats.h"
#include "native/transpose.h"

namespace WIRING_ISA {

using Index = std::int64_t;

inline Index ceil_div(Index a, Index b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }
inline Index floor_div(Index a, Index b) { return -ceil_div(-a, b); }

// A batch of images in memory: [N, H, W, C] where `last`, else [N, C, H, W].
struct Shape {
    Index images, channels, height, width;
    bool last;

    Index pixels() const { return height * width; }
    Index size() const { return images * channels * pixels(); }
    Index pixel_step() const { return last ? channels : 1; }
    Index channel_step() const { return last ? 1 : pixels(); }
    // Of pixel (h, w) of image n, channel 0.
    Index at(Index n, Index h, Index w) const {
        return n * channels * pixels() + (h * width + w) * pixel_step();
    }
    // A pointwise operation sees a row of pixels where channels come last.
    Shape row() const { return last ? Shape{1, channels, 1, images * pixels(), true} : *this; }
};

struct Rect {
    Index top, bottom, left, right;
};

// Positions q = (n * rows + r) * columns + c.
struct Grid {
    Index images, rows, columns;

    Index size() const { return images * rows * columns; }

    // Calls f(n, r, c, q, length) for the runs of positions of `rect` in [from, to), by image.
    // With `merge`, a run goes on over rows: for a rect as wide as the grid.
    template <class F>
    void runs(const Rect& rect, bool merge, Index from, Index to, F&& f) const {
        if (rect.left >= rect.right) return;
        const Index pitch = rows * columns;
        const Index height = merge ? rect.bottom - rect.top : 1;
        for (Index n = std::max<Index>(0, from / pitch); n < images && n * pitch < to; ++n) {
            const Index seen = std::max<Index>(0, from - n * pitch) / columns;
            const Index first = merge ? rect.top : std::max(rect.top, seen);
            for (Index r = first; r < rect.bottom; r += height) {
                const Index q = n * pitch + r * columns + rect.left;
                if (q >= to) break;
                const Index begin = std::max(q, from);
                const Index end = std::min(q + (height - 1) * columns + rect.right - rect.left, to);
                if (begin >= end) continue;
                const Index skip = begin - q;
                f(n, r + (merge ? skip / columns : 0), rect.left + (merge ? skip % columns : skip),
                  begin, end - begin);
            }
        }
    }
};

// How many bytes of planes one core works on at a time: part of its second-level cache.
constexpr Index panel_bytes = Index{1} << 19;
// Vectors of positions whose sums stay in registers.
constexpr Index tile_vectors = 5;

class Planes {
  public:
    Shape shape;
    Index step, top, left;            // zeros above and left; a negative number cuts pixels off
    Index phase_rows = 1, phase_columns = 1;
    Grid grid{};
    Index halo = 0, block = 0, stride = 0;

    // For filters of `kernel_*` taps moved by `step`, at positions_h x positions_w per image. A
    // panel without a halo holds `vectors` vectors of positions.
    Planes(Shape shape, Index step, Index top, Index left, Index kernel_h, Index kernel_w,
           Index positions_h, Index positions_w, Index vectors = tile_vectors)
        : shape(shape), step(step), top(top), left(left) {
        phase_rows = std::min(step, kernel_h);
        phase_columns = std::min(step, kernel_w);
        const Index down = (kernel_h - 1) / step, right = (kernel_w - 1) / step;
        grid.images = shape.images;
        grid.rows = extent(shape.height, top, positions_h, down);
        grid.columns = extent(shape.width, left, positions_w, right);
        halo = down * grid.columns + right;
        const Index positions =
            shape.images ? grid.size() - (grid.rows - positions_h) * grid.columns : 0;
        cut(positions, vectors);
    }

    // The same positions and panels as `other`, without taps around: one value per position and
    // phase, 0 where the image has none.
    Planes(Shape shape, Index step, const Planes& other)
        : shape(shape), step(step), top(0), left(0), phase_rows(step), phase_columns(step),
          grid(other.grid), block(other.block), stride(other.block) {
        positions_ = other.positions_;
    }

    Index phases() const { return phase_rows * phase_columns; }
    Index panels() const { return block ? ceil_div(positions_, block) : 0; }
    Index panel_size() const { return shape.channels * phases() * stride; }
    Index begin(Index panel) const { return panel * block; }
    Index end(Index panel) const { return std::min(positions_, begin(panel) + block); }

    // Where in a panel tap (i, j) of `channel` starts.
    Index offset(Index channel, Index i, Index j) const {
        const Index phase = (i % step) * phase_columns + j % step;
        return (channel * phases() + phase) * stride + (i / step) * grid.columns + j / step;
    }

    // Fills channels [from, to) of a panel.
    void pack(const float* image, Index panel, Index from, Index to, float* planes) const {
        const Index lines = phases() * stride;
        std::memset(planes + from * lines, 0, static_cast<std::size_t>((to - from) * lines) * 4);
        const Index q0 = begin(panel), q1 = q0 + (halo ? stride : block);
        for (Index a = 0; a < phase_rows; ++a)
            for (Index b = 0; b < phase_columns; ++b) {
                const Rect rect{std::max<Index>(0, ceil_div(top - a, step)),
                                std::min(grid.rows, ceil_div(shape.height + top - a, step)),
                                std::max<Index>(0, ceil_div(left - b, step)),
                                std::min(grid.columns, ceil_div(shape.width + left - b, step))};
                const bool merge = step == 1 && rect.left == 0 && rect.right == grid.columns &&
                                   grid.columns == shape.width;
                float* to_phase = planes + (a * phase_columns + b) * stride - q0;
                const auto run = [&](Index n, Index r, Index c, Index q, Index length) {
                    const Index pixel = shape.at(n, r * step + a - top, c * step + b - left);
                    copy(image + pixel, from, to, length, to_phase + q, lines);
                };
                grid.runs(rect, merge, q0, q1, run);
            }
    }

  private:
    Index positions_ = 0;

    // Positions of a plane along one side: room for the pixels, for every output, for what the
    // last output sees beyond the zeros that the next row or image starts with, and for the taps,
    // so that an offset tells its tap.
    Index extent(Index size, Index before, Index outputs, Index reach) const {
        const Index shared = floor_div(std::max<Index>(0, before), step);
        const Index pixels = ceil_div(size + before, step);
        return std::max({pixels, outputs + reach - shared, outputs, reach + 1});
    }

    void cut(Index positions, Index vectors) {
        positions_ = positions;
        if (!positions) return;
        const Index lines = std::max<Index>(1, shape.channels * phases());
        const Index tile = vectors * Floats::lanes;
        const Index fits = panel_bytes / 4 / lines - halo;
        block = halo ? std::max({fits / tile * tile, tile, halo / tile * tile}) : tile;
        const Index panels = ceil_div(positions, block);
        block = ceil_div(ceil_div(positions, panels), Floats::lanes) * Floats::lanes;
        stride = ceil_div(block + halo, Floats::lanes) * Floats::lanes;
        // An odd number of cache lines: equal positions of many channels then spread over all sets.
        if (halo && stride % 32 == 0) stride += 16;
        if (lines * stride > INT32_MAX) throw std::length_error("too many channels for one panel");
    }

    void copy(const float* source, Index from, Index to, Index length, float* planes,
              Index lines) const {
        if (shape.last) {
            transpose<false>(source + from, step * shape.channels, length, to - from,
                             planes + from * lines, lines);
            return;
        }
        for (Index c = from; c < to; ++c) {
            const float* x = source + c * shape.pixels();
            float* y = planes + c * lines;
            if (step == 1)
                std::memcpy(y, x, static_cast<std::size_t>(length) * 4);
            else
                for (Index i = 0; i < length; ++i) y[i] = x[i * step];
        }
    }
};

}  // namespace WIRING_ISA
