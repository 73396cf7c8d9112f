// What the L1 kernels need of a vector beside native/floats.h.
#pragma once

#include <cstring>

#include "native/floats.h"

namespace WIRING_ISA {
namespace {

#if defined(WIRING_ISA_avx512) || defined(WIRING_ISA_avx512popcnt)

inline Floats operator&(Floats a, Floats b) { return {_mm512_and_ps(a.v, b.v)}; }
// The smaller of |a| and 1 with the sign of a: one instruction, but NaN gives ±1.
inline Floats fast_clamp(Floats a) { return {_mm512_range_ps(a.v, _mm512_set1_ps(1.0f), 0b0010)}; }

#else

#if defined(WIRING_ISA_avx2)
inline Floats operator&(Floats a, Floats b) { return {_mm256_and_ps(a.v, b.v)}; }
#elif defined(WIRING_ISA_neon)
inline Floats operator&(Floats a, Floats b) {
    return {vreinterpretq_f32_u32(
        vandq_u32(vreinterpretq_u32_f32(a.v), vreinterpretq_u32_f32(b.v)))};
}
#else
inline Floats operator&(Floats a, Floats b) {
    std::uint32_t p[Floats::lanes], q[Floats::lanes];
    std::memcpy(p, a.v, sizeof p);
    std::memcpy(q, b.v, sizeof q);
    for (int i = 0; i < Floats::lanes; ++i) p[i] &= q[i];
    std::memcpy(a.v, p, sizeof p);
    return a;
}
#endif
inline Floats fast_clamp(Floats a) { return min(max(a, Floats::all(-1.0f)), Floats::all(1.0f)); }

#endif

// max and min give their second operand where they do not compare: NaN stays.
inline Floats clamp(Floats a) { return min(Floats::all(1.0f), max(Floats::all(-1.0f), a)); }

// -1, 0 or 1. The product cannot underflow: the smallest float is 2^-149.
inline Floats sign(Floats a) {
    const Floats large = Floats::all(0x1p100f);
    return clamp(a * large * large);
}

inline float as_float(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace
}  // namespace WIRING_ISA
