// Work over live edges alone, for any per-edge function.
//
// How to build an operation from it (masked_conv2d/cpu.cpp is an example):
//
//   Bits bits(live, D, filter.columns(), threads);         // the mask, read once
//   Filter filter{S, kh, kw, stride, padding};
//   Planes planes = filter.planes(x_shape);                // the image as planes (planes.h)
//   Forward edges(bits, weight, filter, planes, threads);  // per output row: (offset, weight)
//   gather<Step>(planes, x, edges.list(), Sink{y_shape, 1}, y, threads);
//
// `Step` says what one edge does to sixteen (eight, four) sums at a time:
//
//   struct Step {
//       static constexpr bool own = false;  // whether it reads the output pixel's own value
//       static Floats step(Floats sum, Floats x, Floats w, Floats own);  // e.g. fma(x, w, sum)
//   };
//
// Input gradient: the same gather over planes of the gradient, with
//   Planes planes = Backward::planes(filter, grad_shape, H, W);
//   Backward edges(bits, weight, filter, planes);
//   gather<Step>(planes, grad, edges.list(), Sink{x_shape, stride}, dx, threads, extra);
// `extra.own` is then the input image, read at the pixel whose gradient is summed, in any layout.
//
// Weight gradient: `dots<Pair>` of native/dots.h sums pair(sum, grad, x, w) over all positions, for
// every edge of a Forward list. The order of every sum follows from the shapes, never from the
// number of threads. Padding is a pixel of value 0 that counts.
#pragma once

#include "native/edges.h"

namespace WIRING_ISA {

// Where sums go: an image, of which group (a, b) of step*step holds the pixels (a + step*r, ...).
struct Sink {
    Shape shape;
    Index step;

    Index groups() const { return step * step; }
};

// What a gather may be told besides.
struct Extra {
    const float* own = nullptr;  // image of the sink's channels and size, for steps that read it
    Shape own_shape{};
    const float* shift = nullptr;  // [D], added to finished sums
    bool relu = false;
};

namespace sparse {

constexpr Index rows_at_once = 16;

// V vectors of sums over the edges of one row.
template <class Step, int V>
inline void sum_row(const Edge* edge, const Edge* end, const float* planes, const float* own,
                    const float* shift, bool relu, float* out) {
    // Few vectors would wait for one another's sums: take several edges at a time.
    constexpr int lanes = Floats::lanes, chains = V < 4 ? (V == 1 ? 4 : 2) : 1;
    Floats sums[V], mine[V];
    for (int v = 0; v < V; ++v) {
        sums[v] = Floats::all(0.0f);
        if (Step::own) mine[v] = Floats::load(own + v * lanes);
    }
    if (chains > 1 && end - edge >= chains) {
        Floats more[chains][V];
        for (auto& chain : more)
            for (auto& sum : chain) sum = Floats::all(0.0f);
        for (; end - edge >= chains; edge += chains) {
#pragma GCC unroll 4
            for (int k = 0; k < chains; ++k) {
                const float* x = planes + edge[k].offset;
                const Floats w = Floats::all(edge[k].weight);
#pragma GCC unroll 16
                for (int v = 0; v < V; ++v)
                    more[k][v] = Step::step(more[k][v], Floats::load(x + v * lanes), w, mine[v]);
            }
        }
        for (int v = 0; v < V; ++v)
            for (int k = 0; k < chains; ++k) sums[v] = sums[v] + more[k][v];
    }
    for (; edge != end; ++edge) {
        const float* x = planes + edge->offset;
        const Floats w = Floats::all(edge->weight);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v)
            sums[v] = Step::step(sums[v], Floats::load(x + v * lanes), w, mine[v]);
    }
    for (int v = 0; v < V; ++v) {
        if (shift) sums[v] = sums[v] + Floats::all(*shift);
        // The second operand where they do not compare: NaN stays NaN.
        if (relu) sums[v] = max(Floats::all(0.0f), sums[v]);
        sums[v].store(out + v * lanes);
    }
}

template <class Step>
using SumRow = void (*)(const Edge*, const Edge*, const float*, const float*, const float*, bool,
                        float*);

template <class Step>
SumRow<Step> sum_row_of(Index vectors) {
    switch (vectors) {
        case 1: return sum_row<Step, 1>;
        case 2: return sum_row<Step, 2>;
        case 3: return sum_row<Step, 3>;
        case 4: return sum_row<Step, 4>;
        case 5: return sum_row<Step, 5>;
        case 6: return sum_row<Step, 6>;
        case 7: return sum_row<Step, 7>;
        default: return sum_row<Step, 8>;
    }
}

// As many panels as stay in the caches of all cores.
inline Index wave_of(const Planes& planes, Index bytes_beside, int threads) {
    const Index bytes = std::max<Index>(1, planes.panel_size() * 4 + bytes_beside);
    const Index wave = std::max<Index>(1, 2 * panel_bytes / bytes) * threads;
    return std::min(wave, std::max<Index>(1, planes.panels()));
}

// Fills panels [first, first + count), channels shared among threads.
inline void pack(const Planes& planes, const float* image, Index first, Index count, float* to,
                 int threads) {
    constexpr Index part = 16;
    const Index parts = ceil_div(planes.shape.channels, part);
    parallel(count * parts, threads, [&](int, Index begin, Index end) {
        for (Index i = begin; i < end;) {
            const Index panel = i / parts, until = std::min(end, (panel + 1) * parts);
            planes.pack(image, first + panel, i % parts * part,
                        std::min(planes.shape.channels, (until - panel * parts) * part),
                        to + panel * planes.panel_size());
            i = until;
        }
    });
}

// Writes `rows` rows of sums [rows, positions from `begin` to `end`] to channels d.. of a group.
inline void write(const Planes& planes, const Sink& sink, Index group, Index d, Index rows,
                  Index begin, Index end, const float* sums, Index width, float* out) {
    const Index a = group / sink.step, b = group % sink.step;
    const Rect rect{0, ceil_div(sink.shape.height - a, sink.step), 0,
                    ceil_div(sink.shape.width - b, sink.step)};
    const bool merge = sink.step == 1 && rect.right == planes.grid.columns;
    const auto run = [&](Index n, Index r, Index c, Index q, Index length) {
        const float* from = sums + q - begin;
        float* to = out + sink.shape.at(n, a + r * sink.step, b + c * sink.step) +
                    d * sink.shape.channel_step();
        if (sink.shape.last) {
            transpose<true>(from, width, rows, length, to, sink.step * sink.shape.channels);
            return;
        }
        for (Index k = 0; k < rows; ++k, to += sink.shape.pixels(), from += width) {
            if (sink.step == 1)
                std::memcpy(to, from, static_cast<std::size_t>(length) * sizeof(float));
            else
                for (Index i = 0; i < length; ++i) to[i * sink.step] = from[i];
        }
    };
    planes.grid.runs(rect, merge, begin, end, run);
}

}  // namespace sparse

