// Sums of |a - b| over unsigned bytes, eight at a time.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(WIRING_ISA_avx512) || defined(WIRING_ISA_avx512popcnt) || defined(WIRING_ISA_avx2)
#include <immintrin.h>
#elif defined(WIRING_ISA_neon)
#include <arm_neon.h>
#endif

namespace WIRING_ISA {

// `Bytes` holds `groups` groups of 8 bytes; `ByteSums` one sum for each group, of 16 bits while it
// grows: after `most_distances` it must be added to another, which only takes whole sums.
constexpr int most_distances = 32;

#if defined(WIRING_ISA_avx512) || defined(WIRING_ISA_avx512popcnt)

struct Bytes {
    static constexpr int groups = 8;
    __m512i v;

    static Bytes load(const std::uint8_t* p) { return {_mm512_loadu_si512(p)}; }
    static Bytes repeat(const std::uint8_t* group) {
        long long value;
        std::memcpy(&value, group, sizeof value);
        return {_mm512_set1_epi64(value)};
    }
    friend Bytes operator&(Bytes a, Bytes b) { return {_mm512_and_si512(a.v, b.v)}; }
};

struct ByteSums {
    __m512i v = _mm512_setzero_si512();

    void add_distance(Bytes a, Bytes b) {
        // Saturating, which cannot happen: such additions keep off the port that sad needs.
        v = _mm512_adds_epu16(v, _mm512_sad_epu8(a.v, b.v));
    }
    void add(ByteSums other) { v = _mm512_add_epi64(v, other.v); }
    void store(std::int32_t* p) const {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi64_epi32(v));
    }
};

#elif defined(WIRING_ISA_avx2)

struct Bytes {
    static constexpr int groups = 4;
    __m256i v;

    static Bytes load(const std::uint8_t* p) {
        return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
    }
    static Bytes repeat(const std::uint8_t* group) {
        long long value;
        std::memcpy(&value, group, sizeof value);
        return {_mm256_set1_epi64x(value)};
    }
    friend Bytes operator&(Bytes a, Bytes b) { return {_mm256_and_si256(a.v, b.v)}; }
};

struct ByteSums {
    __m256i v = _mm256_setzero_si256();

    void add_distance(Bytes a, Bytes b) { v = _mm256_add_epi64(v, _mm256_sad_epu8(a.v, b.v)); }
    void add(ByteSums other) { v = _mm256_add_epi64(v, other.v); }
    void store(std::int32_t* p) const {
        const __m256i low = _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(low));
    }
};

#elif defined(WIRING_ISA_neon)

struct Bytes {
    static constexpr int groups = 2;
    uint8x16_t v;

    static Bytes load(const std::uint8_t* p) { return {vld1q_u8(p)}; }
    static Bytes repeat(const std::uint8_t* group) {
        const uint8x8_t half = vld1_u8(group);
        return {vcombine_u8(half, half)};
    }
    friend Bytes operator&(Bytes a, Bytes b) { return {vandq_u8(a.v, b.v)}; }
};

struct ByteSums {
    uint32x4_t v = vdupq_n_u32(0);

    void add_distance(Bytes a, Bytes b) { v = vpadalq_u16(v, vpaddlq_u8(vabdq_u8(a.v, b.v))); }
    void add(ByteSums other) { v = vaddq_u32(v, other.v); }
    void store(std::int32_t* p) const {
        const uint32x4_t pairs = vpaddq_u32(v, v);
        vst1_s32(p, vreinterpret_s32_u32(vget_low_u32(pairs)));
    }
};

#else

struct Bytes {
    static constexpr int groups = 1;
    std::uint8_t v[8];

    static Bytes load(const std::uint8_t* p) {
        Bytes r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
    static Bytes repeat(const std::uint8_t* group) { return load(group); }
    friend Bytes operator&(Bytes a, Bytes b) {
        for (int i = 0; i < 8; ++i) a.v[i] &= b.v[i];
        return a;
    }
};

struct ByteSums {
    std::int32_t v = 0;

    void add_distance(Bytes a, Bytes b) {
        for (int i = 0; i < 8; ++i) v += std::abs(int{a.v[i]} - int{b.v[i]});
    }
    void add(ByteSums other) { v += other.v; }
    void store(std::int32_t* p) const { *p = v; }
};

#endif

}  // namespace WIRING_ISA
