// Tests on elements, and their answers as 64-bit words: bit i % 64 of word i / 64 for channel i.
//
// A test says which elements of a row of channels, or of a row of pixels of one channel, get a
// 1. The compiler's own vectors do the work where no instruction set is named.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(WIRING_ISA_avx512) || defined(WIRING_ISA_avx512popcnt) || defined(WIRING_ISA_avx2)
#include <immintrin.h>
#elif defined(WIRING_ISA_neon)
#include <arm_neon.h>
#endif
#if defined(WIRING_ISA_avx512) || defined(WIRING_ISA_avx512popcnt)
#define WIRING_WIDE 1
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
// GCC bug 105593: these warn about the undefined operands of its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#elif defined(__GNUC__) && !defined(__clang__)
// Vectors wider than a register are passed in pieces: of no interest within one file.
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace WIRING_ISA {

constexpr std::int64_t word_bits = 64;

inline std::int64_t words_of(std::int64_t channels) {
    return (channels + word_bits - 1) / word_bits;
}

#if !defined(WIRING_WIDE)
typedef float Float8 __attribute__((vector_size(32)));
typedef std::int32_t Int8x32 __attribute__((vector_size(32)));
typedef std::uint8_t Byte8 __attribute__((vector_size(8)));

template <class V, class T>
inline V load8(const T* p) {
    V v;
    static_assert(sizeof v == 8 * sizeof(T), "8 elements");
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline unsigned bits8(const Int8x32& mask) {
#if defined(WIRING_ISA_avx2)
    return static_cast<unsigned>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#elif defined(WIRING_ISA_neon)
    const Int8x32 place = {1, 2, 4, 8, 16, 32, 64, 128};
    std::int32_t part[8];
    const Int8x32 chosen = mask & place;
    std::memcpy(part, &chosen, sizeof part);
    return static_cast<unsigned>(vaddvq_s32(vld1q_s32(part)) + vaddvq_s32(vld1q_s32(part + 4)));
#else
    unsigned bits = 0;
    for (int i = 0; i < 8; ++i) bits |= static_cast<unsigned>(mask[i] & 1) << i;
    return bits;
#endif
}
#endif

// 1 where x >= threshold[channel], or >= 0 where there are none; NaN gives 0.
struct AtLeast {
    using Element = float;
    const float* threshold = nullptr;

    bool one(float x, std::int64_t c) const { return x >= (threshold ? threshold[c] : 0.0f); }
#if defined(WIRING_WIDE)
    static unsigned compare(__m512 x, __m512 t) { return _mm512_cmp_ps_mask(x, t, _CMP_GE_OQ); }
    unsigned channels(const float* x, std::int64_t c, __mmask16 k) const {
        const __m512 t = threshold ? _mm512_maskz_loadu_ps(k, threshold + c) : _mm512_setzero_ps();
        return compare(_mm512_maskz_loadu_ps(k, x), t) & k;
    }
    unsigned pixels(const float* x, std::int64_t c, __mmask16 k) const {
        return compare(_mm512_maskz_loadu_ps(k, x), _mm512_set1_ps(threshold ? threshold[c] : 0));
    }
#else
    Int8x32 channels(const float* x, std::int64_t c) const {
        return load8<Float8>(x) >= (threshold ? load8<Float8>(threshold + c) : Float8{});
    }
    Int8x32 pixels(const float* x, std::int64_t c) const {
        return load8<Float8>(x) >= (threshold ? threshold[c] : 0.0f) + Float8{};
    }
#endif
};

// 1 unless |x| >= 1: where the gradient of a clipped sign passes.
struct Within {
    using Element = float;

    bool one(float x, std::int64_t) const { return !(x >= 1.0f || x <= -1.0f); }
#if defined(WIRING_WIDE)
    unsigned channels(const float* x, std::int64_t c, __mmask16 k) const {
        return pixels(x, c, k) & k;
    }
    unsigned pixels(const float* x, std::int64_t, __mmask16 k) const {
        return _mm512_cmp_ps_mask(_mm512_abs_ps(_mm512_maskz_loadu_ps(k, x)), _mm512_set1_ps(1),
                                  _CMP_NGE_UQ);
    }
#else
    Int8x32 channels(const float* x, std::int64_t c) const { return pixels(x, c); }
    Int8x32 pixels(const float* x, std::int64_t) const {
        const Float8 v = load8<Float8>(x), one = 1.0f + Float8{};
        return ~((v >= one) | (v <= -one));
    }
#endif
};

// 1 where a byte has a bit of `wanted`.
struct AnyBit {
    using Element = std::uint8_t;
    std::uint8_t wanted = 255;

    bool one(std::uint8_t x, std::int64_t) const { return x & wanted; }
#if defined(WIRING_WIDE)
    unsigned channels(const std::uint8_t* x, std::int64_t c, __mmask16 k) const {
        return pixels(x, c, k);
    }
    unsigned pixels(const std::uint8_t* x, std::int64_t, __mmask16 k) const {
        return _mm_test_epi8_mask(_mm_maskz_loadu_epi8(k, x),
                                  _mm_set1_epi8(static_cast<char>(wanted)));
    }
#else
    Int8x32 channels(const std::uint8_t* x, std::int64_t c) const { return pixels(x, c); }
    Int8x32 pixels(const std::uint8_t* x, std::int64_t) const {
        return __builtin_convertvector(load8<Byte8>(x) & wanted, Int8x32) > 0;
    }
#endif
};

// The word of channels c..c+n-1 (n up to 64) that lie side by side at x.
template <class Test>
inline std::uint64_t word_of_row(const Test& test, const typename Test::Element* x, std::int64_t c,
                                 int n) {
    std::uint64_t word = 0;
    int i = 0;
#if defined(WIRING_WIDE)
    for (; i < n; i += 16) {
        const auto k = static_cast<__mmask16>(n - i >= 16 ? 0xffff : (1u << (n - i)) - 1);
        word |= std::uint64_t{test.channels(x + i, c + i, k)} << i;
    }
#else
    for (; i + 8 <= n; i += 8) word |= std::uint64_t{bits8(test.channels(x + i, c + i))} << i;
    for (; i < n; ++i) word |= std::uint64_t{test.one(x[i], c + i)} << i;
#endif
    return word;
}

// Words of channels c..c+n-1 at `pixels` (up to 16) pixels: x [n, plane] starts at channel c, and
// the word of pixel p goes to words[p * step].
template <class Test>
inline void words_of_planes(const Test& test, const typename Test::Element* x, std::int64_t plane,
                            std::int64_t c, int n, int pixels, std::uint64_t* words,
                            std::int64_t step) {
#if defined(WIRING_WIDE)
    const auto k = static_cast<__mmask16>((1u << pixels) - 1);
    alignas(64) std::uint32_t half[2][16];
    for (int h = 0; h < 2; ++h) {
        __m512i found = _mm512_setzero_si512();
        __m512i bit = _mm512_set1_epi32(1);
        for (int i = 32 * h; i < std::min(n, 32 * h + 32); ++i) {
            const auto yes = static_cast<__mmask16>(test.pixels(x + i * plane, c + i, k));
            found = _mm512_mask_or_epi32(found, yes, found, bit);
            bit = _mm512_add_epi32(bit, bit);
        }
        _mm512_store_si512(half[h], found);
    }
    for (int p = 0; p < pixels; ++p) words[p * step] = half[0][p] | std::uint64_t{half[1][p]} << 32;
#else
    for (int first = 0; first < pixels; first += 8) {
        const int count = std::min(8, pixels - first);
        Int8x32 half[2] = {};
        typename Test::Element tail[8] = {};
        for (int i = 0; i < n; ++i) {
            const auto* from = x + i * plane + first;
            if (count < 8) {
                std::memcpy(tail, from, static_cast<std::size_t>(count) * sizeof *tail);
                from = tail;
            }
            const auto bit = static_cast<std::int32_t>(1u << (i % 32));
            half[i / 32] |= test.pixels(from, c + i) & (bit + Int8x32{});
        }
        for (int p = 0; p < count; ++p)
            words[(first + p) * step] = static_cast<std::uint32_t>(half[0][p]) |
                                        std::uint64_t{static_cast<std::uint32_t>(half[1][p])} << 32;
    }
#endif
}

// Images [n, c, pixels] (planes) or [n, pixels, c] (rows): part of the pixels of all of them.
template <class Test>
void pack_part(const Test& test, const typename Test::Element* x, bool planes, std::int64_t c,
               std::int64_t pixels, std::int64_t begin, std::int64_t end, std::uint64_t* words) {
    const std::int64_t width = words_of(c);
    if (!planes) {
        for (std::int64_t row = begin; row < end; ++row)
            for (std::int64_t w = 0; w < width; ++w)
                words[row * width + w] =
                    word_of_row(test, x + row * c + w * word_bits, w * word_bits,
                                static_cast<int>(std::min(word_bits, c - w * word_bits)));
        return;
    }
    while (begin < end) {
        const std::int64_t image = begin / pixels, pixel = begin % pixels;
        const auto count =
            static_cast<int>(std::min({std::int64_t{16}, pixels - pixel, end - begin}));
        for (std::int64_t w = 0; w < width; ++w)
            words_of_planes(test, x + (image * c + w * word_bits) * pixels + pixel, pixels,
                            w * word_bits,
                            static_cast<int>(std::min(word_bits, c - w * word_bits)), count,
                            words + begin * width + w, width);
        begin += count;
    }
}

}  // namespace WIRING_ISA
