// Lists of edges, made from a mask: for every output row, what it reads and with which weight.
#pragma once

#include <cstdint>
#include <cstring>

#include "native/blocks.h"
#include "native/parallel.h"
#include "native/planes.h"

namespace WIRING_ISA {

// One live edge: where its input starts within a panel, and its weight.
struct Edge {
    std::int32_t offset;
    float weight;
};

// Edges of `rows` rows, row r's from start[r] to start[r + 1].
struct Edges {
    Index rows = 0;
    const std::int64_t* start = nullptr;
    const Edge* edges = nullptr;
};

// Bit k: byte k of 64 (or of the first n) is not 0.
inline std::uint64_t nonzero(const std::uint8_t* bytes, int n) {
#if defined(WIRING_ISA_avx512) || defined(WIRING_ISA_avx512popcnt)
    const __mmask64 first = n < 64 ? (std::uint64_t{1} << n) - 1 : ~std::uint64_t{0};
    const __m512i v = _mm512_maskz_loadu_epi8(first, bytes);
    return _mm512_test_epi8_mask(v, v);
#else
    if (n == 64) {
#if defined(WIRING_ISA_avx2)
        const auto half = [](const std::uint8_t* p) {
            const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
            const __m256i zero = _mm256_cmpeq_epi8(v, _mm256_setzero_si256());
            const auto dead = static_cast<std::uint32_t>(_mm256_movemask_epi8(zero));
            return static_cast<std::uint64_t>(~dead);
        };
        return half(bytes) | half(bytes + 32) << 32;
#endif
    }
    std::uint64_t bits = 0;
    for (int i = 0; i < n; ++i) bits |= std::uint64_t{bytes[i] != 0} << i;
    return bits;
#endif
}

inline int bits_in(std::uint64_t word) { return __builtin_popcountll(word); }

// A mask [rows, columns] of bytes as bits, with the number of its edges before every row.
class Bits {
  public:
    const Index rows, columns, words;

    Bits(const std::uint8_t* mask, Index rows, Index columns, int threads)
        : rows(rows), columns(columns), words((columns + 63) / 64),
          bits_(static_cast<std::size_t>(rows * words)),
          start_(static_cast<std::size_t>(rows + 1)) {
        std::uint64_t* bits = bits_.data();
        std::int64_t* start = start_.data();
        start[0] = 0;
        parallel(rows, threads, [=](int, Index begin, Index end) {
            for (Index row = begin; row < end; ++row) {
                std::int64_t count = 0;
                for (Index w = 0; w < words; ++w) {
                    const Index left = columns - w * 64;
                    const std::uint64_t word = nonzero(mask + row * columns + w * 64,
                                                       static_cast<int>(std::min<Index>(64, left)));
                    bits[row * words + w] = word;
                    count += bits_in(word);
                }
                start[row + 1] = count;
            }
        });
        for (Index row = 0; row < rows; ++row) start[row + 1] += start[row];
    }

    const std::uint64_t* row(Index r) { return bits_.data() + r * words; }
    const std::int64_t* start() { return start_.data(); }
    std::int64_t size() { return start_[static_cast<std::size_t>(rows)]; }

    // Calls f(row, column, k) for every edge k, in order; rows are shared among threads.
    template <class F>
    void each(int threads, F&& f) {
        parallel(rows, threads, [&](int, Index begin, Index end) {
            for (Index r = begin; r < end; ++r) {
                std::int64_t k = start_[static_cast<std::size_t>(r)];
                const std::uint64_t* bits = row(r);
                for (Index w = 0; w < words; ++w)
                    for (std::uint64_t word = bits[w]; word; word &= word - 1)
                        f(r, w * 64 + __builtin_ctzll(word), k++);
            }
        });
    }

  private:
    Reused<std::uint64_t> bits_;
    Reused<std::int64_t> start_;
};

// Taps of weights [D, S, kh, kw] that are moved by `stride` over an image with `padding`.
struct Filter {
    Index sources, height, width, stride, padding;

    Index taps() const { return height * width; }
    Index columns() const { return sources * taps(); }
    Index output(Index size, Index kernel) const {
        return (size + 2 * padding - kernel) / stride + 1;
    }

    // Of an image x, for the convolution.
    Planes planes(const Shape& x, Index vectors = tile_vectors) const {
        return {x, stride, padding, padding, height, width, output(x.height, height),
                output(x.width, width), vectors};
    }
};

// The list of a convolution: row d reads planes of x.
class Forward {
  public:
    // weight [D, filter.columns()], or null for 0
    Forward(Bits& bits, const float* weight, const Filter& filter, const Planes& planes,
            int threads)
        : edges_(static_cast<std::size_t>(bits.size())), bits_(bits) {
        Reused<std::int32_t> offsets(static_cast<std::size_t>(bits.words * 64));
        for (Index s = 0, e = 0; s < filter.sources; ++s)
            for (Index i = 0; i < filter.height; ++i)
                for (Index j = 0; j < filter.width; ++j)
                    offsets[static_cast<std::size_t>(e++)] =
                        static_cast<std::int32_t>(planes.offset(s, i, j));
        const std::int32_t* table = offsets.data();
        Edge* edges = edges_.data();
        const Index columns = filter.columns();
        if (!weight) {
            bits.each(threads,
                      [=](Index, Index e, std::int64_t k) { edges[k] = {table[e], 0.0f}; });
            return;
        }
        parallel(bits.rows, threads, [&](int, Index begin, Index end) {
            for (Index d = begin; d < end; ++d) {
                Edge *to = edges + bits.start()[d], *const last = edges + bits.start()[end];
                const float* row = weight + d * columns;
                for (Index w = 0; w < bits.words; ++w) {
                    const std::uint64_t word = bits.row(d)[w];
                    const bool room = to + bits_in(word) + 3 <= last &&
                                      d * columns + w * 64 + 64 <= bits.rows * columns;
                    to = room ? append(word, table + w * 64, row + w * 64, to)
                              : exactly(word, table + w * 64, row + w * 64, to);
                }
            }
        });
    }

