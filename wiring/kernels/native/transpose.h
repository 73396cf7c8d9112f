// Transposed copies of float32 matrices, in blocks that stay in registers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "native/floats.h"

namespace WIRING_ISA {
namespace transposing {

#if defined(WIRING_ISA_avx512) || defined(WIRING_ISA_avx512popcnt)

constexpr int side = 16;

// Within each 128-bit lane, the 4x4 transpose of four rows.
inline void lanes4(__m512& a, __m512& b, __m512& c, __m512& d) {
    const __m512 ab0 = _mm512_unpacklo_ps(a, b), ab1 = _mm512_unpackhi_ps(a, b);
    const __m512 cd0 = _mm512_unpacklo_ps(c, d), cd1 = _mm512_unpackhi_ps(c, d);
    a = _mm512_shuffle_ps(ab0, cd0, 0x44);
    b = _mm512_shuffle_ps(ab0, cd0, 0xee);
    c = _mm512_shuffle_ps(ab1, cd1, 0x44);
    d = _mm512_shuffle_ps(ab1, cd1, 0xee);
}

inline __m512 quarters(const float* p, std::int64_t step) {
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(p));
    v = _mm512_insertf32x4(v, _mm_loadu_ps(p + step), 1);
    v = _mm512_insertf32x4(v, _mm_loadu_ps(p + 2 * step), 2);
    return _mm512_insertf32x4(v, _mm_loadu_ps(p + 3 * step), 3);
}

inline void whole(const float* src, std::int64_t from, float* dst, std::int64_t to) {
    for (int k = 0; k < 16; k += 4) {
        __m512 v[4];
        for (int i = 0; i < 4; ++i) v[i] = quarters(src + i * from + k, 4 * from);
        lanes4(v[0], v[1], v[2], v[3]);
        for (int i = 0; i < 4; ++i) _mm512_storeu_ps(dst + (k + i) * to, v[i]);
    }
}

inline void part(const float* src, std::int64_t from, int rows, int columns, float* dst,
                 std::int64_t to) {
    __m512 v[16];
    for (int i = 0; i < 16; ++i)
        v[i] = i < rows ? Floats::load(src + i * from, columns).v : _mm512_setzero_ps();
    // v[i]: columns 4q..4q+3 of row i in lane q. After lanes4, v[4g + c]: rows 4g..4g+3 of
    // column 4q + c in lane q.
    for (int i = 0; i < 16; i += 4) lanes4(v[i], v[i + 1], v[i + 2], v[i + 3]);
    for (int c = 0; c < 4 && c < columns; ++c) {
        const __m512 a = _mm512_shuffle_f32x4(v[c], v[c + 4], 0x88);
        const __m512 b = _mm512_shuffle_f32x4(v[c + 8], v[c + 12], 0x88);
        const __m512 d = _mm512_shuffle_f32x4(v[c], v[c + 4], 0xdd);
        const __m512 e = _mm512_shuffle_f32x4(v[c + 8], v[c + 12], 0xdd);
        Floats{_mm512_shuffle_f32x4(a, b, 0x88)}.store(dst + c * to, rows);
        if (c + 4 < columns)
            Floats{_mm512_shuffle_f32x4(d, e, 0x88)}.store(dst + (c + 4) * to, rows);
        if (c + 8 < columns)
            Floats{_mm512_shuffle_f32x4(a, b, 0xdd)}.store(dst + (c + 8) * to, rows);
        if (c + 12 < columns)
            Floats{_mm512_shuffle_f32x4(d, e, 0xdd)}.store(dst + (c + 12) * to, rows);
    }
}

#elif defined(WIRING_ISA_avx2)

constexpr int side = 8;

inline void lanes4(__m256& a, __m256& b, __m256& c, __m256& d) {
    const __m256 ab0 = _mm256_unpacklo_ps(a, b), ab1 = _mm256_unpackhi_ps(a, b);
    const __m256 cd0 = _mm256_unpacklo_ps(c, d), cd1 = _mm256_unpackhi_ps(c, d);
    a = _mm256_shuffle_ps(ab0, cd0, 0x44);
    b = _mm256_shuffle_ps(ab0, cd0, 0xee);
    c = _mm256_shuffle_ps(ab1, cd1, 0x44);
    d = _mm256_shuffle_ps(ab1, cd1, 0xee);
}

inline __m256 halves(const float* p, std::int64_t step) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + step), 1);
}

inline void whole(const float* src, std::int64_t from, float* dst, std::int64_t to) {
    for (int k = 0; k < 8; k += 4) {
        __m256 v[4];
        for (int i = 0; i < 4; ++i) v[i] = halves(src + i * from + k, 4 * from);
        lanes4(v[0], v[1], v[2], v[3]);
        for (int i = 0; i < 4; ++i) _mm256_storeu_ps(dst + (k + i) * to, v[i]);
    }
}

inline void part(const float* src, std::int64_t from, int rows, int columns, float* dst,
                 std::int64_t to) {
    __m256 v[8];
    for (int i = 0; i < 8; ++i)
        v[i] = i < rows ? Floats::load(src + i * from, columns).v : _mm256_setzero_ps();
    lanes4(v[0], v[1], v[2], v[3]);
    lanes4(v[4], v[5], v[6], v[7]);
    for (int c = 0; c < 4 && c < columns; ++c) {
        Floats{_mm256_permute2f128_ps(v[c], v[c + 4], 0x20)}.store(dst + c * to, rows);
        if (c + 4 < columns)
            Floats{_mm256_permute2f128_ps(v[c], v[c + 4], 0x31)}.store(dst + (c + 4) * to, rows);
    }
}

#else

constexpr int side = 8;

inline void part(const float* src, std::int64_t from, int rows, int columns, float* dst,
                 std::int64_t to) {
    for (int c = 0; c < columns; ++c)
        for (int r = 0; r < rows; ++r) dst[c * to + r] = src[r * from + c];
}

inline void whole(const float* src, std::int64_t from, float* dst, std::int64_t to) {
    part(src, from, side, side, dst, to);
}

#endif

}  // namespace transposing

// dst[c * to + r] = src[r * from + c] for r < rows and c < columns; touches nothing else. Goes
// along the rows of src, or of dst where `gathering`: what is longer streams through the caches.
template <bool gathering>
inline void transpose(const float* src, std::int64_t from, std::int64_t rows, std::int64_t columns,
                      float* dst, std::int64_t to) {
    using namespace transposing;
    const std::int64_t outer = gathering ? columns : rows, inner = gathering ? rows : columns;
    for (std::int64_t i = 0; i < outer; i += side)
        for (std::int64_t j = 0; j < inner; j += side) {
            const std::int64_t r = gathering ? j : i, c = gathering ? i : j;
            const auto height = static_cast<int>(std::min<std::int64_t>(side, rows - r));
            const auto width = static_cast<int>(std::min<std::int64_t>(side, columns - c));
            const float* block = src + r * from + c;
            if (height == side && width == side)
                whole(block, from, dst + c * to + r, to);
            else
                part(block, from, height, width, dst + c * to + r, to);
        }
}

}  // namespace WIRING_ISA
