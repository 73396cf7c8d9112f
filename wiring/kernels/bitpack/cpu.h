// Signs and flags of images as 64-bit words, bit i % 64 of word i / 64 for channel i.
#pragma once

#include <cstdint>

#include "native/isa.h"

namespace bitpack {

// An image is [n, pixels, c] in memory, or [n, c, pixels] where `planes`; its words are
// [n, pixels, ⌈c/64⌉], and the bits behind channel c are 0.
struct Image {
    std::int64_t n, c, pixels;
    bool planes;
};

struct Kernels {
    // Bit 1 where x >= 0.
    void (*pack_signs)(const float* x, Image image, std::uint64_t* words, int threads);
    // Two planes of words: x >= 0, and not |x| >= 1.
    void (*pack_clipped)(const float* x, Image image, std::uint64_t* words, int threads);
    // Bit 1 where x >= threshold[channel], inverted where flip, words [⌈c/64⌉], has a 1.
    void (*pack_thresholds)(const float* x, const float* threshold, const std::uint64_t* flip,
                            Image image, std::uint64_t* words, int threads);
    // Bit 1 where a byte is not 0.
    void (*pack_bits)(const std::uint8_t* flags, Image image, std::uint64_t* words, int threads);
    // Plane i of `bits` planes of words: bit i of the bytes.
    void (*bit_planes)(const std::uint8_t* x, int bits, Image image, std::uint64_t* words,
                       int threads);
    // words [rows, ⌈n/64⌉] → x [rows, n]: +1 or -1.
    void (*unpack_signs)(const std::uint64_t* words, std::int64_t rows, std::int64_t n, float* x,
                         int threads);
    // y [rows, n]: x where its bit is 1, else 0.
    void (*keep_bits)(const float* x, const std::uint64_t* words, std::int64_t rows,
                      std::int64_t n, float* y, int threads);
};

}  // namespace bitpack

WIRING_DECLARE_KERNELS(bitpack)