    Edges list() { return {bits_.rows, bits_.start(), edges_.data()}; }

  private:
    Reused<Edge> edges_;
    Bits& bits_;

    static Edge* exactly(std::uint64_t word, const std::int32_t* table, const float* row,
                         Edge* to) {
        for (; word; word &= word - 1) {
            const int i = __builtin_ctzll(word);
            *to++ = {table[i], row[i]};
        }
        return to;
    }

    // The same, four at a time, which is predicted better. Reads 64 of the row and writes up to
    // three edges too far, into what is written next.
    static Edge* append(std::uint64_t word, const std::int32_t* table, const float* row, Edge* to) {
        constexpr std::uint64_t top = std::uint64_t{1} << 63;
        Edge* const end = to + bits_in(word);
        for (; to < end; to += 4)
            for (int k = 0; k < 4; ++k) {
                const int i = __builtin_ctzll(word | top);
                to[k] = {table[i], row[i]};
                word &= word - 1;
            }
        return end;
    }
};

// The list of the input gradient: row (s, phase) reads planes of the gradient, the phases being
// those of the input under the filter's stride.
class Backward {
  public:
    // The gradient [N, D, H', W'] as planes, for an input of height x width.
    static Planes planes(const Filter& f, const Shape& grad, Index height, Index width) {
        const Index top = -first(f, f.height), left = -first(f, f.width);
        return {grad, 1, top, left, last(f) + top + 1, last(f) + left + 1,
                ceil_div(height, f.stride), ceil_div(width, f.stride)};
    }

    Backward(Bits& bits, const float* weight, const Filter& f, const Planes& planes)
        : start_(static_cast<std::size_t>(f.sources * f.stride * f.stride + 1)),
          edges_(static_cast<std::size_t>(bits.size())),
          rows_(f.sources * f.stride * f.stride) {
        const Index columns = f.columns();
        Reused<std::int32_t> row_of(static_cast<std::size_t>(columns));
        Reused<std::int32_t> offsets(static_cast<std::size_t>(columns));
        Index e = 0;
        for (Index s = 0; s < f.sources; ++s)
            for (Index i = 0; i < f.height; ++i)
                for (Index j = 0; j < f.width; ++j, ++e) {
                    const Index a = mod(i - f.padding, f.stride), b = mod(j - f.padding, f.stride);
                    const Index r = (a + f.padding - i) / f.stride + planes.top;
                    const Index c = (b + f.padding - j) / f.stride + planes.left;
                    row_of[static_cast<std::size_t>(e)] =
                        static_cast<std::int32_t>((s * f.stride + a) * f.stride + b);
                    offsets[static_cast<std::size_t>(e)] =
                        static_cast<std::int32_t>(r * planes.grid.columns + c);
                }
        std::int64_t* start = start_.data();
        std::fill(start, start + rows_ + 1, 0);
        const std::int32_t *to_row = row_of.data(), *table = offsets.data();
        bits.each(1, [=](Index, Index e, std::int64_t) { ++start[to_row[e] + 1]; });
        for (Index r = 0; r < rows_; ++r) start[r + 1] += start[r];
        Reused<std::int64_t> next(static_cast<std::size_t>(rows_ + 1));
        std::memcpy(next.data(), start, static_cast<std::size_t>(rows_) * sizeof(*start));
        std::int64_t* place = next.data();
        Edge* edges = edges_.data();
        const Index line = planes.phases() * planes.stride;
        bits.each(1, [=](Index d, Index e, std::int64_t) {
            edges[place[to_row[e]]++] = {static_cast<std::int32_t>(d * line + table[e]),
                                         weight[d * columns + e]};
        });
    }

    Edges list() { return {rows_, start_.data(), edges_.data()}; }

  private:
    Reused<std::int64_t> start_;
    Reused<Edge> edges_;
    Index rows_;

    static Index mod(Index a, Index b) { return a - floor_div(a, b) * b; }
    // The smallest and the largest step from a pixel, by stride, to an output it acts on.
    static Index first(const Filter& f, Index kernel) {
        return floor_div(f.padding - kernel + 1, f.stride);
    }
    static Index last(const Filter& f) { return floor_div(f.stride - 1 + f.padding, f.stride); }
};

}  // namespace WIRING_ISA
