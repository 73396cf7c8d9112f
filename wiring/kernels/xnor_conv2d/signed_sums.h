// Convolution of floats with one-bit weights: signed sums looked up, several inputs at a time.
//
// The sums ±x0 ±x1 … of a group of inputs under all their signs fill one vector, and the bits of
// a destination choose one of them: a permutation and an addition do for 16 destinations what
// takes a fused multiply-add for each input of the group. Groups are 4 inputs of 16 sums with
// AVX-512, 3 of 8 with AVX2. The tables are made row by row and used for all destinations.
#pragma once

#include <immintrin.h>

#include <cstring>
#include <utility>
#include <vector>

#include "native/floats.h"
#include "native/parallel.h"
#include "xnor_conv2d/cpu.h"

namespace WIRING_ISA {
namespace {

using xnor_conv2d::Image;
using xnor_conv2d::panel;
using xnor_conv2d::Shape;

constexpr int half_bits = 32;
constexpr int sums = Floats::lanes;  // of a group, and destinations of a vector
constexpr int most_pixels = 6;       // of a register tile
constexpr std::int64_t panel_sums = panel / sums;

#if defined(WIRING_WIDE)
constexpr int group_inputs = 4;
constexpr int wide_vectors = 4;
using Bits32 = __m512i;
inline Floats choose(Floats table, Bits32 bits) {
    return {_mm512_permutexvar_ps(bits, table.v)};
}
inline Bits32 next_group(Bits32 bits) { return _mm512_srli_epi32(bits, group_inputs); }
// The low (h = 0) or high half of 16 words.
inline Bits32 halves(const std::uint64_t* words, std::int64_t h) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i at = _mm512_add_epi32(even, _mm512_set1_epi32(static_cast<int>(h)));
    return _mm512_permutex2var_epi32(_mm512_loadu_si512(words), at,
                                     _mm512_loadu_si512(words + 8));
}
#else
constexpr int group_inputs = 3;
constexpr int wide_vectors = 2;
using Bits32 = __m256i;
inline Floats choose(Floats table, Bits32 bits) {
    return {_mm256_permutevar8x32_ps(table.v, bits)};
}
inline Bits32 next_group(Bits32 bits) { return _mm256_srli_epi32(bits, group_inputs); }
inline Bits32 halves(const std::uint64_t* words, std::int64_t h) {
    const __m256 a = _mm256_loadu_ps(reinterpret_cast<const float*>(words));
    const __m256 b = _mm256_loadu_ps(reinterpret_cast<const float*>(words + 4));
    const __m256 half = h ? _mm256_shuffle_ps(a, b, 0xdd) : _mm256_shuffle_ps(a, b, 0x88);
    return _mm256_permute4x64_epi64(_mm256_castps_si256(half), 0xd8);
}
#endif

constexpr int groups = (half_bits + group_inputs - 1) / group_inputs;  // of 32 channels
constexpr std::int64_t half_floats = groups * sums;

// The sums of `count` inputs, `step` apart: bit j of a sum's index is the sign of input j.
inline Floats signed_sums(const float* x, std::int64_t step, std::int64_t count) {
    alignas(64) static const float signs[4][16] = {
        {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1},
        {-1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1},
        {-1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1},
        {-1, -1, -1, -1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 1, 1, 1}};
    Floats total = Floats::load(signs[0]) * Floats::all(x[0]);
    for (std::int64_t j = 1; j < count; ++j)
        total = fma(Floats::load(signs[j]), Floats::all(x[j * step]), total);
    return total;
}

// One layer, and where a thread keeps the tables of the input rows it needs.
struct SignedSums {
    const Shape& s;
    Image x;
    const std::uint64_t* sign;
    const float* alpha;
    float* y;
    std::int64_t half_words, pixel_floats, row_floats;

    SignedSums(const Shape& s, Image x, const std::uint64_t* sign, const float* alpha, float* y)
        : s(s),
          x(x),
          sign(sign),
          alpha(alpha),
          y(y),
          half_words((s.channels + half_bits - 1) / half_bits),
          pixel_floats(half_words * half_floats),
          row_floats((s.w + 2 * s.padding) * pixel_floats) {}

    std::int64_t ring_floats() const { return s.kh * row_floats; }

    // The tables of one input row; the columns of the padding keep their zeros.
    void make_row(std::int64_t n, std::int64_t i, float* row) const {
        const std::int64_t step = x.planes ? s.h * s.w : 1, pixel = x.planes ? 1 : s.channels;
        const float* from = x.data + n * s.h * s.w * s.channels + i * s.w * pixel;
        for (std::int64_t h = 0; h < half_words; ++h)
            for (int g = 0; g < groups; ++g) {
                const std::int64_t c = h * half_bits + g * group_inputs;
                const std::int64_t count =
                    std::min({std::int64_t{group_inputs},
                              std::int64_t{half_bits - g * group_inputs}, s.channels - c});
                float* to = row + s.padding * pixel_floats + h * half_floats + g * sums;
                for (std::int64_t j = 0; j < s.w && count > 0; ++j)
                    signed_sums(from + c * step + j * pixel, step, count)
                        .store(to + j * pixel_floats);
            }
    }

