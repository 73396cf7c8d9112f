// Counting bits of many words at once: vectors of 64-bit lanes and carry-save adders.
//
// A counter takes words in pairs and keeps the lowest bit of every count in `ones`. The carry of
// two words has weight 2; on it goes to the next adder, or to a popcount. Combining xor with
// addition takes 3 instructions a pair where vpternlog is, so that a word costs 2.5 with
// VPOPCNTDQ instead of the 3 of xor, popcount and add (Harley-Seal; Muła, Kurz, Lemire: Faster
// population counts using AVX2 instructions, 2018).
#pragma once

#include <cstdint>
#include <cstring>

#include "native/words.h"

namespace WIRING_ISA {

#if defined(WIRING_WIDE)

using Words = __m512i;
inline Words load_words(const std::uint64_t* p) { return _mm512_loadu_si512(p); }
inline Words all_words(std::uint64_t x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
inline Words no_words() { return _mm512_setzero_si512(); }
inline Words parity(Words a, Words b, Words c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
inline Words majority(Words a, Words b, Words c) {
    return _mm512_ternarylogic_epi64(a, b, c, 0xe8);
}
inline Words both(Words a, Words b) { return _mm512_and_si512(a, b); }
inline Words either(Words a, Words b) { return _mm512_or_si512(a, b); }
inline Words differ(Words a, Words b) { return _mm512_xor_si512(a, b); }
inline Words add_bytes(Words a, Words b) { return _mm512_add_epi8(a, b); }
inline Words add_lanes(Words a, Words b) { return _mm512_add_epi64(a, b); }
inline Words bytes_sum(Words v) { return _mm512_sad_epu8(v, no_words()); }
template <int n>
inline Words times(Words v) { return _mm512_slli_epi64(v, n); }
inline Words byte_counts(Words v) {
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    return _mm512_add_epi8(_mm512_shuffle_epi8(table, both(v, low)),
                           _mm512_shuffle_epi8(table, both(_mm512_srli_epi16(v, 4), low)));
}
inline void store_counts(Words v, std::int32_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi64_epi32(v));
}
// One store for what is then loaded at once: two halves would not be forwarded.
inline void store_counts(Words a, Words b, std::int32_t* to) {
    const __m512i low = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi32(a, low, b));
}

#elif defined(WIRING_ISA_avx2)

using Words = __m256i;
inline Words load_words(const std::uint64_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline Words all_words(std::uint64_t x) { return _mm256_set1_epi64x(static_cast<long long>(x)); }
inline Words no_words() { return _mm256_setzero_si256(); }
inline Words both(Words a, Words b) { return _mm256_and_si256(a, b); }
inline Words either(Words a, Words b) { return _mm256_or_si256(a, b); }
inline Words differ(Words a, Words b) { return _mm256_xor_si256(a, b); }
inline Words add_bytes(Words a, Words b) { return _mm256_add_epi8(a, b); }
inline Words add_lanes(Words a, Words b) { return _mm256_add_epi64(a, b); }
inline Words bytes_sum(Words v) { return _mm256_sad_epu8(v, no_words()); }
template <int n>
inline Words times(Words v) { return _mm256_slli_epi64(v, n); }
inline Words byte_counts(Words v) {
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    return _mm256_add_epi8(_mm256_shuffle_epi8(table, both(v, low)),
                           _mm256_shuffle_epi8(table, both(_mm256_srli_epi16(v, 4), low)));
}

#else

// Two lanes: what SSE2 and NEON have.
typedef std::uint64_t Words __attribute__((vector_size(16)));
inline Words load_words(const std::uint64_t* p) {
    Words v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline Words all_words(std::uint64_t x) { return Words{x, x}; }
inline Words no_words() { return Words{}; }
inline Words both(Words a, Words b) { return a & b; }
inline Words either(Words a, Words b) { return a | b; }
inline Words differ(Words a, Words b) { return a ^ b; }
inline Words add_lanes(Words a, Words b) { return a + b; }
template <int n>
inline Words times(Words v) { return v << n; }
#if defined(WIRING_ISA_neon)
inline Words add_bytes(Words a, Words b) {
    return reinterpret_cast<Words>(
        vaddq_u8(reinterpret_cast<uint8x16_t>(a), reinterpret_cast<uint8x16_t>(b)));
}
inline Words byte_counts(Words v) {
    return reinterpret_cast<Words>(vcntq_u8(reinterpret_cast<uint8x16_t>(v)));
}
inline Words bytes_sum(Words v) {
    return reinterpret_cast<Words>(
        vpaddlq_u32(vpaddlq_u16(vpaddlq_u8(reinterpret_cast<uint8x16_t>(v)))));
}
#else
inline Words add_bytes(Words a, Words b) { return a + b; }  // no byte's sum passes 255
inline Words byte_counts(Words v) {
    v -= (v >> 1) & 0x5555555555555555u;
    v = (v & 0x3333333333333333u) + ((v >> 2) & 0x3333333333333333u);
    return (v + (v >> 4)) & 0x0f0f0f0f0f0f0f0fu;
}
inline Words bytes_sum(Words v) {
    v = (v & 0x00ff00ff00ff00ffu) + ((v >> 8) & 0x00ff00ff00ff00ffu);
    v += v >> 16;
    return (v + (v >> 32)) & 0xffffu;
}
#endif

#endif

constexpr int word_lanes = sizeof(Words) / 8;

#if !defined(WIRING_WIDE)
inline Words parity(Words a, Words b, Words c) { return differ(differ(a, b), c); }
inline Words majority(Words a, Words b, Words c) {
    const Words d = differ(a, b);
    return differ(a, both(d, differ(a, c)));
}
inline void store_counts(Words v, std::int32_t* to) {
    std::uint64_t lane[word_lanes];
    std::memcpy(lane, &v, sizeof lane);
    for (int i = 0; i < word_lanes; ++i) to[i] = static_cast<std::int32_t>(lane[i]);
}
inline void store_counts(Words a, Words b, std::int32_t* to) {
    store_counts(a, to);
    store_counts(b, to + word_lanes);
}
#endif

// Bits of a word x of activations and a word w of weights that count: those in which they
// differ, differ on live edges m, or are both set. `pair` adds two words to `ones` and returns
// the carries, of weight 2.
struct Differ {
    static constexpr bool masked = false;
    static Words one(Words x, Words w, Words) { return differ(x, w); }
    static Words pair(Words& ones, Words x0, Words w0, Words, Words x1, Words w1, Words) {
#if defined(WIRING_WIDE)
        const Words t = parity(ones, x0, w0), sum = parity(t, x1, w1);
        // The carry of ones + b0 + b1 from t = ones ^ b0 and sum = t ^ b1 alone.
        const Words carry = _mm512_ternarylogic_epi64(t, ones, sum, 0x5c);
#else
        const Words b0 = differ(x0, w0), b1 = differ(x1, w1);
        const Words sum = parity(ones, b0, b1), carry = majority(ones, b0, b1);
#endif
        ones = sum;
        return carry;
    }
};

struct DifferOnLive {
    static constexpr bool masked = true;
    static Words one(Words x, Words w, Words m) {
#if defined(WIRING_WIDE)
        return _mm512_ternarylogic_epi64(x, w, m, 0x28);
#else
        return both(differ(x, w), m);
#endif
    }
    static Words pair(Words& ones, Words x0, Words w0, Words m0, Words x1, Words w1, Words m1) {
        const Words b0 = one(x0, w0, m0), b1 = one(x1, w1, m1);
        const Words carry = majority(ones, b0, b1);
        ones = parity(ones, b0, b1);
        return carry;
    }
};

struct BothSet {
    static constexpr bool masked = false;
    static Words one(Words x, Words w, Words) { return both(x, w); }
    static Words pair(Words& ones, Words x0, Words w0, Words, Words x1, Words w1, Words) {
#if defined(WIRING_WIDE)
        const Words t = _mm512_ternarylogic_epi64(ones, x0, w0, 0x78);
        const Words sum = _mm512_ternarylogic_epi64(t, x1, w1, 0x78);
        const Words carry = _mm512_ternarylogic_epi64(t, ones, sum, 0x5c);
#else
        const Words b0 = both(x0, w0), b1 = both(x1, w1);
        const Words sum = parity(ones, b0, b1), carry = majority(ones, b0, b1);
#endif
        ones = sum;
        return carry;
    }
};

// Registers hold `positions` x `vectors` counters. A counter takes `group` words, two at a time:
// `pair<j>` the words 2j and 2j + 1 of a group, up to `most_groups` groups before `settle`. The
// last few words go through `late_pair` and `late`, after which comes nothing but `total`.
#if defined(WIRING_ISA_avx512popcnt)

// Carries are counted at once.
struct Counter {
    static constexpr int positions = 4, vectors = 2, group = 2, most_groups = 1 << 30;
    Words ones = no_words(), twice = no_words();

    template <class Bits, int j>
    void pair(Words x0, Words w0, Words m0, Words x1, Words w1, Words m1) {
        const Words carry = Bits::pair(ones, x0, w0, m0, x1, w1, m1);
        twice = add_lanes(twice, _mm512_popcnt_epi64(carry));
    }
    template <class Bits>
    void late_pair(Words x0, Words w0, Words m0, Words x1, Words w1, Words m1) {
        pair<Bits, 0>(x0, w0, m0, x1, w1, m1);
    }
    template <class Bits>
    void late(Words x, Words w, Words m) {
        const Words bit = Bits::one(x, w, m);
        twice = add_lanes(twice, _mm512_popcnt_epi64(both(ones, bit)));
        ones = differ(ones, bit);
    }
    void settle() {}
    Words total() const { return add_lanes(add_lanes(twice, twice), _mm512_popcnt_epi64(ones)); }
};

#elif defined(WIRING_ISA_neon)

// Counting bytes is one instruction here.
struct Counter {
    static constexpr int positions = 2, vectors = 4, group = 2, most_groups = 15;
    Words bytes = no_words(), sum = no_words();

    template <class Bits, int j>
    void pair(Words x0, Words w0, Words m0, Words x1, Words w1, Words m1) {
        late_pair<Bits>(x0, w0, m0, x1, w1, m1);
    }
    template <class Bits>
    void late_pair(Words x0, Words w0, Words m0, Words x1, Words w1, Words m1) {
        late<Bits>(x0, w0, m0);
        late<Bits>(x1, w1, m1);
    }
    template <class Bits>
    void late(Words x, Words w, Words m) {
        bytes = add_bytes(bytes, byte_counts(Bits::one(x, w, m)));
    }
    void settle() {
        sum = add_lanes(sum, bytes_sum(bytes));
        bytes = no_words();
    }
    Words total() const { return add_lanes(sum, bytes_sum(bytes)); }
};

#else

// Eight words to one count of bytes.
struct Counter {
#if defined(WIRING_WIDE)
    static constexpr int positions = 4, vectors = 1;
#else
    static constexpr int positions = 1, vectors = 2;
#endif
    static constexpr int group = 8, most_groups = 30;  // of up to 8 a byte, and `after`
    Words ones = no_words(), twos = no_words(), fours = no_words();
    Words eights = no_words();  // counts of bytes
    Words sum = no_words();     // of eights
    // Carries of late words: at most one at a place, as 7 + 7 is less than 16.
    Words after = no_words();
    Words two, four;  // carries that wait for the next one

    template <class Bits, int j>
    void pair(Words x0, Words w0, Words m0, Words x1, Words w1, Words m1) {
        const Words carry = Bits::pair(ones, x0, w0, m0, x1, w1, m1);
        if constexpr (j % 2 == 0) {
            two = carry;
        } else {
            const Words next = majority(twos, two, carry);
            twos = parity(twos, two, carry);
            if constexpr (j == 1) {
                four = next;
            } else {
                const Words eight = majority(fours, four, next);
                fours = parity(fours, four, next);
                eights = add_bytes(eights, byte_counts(eight));
            }
        }
    }
    template <class Bits>
    void late_pair(Words x0, Words w0, Words m0, Words x1, Words w1, Words m1) {
        carry(Bits::pair(ones, x0, w0, m0, x1, w1, m1));
    }
    template <class Bits>
    void late(Words x, Words w, Words m) {
        const Words bit = Bits::one(x, w, m), carried = both(ones, bit);
        ones = differ(ones, bit);
        carry(carried);
    }
    void carry(Words add) {
        const Words next = both(twos, add);
        twos = differ(twos, add);
        after = either(after, both(fours, next));
        fours = differ(fours, next);
    }
    void settle() {
        sum = add_lanes(sum, bytes_sum(eights));
        eights = no_words();
    }
    Words total() const {
        const Words low =
            add_bytes(byte_counts(ones), add_bytes(times<1>(byte_counts(twos)),
                                                   times<2>(byte_counts(fours))));
        const Words high = add_bytes(eights, byte_counts(after));
        return add_lanes(times<3>(add_lanes(sum, bytes_sum(high))), bytes_sum(low));
    }
};

#endif

}  // namespace WIRING_ISA