// out = sums over the edges of each row, where row (d, group) of `list` is d * groups + group.
template <class Step>
void gather(const Planes& planes, const float* image, const Edges& list, const Sink& sink,
            float* out, int threads, const Extra& extra = {}) {
    using namespace sparse;
    const Index groups = sink.groups(), channels = sink.shape.channels;
    const Index blocks = ceil_div(channels, rows_at_once);
    const Index panels = planes.panels();
    if (!panels || !blocks || !sink.shape.pixels()) return;
    const Planes own(Step::own ? extra.own_shape : Shape{0, 0, 0, 0, true}, sink.step, planes);
    const Index wave = wave_of(planes, own.panel_size() * 4, threads);
    Reused<float> memory(static_cast<std::size_t>(wave * (planes.panel_size() + own.panel_size())));
    float *packed = memory.data(), *packed_own = packed + wave * planes.panel_size();
    const Index vectors = ceil_div(planes.block, Floats::lanes);
    const Index most = ceil_div(vectors, ceil_div(vectors, tile_vectors));
    const Index width = most * Floats::lanes;
    Reused<float> sums(static_cast<std::size_t>(threads * rows_at_once * width));
    for (Index first = 0; first < panels; first += wave) {
        const Index count = std::min(wave, panels - first);
        pack(planes, image, first, count, packed, threads);
        if (Step::own) pack(own, extra.own, first, count, packed_own, threads);
        parallel(count * groups * blocks, threads, [&](int thread, Index begin, Index end) {
            float* tile = sums.data() + thread * rows_at_once * width;
            for (Index i = begin; i < end; ++i) {
                const Index panel = i / (groups * blocks), group = i / blocks % groups;
                const Index d = i % blocks * rows_at_once;
                const Index rows = std::min(rows_at_once, channels - d);
                const Index q0 = planes.begin(first + panel), q1 = planes.end(first + panel);
                for (Index q = q0; q < q1; q += width) {
                    const Index end_q = std::min(q + width, q1);
                    const auto sum = sum_row_of<Step>(ceil_div(end_q - q, Floats::lanes));
                    const float* from = packed + panel * planes.panel_size() + q - q0;
                    const float* beside = packed_own + panel * own.panel_size() + q - q0;
                    for (Index k = 0; k < rows; ++k) {
                        const Index row = (d + k) * groups + group;
                        const float* mine = Step::own ? beside + row * own.stride : nullptr;
                        sum(list.edges + list.start[row], list.edges + list.start[row + 1], from,
                            mine, extra.shift ? extra.shift + d + k : nullptr, extra.relu,
                            tile + k * width);
                    }
                    write(planes, sink, group, d, rows, q, end_q, tile, width, out);
                }
            }
        });
    }
}

}  // namespace WIRING_ISA