    // Output row i of image n, columns j..j+P-1, Q vectors of destinations from vector v on;
    // `rows` are the tables of input rows i·stride - padding + low..high-1.
    template <int P, int Q>
    void tile(std::int64_t n, std::int64_t i, std::int64_t j, std::int64_t v,
              const float* const* rows, std::int64_t low, std::int64_t high) const {
        Floats total[P][Q];
        for (auto& pixel : total)
            for (auto& t : pixel) t = Floats::all(0);
        const std::int64_t length = s.taps() * s.words * panel;
        const std::uint64_t* words[Q];
        for (int q = 0; q < Q; ++q)
            words[q] = sign + (v + q) / panel_sums * length + (v + q) % panel_sums * sums;
        for (std::int64_t a = low; a < high; ++a)
            for (std::int64_t b = 0; b < s.kw; ++b)
                for (std::int64_t h = 0; h < half_words; ++h) {
                    const std::int64_t word = ((a * s.kw + b) * s.words + h / 2) * panel;
                    const float* table = rows[a] + (j * s.stride + b) * pixel_floats + h * half_floats;
                    Bits32 bits[Q];
                    for (int q = 0; q < Q; ++q) bits[q] = halves(words[q] + word, h % 2);
                    for (int g = 0; g < groups; ++g, table += sums) {
                        for (int p = 0; p < P; ++p) {
                            const Floats t = Floats::load(table + p * s.stride * pixel_floats);
                            for (int q = 0; q < Q; ++q)
                                total[p][q] = total[p][q] + choose(t, bits[q]);
                        }
                        for (int q = 0; q < Q; ++q) bits[q] = next_group(bits[q]);
                    }
                }
        for (int q = 0; q < Q; ++q) {
            const std::int64_t first = (v + q) * sums;
            const auto left = static_cast<int>(std::min<std::int64_t>(sums, s.d - first));
            if (left <= 0) break;
            float* to = y + ((n * s.oh + i) * s.ow + j) * s.d + first;
            for (int p = 0; p < P; ++p, to += s.d) {
                if (left == sums)
                    (total[p][q] * Floats::load(alpha + first)).store(to);
                else
                    (total[p][q] * Floats::load(alpha + first, left)).store(to, left);
            }
        }
    }

    template <int Q, int... P, class... Arguments>
    void tiles(std::integer_sequence<int, P...>, std::int64_t pixels, Arguments... at) const {
        (void)((pixels == P + 1 && (tile<P + 1, Q>(at...), true)) || ...);
    }

    // Output rows first..last-1 of all images, destinations of the vectors from..to-1.
    void run(std::int64_t first, std::int64_t last, std::int64_t from, std::int64_t to,
             float* ring) const {
        std::fill_n(ring, ring_floats(), 0.0f);
        const auto height = static_cast<std::size_t>(s.kh);
        std::vector<std::int64_t> held(height, -1);  // the input row in each place of the ring
        std::vector<const float*> rows(height);
        constexpr auto widths = std::make_integer_sequence<int, most_pixels>();
        const std::int64_t blocks = (s.ow + most_pixels - 1) / most_pixels;
        for (std::int64_t r = first; r < last; ++r) {
            const std::int64_t n = r / s.oh, i = r % s.oh, start = i * s.stride - s.padding;
            const std::int64_t low = std::clamp<std::int64_t>(-start, 0, s.kh);
            const std::int64_t high = std::clamp<std::int64_t>(s.h - start, low, s.kh);
            for (std::int64_t a = low; a < high; ++a) {
                const auto place = static_cast<std::size_t>((start + a) % s.kh);
                float* row = ring + static_cast<std::int64_t>(place) * row_floats;
                if (held[place] != n * s.h + start + a) make_row(n, start + a, row);
                held[place] = n * s.h + start + a;
                rows[static_cast<std::size_t>(a)] = row;
            }
            for (std::int64_t v = from; v < to;) {
                const bool wide = v + wide_vectors <= to;
                for (std::int64_t b = 0; b < blocks; ++b) {
                    const std::int64_t j = s.ow * b / blocks, pixels = s.ow * (b + 1) / blocks - j;
                    if (wide)
                        tiles<wide_vectors>(widths, pixels, n, i, j, v, rows.data(), low, high);
                    else
                        tiles<1>(widths, pixels, n, i, j, v, rows.data(), low, high);
                }
                v += wide ? wide_vectors : 1;
            }
        }
    }
};

void convolve_signed(Image x, const std::uint64_t* sign, const float* alpha, float* y, Shape s,
                     int threads) {
    const SignedSums layer(s, x, sign, alpha, y);
    const std::int64_t rows = s.n * s.oh, vectors = (s.d + sums - 1) / sums;
    Scratch<float> scratch(static_cast<std::size_t>(std::max(1, threads) * layer.ring_floats()));
    // Few rows would leave threads idle: then each makes all tables, for some destinations.
    const bool by_rows = rows >= 8 * threads;
    const std::int64_t units = (vectors + wide_vectors - 1) / wide_vectors;
    parallel(by_rows ? rows : units, threads,
             [&](int thread, std::int64_t begin, std::int64_t end) {
                 float* ring = scratch.data() + thread * layer.ring_floats();
                 if (by_rows)
                     layer.run(begin, end, 0, vectors, ring);
                 else
                     layer.run(0, rows, begin * wide_vectors,
                               std::min(vectors, end * wide_vectors), ring);
             });
}

}  // namespace
}  // namespace WIRING_ISA
