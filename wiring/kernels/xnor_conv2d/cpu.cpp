#include "xnor_conv2d/cpu.h"

#include "native/counts.h"
#include "native/parallel.h"
#include "native/words.h"
#include "xnor_conv2d/filters.h"
#include "xnor_conv2d/places.h"
#if defined(WIRING_ISA_avx2) || defined(WIRING_ISA_avx512)
#include "xnor_conv2d/tables.h"
#endif
#if defined(WIRING_ISA_avx2) || defined(WIRING_WIDE)
#include "xnor_conv2d/signed_sums.h"
#endif

namespace WIRING_ISA {
namespace {

using xnor_conv2d::panel;
using xnor_conv2d::Weights;

constexpr int block_pixels = 4;
constexpr int panel_vectors = panel / word_lanes;
// Blocks whose outputs are written before the next panel's: they stay in the cache.
constexpr std::int64_t span_blocks = 64;

// Counts the bits of P pixels and Q vectors of a panel over all steps; counts [P][panel] starts
// at the first vector.
template <class Bits, int P, int Q>
inline void tile(const std::uint64_t* x, const Place* places, const Step* steps,
                 std::int64_t length, const std::uint64_t* w, const std::uint64_t* m,
                 std::int32_t* counts) {
    Counter counter[P][Q];
    const auto weight = [&](const std::uint64_t* from, const Step& step, int q) {
        return load_words(from + step.w * panel + q * word_lanes);
    };
    // Two words of every pixel and vector.
    const auto add = [&](const Step* step, auto put) {
        Words w0[Q], w1[Q], m0[Q], m1[Q];
        for (int q = 0; q < Q; ++q) {
            w0[q] = weight(w, step[0], q);
            w1[q] = weight(w, step[1], q);
            m0[q] = Bits::masked ? weight(m, step[0], q) : w0[q];
            m1[q] = Bits::masked ? weight(m, step[1], q) : w1[q];
        }
        for (int p = 0; p < P; ++p) {
            const Words x0 = all_words(x[places[p].x + step[0].x]);
            const Words x1 = all_words(x[places[p].x + step[1].x]);
            for (int q = 0; q < Q; ++q) put(counter[p][q], x0, w0[q], m0[q], x1, w1[q], m1[q]);
        }
    };
    const auto pair = [&](const Step* step, auto j) {
        add(step, [](Counter& c, auto... words) {
            c.template pair<Bits, decltype(j)::value>(words...);
        });
    };
    std::int64_t k = 0;
    for (std::int64_t left = length / Counter::group; left > 0;) {
        const auto now = std::min<std::int64_t>(left, Counter::most_groups);
        for (std::int64_t i = 0; i < now; ++i, k += Counter::group) {
            pair(steps + k, std::integral_constant<int, 0>());
            if constexpr (Counter::group == 8) {
                pair(steps + k + 2, std::integral_constant<int, 1>());
                pair(steps + k + 4, std::integral_constant<int, 2>());
                pair(steps + k + 6, std::integral_constant<int, 3>());
            }
        }
        left -= now;
        if (left)
            for (auto& row : counter)
                for (auto& c : row) c.settle();
    }
    for (; k + 2 <= length; k += 2)
        add(steps + k, [](Counter& c, auto... words) { c.template late_pair<Bits>(words...); });
    if (k < length)
        for (int q = 0; q < Q; ++q) {
            const Words wq = weight(w, steps[k], q);
            const Words mq = Bits::masked ? weight(m, steps[k], q) : wq;
            for (int p = 0; p < P; ++p)
                counter[p][q].template late<Bits>(all_words(x[places[p].x + steps[k].x]), wq, mq);
        }
    for (int p = 0; p < P; ++p) {
        std::int32_t* to = counts + p * panel;
        if constexpr (Q == 1)
            store_counts(counter[p][0].total(), to);
        else
            for (int q = 0; q < Q; q += 2, to += 2 * word_lanes)
                store_counts(counter[p][q].total(), counter[p][q + 1].total(), to);
    }
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

// Calls work(thread, group, first, last) for stretches of blocks that together are all blocks of
// every group of panels.
template <class Work>
void each_span(std::int64_t groups, const Places& places, int threads, Work work) {
    const auto blocks = static_cast<std::int64_t>(places.blocks.size());
    const std::int64_t span = groups * span_blocks;
    parallel(groups * blocks, threads, [&](int thread, std::int64_t begin, std::int64_t end) {
        while (begin < end) {
            const std::int64_t first = begin / span * span_blocks;
            const std::int64_t size = std::min(span_blocks, blocks - first);
            const std::int64_t group = begin % span / size, from = begin % span % size;
            const std::int64_t last = std::min(size, from + end - begin);
            work(thread, group, first + from, first + last);
            begin += last - from;
        }
    });
}

// What turns counts into results, for every class and destination.
struct Finish {
    std::int64_t width;
    const float* scale;
    float* y;
    std::int64_t d;
    Scratch<std::int32_t> bits;  // that count: all channels of the valid taps, or the live ones
    Scratch<float> alpha;        // and zeros behind the last destination

    Finish(const Shape& s, const Places& places, const Weights& weights, const float* scale,
           float* y)
        : width(s.panels() * panel),
          scale(scale),
          y(y),
          d(s.d),
          bits(places.taps.size() * static_cast<std::size_t>(width)),
          alpha(static_cast<std::size_t>(width)) {
        std::fill(std::copy_n(weights.alpha, d, alpha.data()), alpha.data() + width, 0.0f);
        std::int32_t* to = bits.data();
        for (const auto& taps : places.taps) {
            std::fill_n(to, width, static_cast<std::int32_t>(taps.size()) *
                                       static_cast<std::int32_t>(s.channels));
            if (weights.live) {
                std::fill_n(to, width, 0);
                for (const std::int64_t tap : taps)
                    for (std::int64_t i = 0; i < width; ++i)
                        to[i] += weights.live_bits[tap * width + i];
            }
            to += width;
        }
    }

    // counts [block.count] rows of a panel, `stride` apart.
    void operator()(const Place* places, const Block& block, std::int64_t at,
                    const std::int32_t* counts, std::int64_t stride) {
        const std::int64_t first = at * panel, columns = std::min(panel, d - first);
        const std::int32_t* valid = bits.data() + block.kind * width + first;
        const float* factors = alpha.data() + first;
        for (int p = 0; p < block.count; ++p, counts += stride) {
            const float factor = scale ? scale[places[p].y] : 1.0f;
            alignas(64) float row[panel];
            for (int i = 0; i < panel; ++i)
                row[i] = static_cast<float>(valid[i] - 2 * counts[i]) * factors[i] * factor;
            float* to = y + places[p].y * d + first;
            if (columns == panel)
                std::memcpy(to, row, sizeof row);
            else
                std::memcpy(to, row, static_cast<std::size_t>(columns) * sizeof *row);
        }
    }
};

template <class Bits>
void convolve(const std::uint64_t* x, const Weights& weights, const float* scale, float* y,
              const Shape& s, int threads) {
    const Places places(s, block_pixels);
    Finish finish(s, places, weights, scale, y);
    const std::int64_t length = s.taps() * s.words * panel;
    each_span(s.panels(), places, threads,
              [&](int, std::int64_t at, std::int64_t first, std::int64_t last) {
                  for (std::int64_t i = first; i < last; ++i) {
                      const Block& block = places.blocks[static_cast<std::size_t>(i)];
                      const Place* place = places.places.data() + block.first;
                      alignas(64) std::int32_t counts[block_pixels][panel];
                      count_block<Bits>(x, place, block.count, places.first_step(block),
                                        places.length(block), weights.sign + at * length,
                                        Bits::masked ? weights.live + at * length : nullptr,
                                        counts[0]);
                      finish(place, block, at, counts[0], panel);
                  }
              });
}

#if defined(WIRING_ISA_avx2) || defined(WIRING_ISA_avx512)
#if defined(WIRING_ISA_avx2)
constexpr std::int64_t most_words = most_table_words;
#else
// Beyond, vpternlog's adders are faster: measured on a Sapphire Rapids core.
constexpr std::int64_t most_words = 24;
#endif

// Whether tables pay: few empty columns, and enough pixels to prepare the weights for.
bool suits_tables(const Weights& weights, const Shape& s) {
    const std::int64_t columns = (s.d + table_columns - 1) / table_columns * table_columns;
    return !weights.live && s.n * s.oh * s.ow >= 16 && 5 * columns <= 8 * s.d &&
           s.taps() * s.words <= most_words;
}

void convolve_by_table(const std::uint64_t* x, const Weights& weights, const float* scale,
                       float* y, const Shape& s, int threads) {
    const Places places(s, table_pixels);
    const Tables tables;
    Finish finish(s, places, weights, scale, y);
    const std::int64_t length = s.taps() * s.words, groups = (s.panels() + 3) / table_panels;
    const std::int64_t words = s.n * s.h * s.w * s.words;
    const std::int64_t size = length * nibbles * table_columns;
    Scratch<std::uint8_t> offsets(static_cast<std::size_t>(words * nibbles));
    Scratch<std::uint8_t> scratch(static_cast<std::size_t>(std::max(1, threads) * size));
    parallel(words, static_cast<int>(std::clamp<std::int64_t>(words / 4096, 1, threads)),
             [&](int, std::int64_t begin, std::int64_t end) {
                 table_offsets(x + begin, end - begin, offsets.data() + begin * nibbles);
             });
    each_span(groups, places, threads, [&](int thread, std::int64_t group, std::int64_t first,
                                           std::int64_t last) {
        const std::int64_t from = group * table_panels;
        const std::int64_t to = std::min(from + table_panels, s.panels());
        std::uint8_t* rows = scratch.data() + thread * size;
        all_nibble_rows(weights.sign + from * length * panel, to - from, length, rows);
        for (std::int64_t i = first; i < last; ++i) {
            const Block& block = places.blocks[static_cast<std::size_t>(i)];
            const Place* place = places.places.data() + block.first;
            alignas(64) std::int32_t counts[table_pixels][table_columns];
            table_block(std::make_integer_sequence<int, table_pixels>(), block.count, tables,
                        offsets.data(), place, places.first_step(block), places.length(block),
                        rows, counts[0]);
            for (std::int64_t at = from; at < to; ++at)
                finish(place, block, at, counts[0] + (at - from) * panel, table_columns);
        }
    });
}
#endif

void xnor(const std::uint64_t* x, Weights weights, const float* scale, float* y, Shape shape,
          int threads) {
#if defined(WIRING_ISA_avx2) || defined(WIRING_ISA_avx512)
    if (suits_tables(weights, shape))
        return convolve_by_table(x, weights, scale, y, shape, threads);
#endif
    if (weights.live)
        convolve<DifferOnLive>(x, weights, scale, y, shape, threads);
    else
        convolve<Differ>(x, weights, scale, y, shape, threads);
}

void xnor_floats(xnor_conv2d::Image x, Weights weights, const float* scale, float* y, Shape s,
                 int threads) {
    const std::int64_t rows = s.n * s.h * s.w;
    Scratch<std::uint64_t> words(static_cast<std::size_t>(rows * s.words));
    const int packers =
        static_cast<int>(std::clamp<std::int64_t>(rows * s.words / 2048, 1, threads));
    parallel(rows, packers, [&](int, std::int64_t begin, std::int64_t end) {
        pack_part(AtLeast{}, x.data, x.planes, s.channels, s.h * s.w, begin, end, words.data());
    });
    xnor(words.data(), weights, scale, y, s, threads);
}

void planes(const std::uint64_t* x, int x_bits, const std::uint64_t* panels, int w_bits,
            std::int32_t* y, Shape s, int threads) {
    const Places places(s, block_pixels);
    const std::int64_t length = s.taps() * s.words * panel, image = s.n * s.h * s.w * s.words;
    each_span(s.panels(), places, threads, [&](int, std::int64_t at, std::int64_t first,
                                               std::int64_t last) {
        for (std::int64_t b = first; b < last; ++b) {
            const Block& block = places.blocks[static_cast<std::size_t>(b)];
            const Place* place = places.places.data() + block.first;
            alignas(64) std::int32_t counts[block_pixels][panel], sums[block_pixels][panel] = {};
            for (int i = 0; i < x_bits; ++i)
                for (int j = 0; j < w_bits; ++j) {
                    count_block<BothSet>(x + i * image, place, block.count,
                                         places.first_step(block), places.length(block),
                                         panels + (j * s.panels() + at) * length, nullptr,
                                         counts[0]);
                    for (int p = 0; p < block.count; ++p)
                        for (int d = 0; d < panel; ++d) sums[p][d] += counts[p][d] << (i + j);
                }
            const std::int64_t columns = std::min(panel, s.d - at * panel);
            for (int p = 0; p < block.count; ++p)
                std::copy_n(sums[p], columns, y + place[p].y * s.d + at * panel);
        }
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

#if !defined(WIRING_ISA_avx2) && !defined(WIRING_WIDE)
constexpr auto convolve_signed = nullptr;
#endif

}  // namespace

extern const xnor_conv2d::Kernels xnor_conv2d_kernels = {
    row_scales, binary_filters, binary_gradient, panels, live_bits,
    xnor,       xnor_floats,    convolve_signed, planes};

}  // namespace WIRING_ISA
