#include "xnor_conv2d/cpu.h"

#include "native/counts.h"
#include "native/parallel.h"
#include "native/words.h"
#include "xnor_conv2d/filters.h"
#include "xnor_conv2d/places.h"

namespace WIRING_ISA {
namespace {

using xnor_conv2d::panel;
using xnor_conv2d::Weights;

constexpr int block_pixels = 4;
constexpr int panel_vectors = panel / word_lanes;

// Counts the bits of P pixels and Q vectors of a panel over all steps; counts [P][panel] starts
// at the first vector.
template <class Bits, int P, int Q>
inline void tile(const std::uint64_t* x, const Place* places, const Step* steps,
                 std::int64_t length, const std::uint64_t* w, const std::uint64_t* m,
                 std::int32_t* counts) {
    Counter counter[P][Q];
    constexpr int G = Counter::group;
    const auto add = [&](const Step* step, auto size) {
        constexpr int N = decltype(size)::value;
        Words weight[Q][N], live[Q][N];
        for (int q = 0; q < Q; ++q)
            for (int g = 0; g < N; ++g) {
                weight[q][g] = load_words(w + step[g].w * panel + q * word_lanes);
                live[q][g] = Bits::masked ? load_words(m + step[g].w * panel + q * word_lanes)
                                          : weight[q][g];
            }
        for (int p = 0; p < P; ++p) {
            Words input[N];
            for (int g = 0; g < N; ++g) input[g] = all_words(x[places[p].x + step[g].x]);
            for (int q = 0; q < Q; ++q) {
                if constexpr (N == 1)
                    counter[p][q].template add_one<Bits>(input[0], weight[q][0], live[q][0]);
                else if constexpr (N == G)
                    counter[p][q].template add<Bits>(input, weight[q], live[q]);
                else
                    counter[p][q].template add_two<Bits>(input, weight[q], live[q]);
            }
        }
    };
    std::int64_t k = 0;
    for (std::int64_t left = length / G; left > 0;) {
        const auto now = std::min<std::int64_t>(left, Counter::most_groups);
        for (std::int64_t i = 0; i < now; ++i, k += G)
            add(steps + k, std::integral_constant<int, G>());
        left -= now;
        if (left)
            for (auto& row : counter)
                for (auto& c : row) c.settle();
    }
    if constexpr (G > 2)
        for (; k + 2 <= length; k += 2) add(steps + k, std::integral_constant<int, 2>());
    for (; k < length; ++k) add(steps + k, std::integral_constant<int, 1>());
    for (int p = 0; p < P; ++p)
        for (int q = 0; q < Q; ++q)
            store_counts(counter[p][q].total(), counts + p * panel + q * word_lanes);
}

// counts [count][panel] of a block's pixels and a whole panel.
template <class Bits>
void count_block(const std::uint64_t* x, const Place* places, int count, const Step* steps,
                 std::int64_t length, const std::uint64_t* w, const std::uint64_t* m,
                 std::int32_t* counts) {
    constexpr int P = Counter::positions, Q = Counter::vectors;
    for (int p = 0; p < count; p += P)
        for (int v = 0; v < panel_vectors; v += Q) {
            const std::uint64_t* wv = w + v * word_lanes;
            const std::uint64_t* mv = Bits::masked ? m + v * word_lanes : nullptr;
            std::int32_t* to = counts + p * panel + v * word_lanes;
            const Place* from = places + p;
            switch (std::min(P, count - p)) {
                case 1: tile<Bits, 1, Q>(x, from, steps, length, wv, mv, to); break;
                case 2: tile<Bits, std::min(P, 2), Q>(x, from, steps, length, wv, mv, to); break;
                case 3: tile<Bits, std::min(P, 3), Q>(x, from, steps, length, wv, mv, to); break;
                default: tile<Bits, P, Q>(x, from, steps, length, wv, mv, to);
            }
        }
}

// Calls work(panel, block) for all of them: each thread takes a stretch of blocks of few panels,
// whose words then stay in its cache.
template <class Work>
void each_block(const Shape& s, const Places& places, int threads, Work work) {
    const auto blocks = static_cast<std::int64_t>(places.blocks.size());
    parallel(s.panels() * blocks, threads, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i)
            work(i / blocks, places.blocks[static_cast<std::size_t>(i % blocks)]);
    });
}

// The bits that count at each class: all channels of its valid taps, or the live ones.
void class_bits(const Shape& s, const Places& places, const std::int32_t* live_bits,
                std::int32_t* bits) {
    const std::int64_t width = s.panels() * panel;
    for (const auto& taps : places.taps) {
        std::fill_n(bits, width, 0);
        for (const std::int64_t tap : taps)
            for (std::int64_t d = 0; d < width; ++d)
                bits[d] += live_bits ? live_bits[tap * width + d]
                                     : static_cast<std::int32_t>(s.channels);
        bits += width;
    }
}

