// Popcounts by table, where no instruction counts words: pshufb looks 4 bits up for every byte.
//
// The table of an input's nibble a holds popcount(a xor i) at i; broadcast, it turns a row of the
// weights' nibbles, one byte a destination, into as many counts: 4 bits a byte and two
// instructions, a third of the work of counting the bits of xored words.
#pragma once

#include <immintrin.h>

#include <utility>

#include "native/parallel.h"
#include "xnor_conv2d/places.h"

namespace WIRING_ISA {
namespace {

using xnor_conv2d::panel;

constexpr std::int64_t table_columns = 64;  // destinations of one pass
constexpr std::int64_t table_panels = table_columns / panel;
constexpr int nibbles = 16;        // of a word
constexpr int words_in_bytes = 3;  // 48 counts of up to 4 fit a byte
// 16 bits hold the count of this many words.
constexpr std::int64_t most_table_words = 65535 / 64;

#if defined(WIRING_WIDE)
using Bytes = __m512i;
constexpr int table_pixels = 8;
inline Bytes table_of(const std::uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Bytes load_bytes(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
inline Bytes look_up(Bytes table, Bytes at) { return _mm512_shuffle_epi8(table, at); }
// Kept in order: reassociated sums of many rows at once would not fit the registers.
inline void add_to(Bytes& sum, Bytes b) {
    sum = _mm512_add_epi8(sum, b);
    __asm__("" : "+v"(sum));
}
inline Bytes sum_halves(Bytes a, Bytes b) { return _mm512_add_epi16(a, b); }
inline Bytes even_eights(Bytes v) { return _mm512_unpacklo_epi8(v, _mm512_setzero_si512()); }
inline Bytes odd_eights(Bytes v) { return _mm512_unpackhi_epi8(v, _mm512_setzero_si512()); }
inline Bytes no_bytes() { return _mm512_setzero_si512(); }
#else
using Bytes = __m256i;
constexpr int table_pixels = 4;
inline Bytes table_of(const std::uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Bytes load_bytes(const std::uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline Bytes look_up(Bytes table, Bytes at) { return _mm256_shuffle_epi8(table, at); }
// Kept in order: reassociated sums of many rows at once would not fit the registers.
inline void add_to(Bytes& sum, Bytes b) {
    sum = _mm256_add_epi8(sum, b);
    __asm__("" : "+x"(sum));
}
inline Bytes sum_halves(Bytes a, Bytes b) { return _mm256_add_epi16(a, b); }
inline Bytes even_eights(Bytes v) { return _mm256_unpacklo_epi8(v, _mm256_setzero_si256()); }
inline Bytes odd_eights(Bytes v) { return _mm256_unpackhi_epi8(v, _mm256_setzero_si256()); }
inline Bytes no_bytes() { return _mm256_setzero_si256(); }
#endif

constexpr int byte_vectors = table_columns / sizeof(Bytes);

struct Tables {
    alignas(64) std::uint8_t count[16][16];

    Tables() {
        for (int a = 0; a < 16; ++a)
            for (int i = 0; i < 16; ++i)
                count[a][i] = static_cast<std::uint8_t>(__builtin_popcount(static_cast<unsigned>(a ^ i)));
    }
};

// Every nibble of `count` words as the byte offset of its table.
inline void table_offsets(const std::uint64_t* words, std::int64_t count, std::uint8_t* offsets) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(words);
    for (std::int64_t i = 0; i < 8 * count; ++i) {
        offsets[2 * i] = static_cast<std::uint8_t>(bytes[i] << 4);
        offsets[2 * i + 1] = bytes[i] & 0xf0;
    }
}

// 16 words side by side → rows of their nibbles, lowest first, `table_columns` apart.
inline void nibble_rows(const std::uint64_t* words, std::uint8_t* rows) {
    // Bytes of two words interleaved, then 8 x 8 pairs of bytes transposed.
    const __m128i zip = _mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    __m128i a[8], b[8];
    for (int i = 0; i < 8; ++i)
        a[i] = _mm_shuffle_epi8(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(words + 2 * i)), zip);
    for (int i = 0; i < 4; ++i) {
        b[2 * i] = _mm_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
    }
    for (int h = 0; h < 2; ++h)
        for (int i = 0; i < 2; ++i) {
            a[4 * h + 2 * i] = _mm_unpacklo_epi32(b[4 * h + i], b[4 * h + 2 + i]);
            a[4 * h + 2 * i + 1] = _mm_unpackhi_epi32(b[4 * h + i], b[4 * h + 2 + i]);
        }
    const __m128i low = _mm_set1_epi8(15);
    for (int i = 0; i < 4; ++i)
        for (int h = 0; h < 2; ++h) {
            const __m128i row = h ? _mm_unpackhi_epi64(a[i], a[4 + i])
                                  : _mm_unpacklo_epi64(a[i], a[4 + i]);
            auto* to = reinterpret_cast<__m128i*>(rows + (4 * i + 2 * h) * table_columns);
            _mm_storeu_si128(to, _mm_and_si128(row, low));
            _mm_storeu_si128(to + table_columns / sizeof(__m128i),
                             _mm_and_si128(_mm_srli_epi16(row, 4), low));
        }
}

// The nibbles of all words of up to 4 panels from `sign` on: [length][nibbles][table_columns].
inline void all_nibble_rows(const std::uint64_t* sign, std::int64_t panels, std::int64_t length,
                            std::uint8_t* rows) {
    if (panels < table_panels)
        std::memset(rows, 0, static_cast<std::size_t>(length * nibbles * table_columns));
    for (std::int64_t p = 0; p < std::min(panels, table_panels); ++p)
        for (std::int64_t k = 0; k < length; ++k)
            nibble_rows(sign + (p * length + k) * panel,
                        rows + k * nibbles * table_columns + p * panel);
}

// counts [P][table_columns] of P pixels; x are table offsets.
template <int P>
void table_tile(const Tables& tables, const std::uint8_t* x, const Place* places,
                const Step* steps, std::int64_t length, const std::uint8_t* rows,
                std::int32_t* counts) {
    constexpr int V = byte_vectors;
    Bytes even[P][V], odd[P][V];
    for (int p = 0; p < P; ++p)
        for (int v = 0; v < V; ++v) even[p][v] = odd[p][v] = no_bytes();
    for (std::int64_t k = 0; k < length; k += words_in_bytes) {
        Bytes sums[P][V];
        for (int p = 0; p < P; ++p)
            for (int v = 0; v < V; ++v) sums[p][v] = no_bytes();
        for (std::int64_t j = k; j < std::min(length, k + words_in_bytes); ++j) {
            const std::uint8_t* row = rows + steps[j].w * nibbles * table_columns;
            const std::uint8_t* from[P];
            for (int p = 0; p < P; ++p) from[p] = x + (places[p].x + steps[j].x) * nibbles;
            for (int half = 0; half < nibbles; half += 4)
#pragma GCC unroll 4
                for (int t = 0; t < 4; ++t, row += table_columns) {
                    Bytes index[V];
                    for (int v = 0; v < V; ++v) index[v] = load_bytes(row + v * sizeof(Bytes));
                    for (int p = 0; p < P; ++p) {
                        const Bytes table = table_of(tables.count[0] + from[p][half + t]);
                        for (int v = 0; v < V; ++v) add_to(sums[p][v], look_up(table, index[v]));
                    }
                }
        }
        for (int p = 0; p < P; ++p)
            for (int v = 0; v < V; ++v) {
                even[p][v] = sum_halves(even[p][v], even_eights(sums[p][v]));
                odd[p][v] = sum_halves(odd[p][v], odd_eights(sums[p][v]));
            }
    }
    for (int p = 0; p < P; ++p)
        for (int v = 0; v < V; ++v) {
            alignas(64) std::uint16_t half[2][sizeof(Bytes) / 2];
            std::memcpy(half[0], &even[p][v], sizeof(Bytes));
            std::memcpy(half[1], &odd[p][v], sizeof(Bytes));
            std::int32_t* to = counts + p * table_columns + v * sizeof(Bytes);
            for (std::size_t lane = 0; lane < sizeof(Bytes) / 16; ++lane)
                for (int h = 0; h < 2; ++h, to += 8) {
                    const auto* eight = reinterpret_cast<const __m128i*>(half[h] + 8 * lane);
                    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                                        _mm256_cvtepu16_epi32(_mm_load_si128(eight)));
                }
        }
}

// The tile of `count` pixels.
template <int... P, class... Arguments>
inline void table_block(std::integer_sequence<int, P...>, int count,
                        Arguments&&... arguments) {
    (void)((count == P + 1 && (table_tile<P + 1>(arguments...), true)) || ...);
}

}  // namespace
}  // namespace WIRING_ISA
