// A vector of float32 lanes: the same few operations on every instruction set.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(WIRING_ISA_avx512) || defined(WIRING_ISA_avx512popcnt) || defined(WIRING_ISA_avx2)
#include <immintrin.h>
#elif defined(WIRING_ISA_neon)
#include <arm_neon.h>
#endif

namespace WIRING_ISA {

#if defined(WIRING_ISA_avx512) || defined(WIRING_ISA_avx512popcnt)

struct Floats {
    static constexpr int lanes = 16;
    __m512 v;

    static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
    static Floats all(float x) { return {_mm512_set1_ps(x)}; }
    static Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
    // The first n lanes, 0 in the others; reads no further.
    static Floats load(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    void store(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), v); }
    friend Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
    friend Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
    friend Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
    friend Floats max(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
    friend Floats min(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
    friend Floats abs(Floats a) { return {_mm512_abs_ps(a.v)}; }
    // a * b + c, rounded once where the machine can.
    friend Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
    float sum() const { return _mm512_reduce_add_ps(v); }
};

#elif defined(WIRING_ISA_avx2)

struct Floats {
    static constexpr int lanes = 8;
    __m256 v;

    static __m256i first(int n) {
        alignas(32) static const std::int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ones + 8 - n));
    }
    static Floats all(float x) { return {_mm256_set1_ps(x)}; }
    static Floats load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static Floats load(const float* p, int n) { return {_mm256_maskload_ps(p, first(n))}; }
    void store(float* p) const { _mm256_storeu_ps(p, v); }
    void store(float* p, int n) const { _mm256_maskstore_ps(p, first(n), v); }
    friend Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.v, b.v)}; }
    friend Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.v, b.v)}; }
    friend Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.v, b.v)}; }
    friend Floats max(Floats a, Floats b) { return {_mm256_max_ps(a.v, b.v)}; }
    friend Floats min(Floats a, Floats b) { return {_mm256_min_ps(a.v, b.v)}; }
    friend Floats abs(Floats a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
    friend Floats fma(Floats a, Floats b, Floats c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
    float sum() const {
        __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        s = _mm_add_ps(s, _mm_movehl_ps(s, s));
        return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
    }
};

#elif defined(WIRING_ISA_neon)

struct Floats {
    static constexpr int lanes = 4;
    float32x4_t v;

    static Floats all(float x) { return {vdupq_n_f32(x)}; }
    static Floats load(const float* p) { return {vld1q_f32(p)}; }
    static Floats load(const float* p, int n) {
        float part[4] = {};
        for (int i = 0; i < n; ++i) part[i] = p[i];
        return load(part);
    }
    void store(float* p) const { vst1q_f32(p, v); }
    void store(float* p, int n) const {
        float part[4];
        store(part);
        for (int i = 0; i < n; ++i) p[i] = part[i];
    }
    friend Floats operator+(Floats a, Floats b) { return {vaddq_f32(a.v, b.v)}; }
    friend Floats operator-(Floats a, Floats b) { return {vsubq_f32(a.v, b.v)}; }
    friend Floats operator*(Floats a, Floats b) { return {vmulq_f32(a.v, b.v)}; }
    // As on x86: the second operand where they do not compare.
    friend Floats max(Floats a, Floats b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }
    friend Floats min(Floats a, Floats b) { return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)}; }
    friend Floats abs(Floats a) { return {vabsq_f32(a.v)}; }
    friend Floats fma(Floats a, Floats b, Floats c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
    float sum() const { return vaddvq_f32(v); }
};

#else

struct Floats {
    static constexpr int lanes = 4;
    float v[4];

    template <class F>
    static Floats each(F f) {
        Floats r;
        for (int i = 0; i < lanes; ++i) r.v[i] = f(i);
        return r;
    }
    static Floats all(float x) { return each([=](int) { return x; }); }
    static Floats load(const float* p) { return each([=](int i) { return p[i]; }); }
    static Floats load(const float* p, int n) { return each([=](int i) { return i < n ? p[i] : 0.0f; }); }
    void store(float* p) const { store(p, lanes); }
    void store(float* p, int n) const {
        for (int i = 0; i < n; ++i) p[i] = v[i];
    }
    friend Floats operator+(Floats a, Floats b) { return each([&](int i) { return a.v[i] + b.v[i]; }); }
    friend Floats operator-(Floats a, Floats b) { return each([&](int i) { return a.v[i] - b.v[i]; }); }
    friend Floats operator*(Floats a, Floats b) { return each([&](int i) { return a.v[i] * b.v[i]; }); }
    friend Floats max(Floats a, Floats b) { return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
    friend Floats min(Floats a, Floats b) { return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
    friend Floats abs(Floats a) { return each([&](int i) { return std::fabs(a.v[i]); }); }
    friend Floats fma(Floats a, Floats b, Floats c) { return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
    float sum() const { return (v[0] + v[2]) + (v[1] + v[3]); }
};

#endif

}  // namespace WIRING_ISA
