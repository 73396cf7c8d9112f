// The sum over all positions of a function of a gradient and an input, for every edge of a list.
#pragma once

#include "native/sparse.h"

namespace WIRING_ISA {

// Vectors of positions in a panel for `dots`: more make fewer horizontal sums.
constexpr Index dot_vectors = 16;

// result[k] = sums of pair(sum, grad, x, w) over positions, for edge k of a Forward list.
//
//   struct Pair { static Floats step(Floats sum, Floats grad, Floats x, Floats w); };
//
// A position that is no output has grad 0: `step` must then leave the sum as it is.
template <class Pair>
void dots(const Planes& planes, const float* image, const Shape& grad_shape, const float* grad,
          const Edges& list, float* result, int threads) {
    using namespace sparse;
    constexpr int lanes = Floats::lanes;
    std::fill(result, result + list.start[list.rows], 0.0f);
    const Index panels = planes.panels();
    const Planes gradients(grad_shape, 1, planes);
    const Index wave = wave_of(planes, gradients.panel_size() * 4, threads);
    if (!panels) return;
    Reused<float> memory(
        static_cast<std::size_t>(wave * (planes.panel_size() + gradients.panel_size())));
    float *x = memory.data(), *g = x + wave * planes.panel_size();
    for (Index first = 0; first < panels; first += wave) {
        const Index count = std::min(wave, panels - first);
        pack(planes, image, first, count, x, threads);
        pack(gradients, grad, first, count, g, threads);
        parallel(list.rows, threads, [&](int, Index begin, Index end) {
            for (Index panel = 0; panel < count; ++panel) {
                const Index size = planes.end(first + panel) - planes.begin(first + panel);
                const float* x0 = x + panel * planes.panel_size();
                for (Index row = begin; row < end; ++row) {
                    const float* gs = g + panel * gradients.panel_size() + row * gradients.stride;
                    for (std::int64_t k = list.start[row]; k < list.start[row + 1]; ++k) {
                        const float* xs = x0 + list.edges[k].offset;
                        const Floats w = Floats::all(list.edges[k].weight);
                        Floats sums[4];
                        for (auto& sum : sums) sum = Floats::all(0.0f);
                        Index q = 0;
                        for (; q + 4 * lanes <= size; q += 4 * lanes)
                            for (int v = 0; v < 4; ++v)
                                sums[v] = Pair::step(sums[v], Floats::load(gs + q + v * lanes),
                                                     Floats::load(xs + q + v * lanes), w);
                        for (int v = 0; q < size; q += lanes, ++v)
                            sums[v] = Pair::step(sums[v], Floats::load(gs + q),
                                                 Floats::load(xs + q), w);
                        result[k] += ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
                    }
                }
            }
        });
    }
}

}  // namespace WIRING_ISA
