// Rows of signs and flags as 64-bit words, bit i % 64 of word i / 64 for element i.
#pragma once

#include <cstdint>

#include "native/isa.h"

namespace bitpack {

struct Kernels {
    // x [rows, n] → words [rows, ⌈n/64⌉]: bit 1 where x >= 0; the bits behind n are 0.
    void (*pack_signs)(const float* x, std::int64_t rows, std::int64_t n, std::uint64_t* words,
                       int threads);
    // flags [rows, n], bytes of 0 or 1 → words [rows, ⌈n/64⌉].
    void (*pack_bits)(const std::uint8_t* flags, std::int64_t rows, std::int64_t n,
                      std::uint64_t* words, int threads);
    // words [rows, ⌈n/64⌉] → x [rows, n]: +1 or -1.
    void (*unpack_signs)(const std::uint64_t* words, std::int64_t rows, std::int64_t n, float* x,
                         int threads);
};

}  // namespace bitpack

WIRING_DECLARE_KERNELS(bitpack)