template <class Bits>
void convolve(const std::uint64_t* x, const Weights& weights, const float* scale, float* y,
              const Shape& s, int threads) {
    const Places places(s, block_pixels);
    const std::int64_t width = s.panels() * panel, length = s.taps() * s.words * panel;
    Scratch<std::int32_t> bits(places.taps.size() * static_cast<std::size_t>(width));
    class_bits(s, places, weights.live_bits, bits.data());
    each_block(s, places, threads, [&](std::int64_t at, const Block& block) {
        const std::int64_t begin = places.begins[static_cast<std::size_t>(block.kind)];
        const std::int64_t end = places.begins[static_cast<std::size_t>(block.kind) + 1];
        const Place* place = places.places.data() + block.first;
        alignas(64) std::int32_t counts[block_pixels][panel];
        count_block<Bits>(x, place, block.count, places.steps.data() + begin, end - begin,
                          weights.sign + at * length,
                          Bits::masked ? weights.live + at * length : nullptr, counts[0]);
        const std::int32_t* valid = bits.data() + block.kind * width + at * panel;
        const std::int64_t first = at * panel, columns = std::min(panel, s.d - first);
        for (int p = 0; p < block.count; ++p) {
            float* to = y + place[p].y * s.d + first;
            const float factor = scale ? scale[place[p].y] : 1.0f;
            const auto finish = [&](std::int64_t n) {
                for (std::int64_t d = 0; d < n; ++d)
                    to[d] = static_cast<float>(valid[d] - 2 * counts[p][d]) *
                            weights.alpha[first + d] * factor;
            };
            columns == panel ? finish(panel) : finish(columns);
        }
    });
}

void xnor(const std::uint64_t* x, Weights weights, const float* scale, float* y, Shape shape,
          int threads) {
    if (weights.live)
        convolve<DifferOnLive>(x, weights, scale, y, shape, threads);
    else
        convolve<Differ>(x, weights, scale, y, shape, threads);
}

void xnor_floats(const float* x, bool planes, Weights weights, const float* scale, float* y,
                 Shape s, int threads) {
    const std::int64_t rows = s.n * s.h * s.w;
    Scratch<std::uint64_t> words(static_cast<std::size_t>(rows * s.words));
    const int packers =
        static_cast<int>(std::clamp<std::int64_t>(rows * s.words / 2048, 1, threads));
    parallel(rows, packers, [&](int, std::int64_t begin, std::int64_t end) {
        pack_part(AtLeast{}, x, planes, s.channels, s.h * s.w, begin, end, words.data());
    });
    xnor(words.data(), weights, scale, y, s, threads);
}

void planes(const std::uint64_t* x, int x_bits, const std::uint64_t* panels, int w_bits,
            std::int32_t* y, Shape s, int threads) {
    const Places places(s, block_pixels);
    const std::int64_t length = s.taps() * s.words * panel, image = s.n * s.h * s.w * s.words;
    each_block(s, places, threads, [&](std::int64_t at, const Block& block) {
        const std::int64_t begin = places.begins[static_cast<std::size_t>(block.kind)];
        const std::int64_t end = places.begins[static_cast<std::size_t>(block.kind) + 1];
        const Place* place = places.places.data() + block.first;
        alignas(64) std::int32_t counts[block_pixels][panel], sums[block_pixels][panel] = {};
        for (int i = 0; i < x_bits; ++i)
            for (int j = 0; j < w_bits; ++j) {
                count_block<BothSet>(x + i * image, place, block.count,
                                     places.steps.data() + begin, end - begin,
                                     panels + (j * s.panels() + at) * length, nullptr, counts[0]);
                for (int p = 0; p < block.count; ++p)
                    for (int d = 0; d < panel; ++d) sums[p][d] += counts[p][d] * (1 << (i + j));
            }
        const std::int64_t first = at * panel, columns = std::min(panel, s.d - first);
        for (int p = 0; p < block.count; ++p)
            std::copy_n(sums[p], columns, y + place[p].y * s.d + first);
    });
}

void panels(const std::uint64_t* words, std::int64_t d, std::int64_t k, std::uint64_t* to) {
    for (std::int64_t first = 0; first < d; first += panel) {
        const std::int64_t columns = std::min(panel, d - first);
        const std::uint64_t* from = words + first * k;
        for (std::int64_t i = 0; i < k; ++i, to += panel) {
            for (std::int64_t c = 0; c < columns; ++c) to[c] = from[c * k + i];
            std::fill(to + columns, to + panel, 0);
        }
    }
}

bool live_bits(const std::uint64_t* live, Shape s, std::int32_t* bits) {
    const std::int64_t width = s.panels() * panel;
    std::fill_n(bits, s.taps() * width, 0);
    for (std::int64_t d = 0; d < s.d; ++d)
        for (std::int64_t tap = 0; tap < s.taps(); ++tap)
            for (std::int64_t k = 0; k < s.words; ++k)
                bits[tap * width + d] += __builtin_popcountll(*live++);
    bool complete = true;
    for (std::int64_t tap = 0; tap < s.taps(); ++tap)
        for (std::int64_t d = 0; d < s.d; ++d) complete &= bits[tap * width + d] == s.channels;
    return complete;
}

}  // namespace

extern const xnor_conv2d::Kernels xnor_conv2d_kernels = {
    row_scales, binary_filters, binary_gradient, panels, live_bits, xnor, xnor_floats, planes};

}  // namespace WIRING_ISA
