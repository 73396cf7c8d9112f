// Sums of |a - b| over 4 bytes at 8 neighbouring places, and the byte transposes they need.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "native/bytes.h"

namespace WIRING_ISA {

// 16 bytes of every group are 16 neighbouring pixels of one channel; `SlideSums` holds 8 sums of 16
// bits for each group: those of windows that start at its first 8 pixels. A sum grows by up to
// 1020 a step: after `most_slides` it must be taken out.
constexpr int slide_pixels = 8;
constexpr int most_slides = 64;

#if defined(WIRING_ISA_avx512) || defined(WIRING_ISA_avx512popcnt)

struct Slide {
    static constexpr int groups = 4;
    __m512i v;

    static Slide load(const std::uint8_t* p) { return {_mm512_loadu_si512(p)}; }
};

struct SlideSums {
    __m512i v = _mm512_setzero_si512();

    // Windows of 4 pixels from pixel 4 * Quad on, against 4 taps.
    template <int Quad>
    void add(Slide x, std::int32_t taps) {
        constexpr int order = Quad | (Quad + 1) << 2 | (Quad + 1) << 4 | (Quad + 2) << 6;
        // Saturating, which cannot happen: such additions keep off the port that dbsad needs.
        v = _mm512_adds_epu16(v, _mm512_dbsad_epu8(_mm512_set1_epi32(taps), x.v, order));
    }
    // p[8 * groups] += the sums.
    void add_to(std::int32_t* p) const {
        const __m256i halves[2] = {_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1)};
        for (int i = 0; i < 2; ++i) {
            std::int32_t* to = p + 16 * i;
            _mm512_storeu_si512(to, _mm512_add_epi32(_mm512_loadu_si512(to),
                                                     _mm512_cvtepu16_epi32(halves[i])));
        }
    }
};

#elif defined(WIRING_ISA_avx2)

struct Slide {
    static constexpr int groups = 2;
    __m256i v;

    static Slide load(const std::uint8_t* p) {
        return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
    }
};

struct SlideSums {
    __m256i v = _mm256_setzero_si256();

    template <int Quad>
    void add(Slide x, std::int32_t taps) {
        constexpr int order = Quad << 2 | Quad << 5;
        v = _mm256_add_epi16(v, _mm256_mpsadbw_epu8(x.v, _mm256_set1_epi32(taps), order));
    }
    void add_to(std::int32_t* p) const {
        const __m128i halves[2] = {_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)};
        for (int i = 0; i < 2; ++i) {
            auto* to = reinterpret_cast<__m256i*>(p + 8 * i);
            _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to),
                                                     _mm256_cvtepu16_epi32(halves[i])));
        }
    }
};

#else

struct Slide {
    static constexpr int groups = 1;
    std::uint8_t v[16];

    static Slide load(const std::uint8_t* p) {
        Slide r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
};

struct SlideSums {
    std::uint16_t v[slide_pixels] = {};

    template <int Quad>
    void add(const Slide& x, std::int32_t taps) {
        std::uint8_t w[4];
        std::memcpy(w, &taps, sizeof w);
        for (int j = 0; j < 4; ++j)
            for (int i = 0; i < slide_pixels; ++i)
                v[i] = static_cast<std::uint16_t>(
                    v[i] + std::abs(int{x.v[4 * Quad + i + j]} - int{w[j]}));
    }
    void add_to(std::int32_t* p) const {
        for (int i = 0; i < slide_pixels; ++i) p[i] += v[i];
    }
};

#endif

// to[c * step] .. + 15: byte c of each of 16 rows, for c < columns.
inline void transpose_bytes(const std::uint8_t* const (&rows)[16], int columns, std::uint8_t* to,
                            std::int64_t step) {
#if defined(WIRING_ISA_avx512) || defined(WIRING_ISA_avx512popcnt) || defined(WIRING_ISA_avx2)
    __m128i a[16], b[16];
    if (columns == 16) {
        for (int i = 0; i < 16; ++i)
            a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i]));
    } else {
        for (int i = 0; i < 16; ++i) {
            alignas(16) std::uint8_t part[16] = {};
            std::memcpy(part, rows[i], static_cast<std::size_t>(columns));
            a[i] = _mm_load_si128(reinterpret_cast<const __m128i*>(part));
        }
    }
    // Four times: interleave rows i and i + 8.
    const auto interleave = [](const __m128i* from, __m128i* into) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
            into[2 * i] = _mm_unpacklo_epi8(from[i], from[i + 8]);
            into[2 * i + 1] = _mm_unpackhi_epi8(from[i], from[i + 8]);
        }
    };
    interleave(a, b);
    interleave(b, a);
    interleave(a, b);
    interleave(b, a);
    for (int c = 0; c < columns; ++c)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + c * step), a[c]);
#else
    for (int c = 0; c < columns; ++c)
        for (int i = 0; i < 16; ++i) to[c * step + i] = rows[i][c];
#endif
}

// to[i * step + d] = start[i] - sums[d * stride + i] for i < pixels and d < some, of 8 by 8.
inline void subtract_transposed(const std::int32_t* start, const std::int32_t* sums,
                                std::int64_t stride, int pixels, int some, std::int32_t* to,
                                std::int64_t step) {
#if defined(WIRING_ISA_avx512) || defined(WIRING_ISA_avx512popcnt) || defined(WIRING_ISA_avx2)
    const auto at = [](const std::int32_t* p) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    };
    const __m256i first = at(start);
    __m256i r[8], pairs[8], fours[8];
    for (int d = 0; d < 8; ++d) r[d] = _mm256_sub_epi32(first, at(sums + d * stride));
    for (int i = 0; i < 4; ++i) {
        pairs[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            fours[i + 2 * j] = _mm256_unpacklo_epi64(pairs[i + j], pairs[i + j + 2]);
            fours[i + 2 * j + 1] = _mm256_unpackhi_epi64(pairs[i + j], pairs[i + j + 2]);
        }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x20);
        r[i + 4] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x31);
    }
    for (int i = 0; i < pixels; ++i) {
        if (some == 8) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * step), r[i]);
        } else {
            std::int32_t part[8];
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(part), r[i]);
            std::memcpy(to + i * step, part, static_cast<std::size_t>(some) * sizeof *part);
        }
    }
#else
    for (int i = 0; i < pixels; ++i)
        for (int d = 0; d < some; ++d) to[i * step + d] = start[i] - sums[d * stride + i];
#endif
}

}  // namespace WIRING_ISA
