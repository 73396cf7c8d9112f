#include "bitpack/cpu.h"

#include "native/parallel.h"
#include "native/words.h"

namespace WIRING_ISA {
namespace {

using bitpack::Image;

// Fewer pixels than this are not worth a second thread.
constexpr std::int64_t fewest_words = 2048;

int worth(std::int64_t words, int threads) {
    return static_cast<int>(std::clamp<std::int64_t>(words / fewest_words, 1, threads));
}

template <class Test>
void pack(const Test& test, const typename Test::Element* x, Image image, std::uint64_t* words,
          int threads) {
    const std::int64_t rows = image.n * image.pixels;
    parallel(rows, worth(rows * words_of(image.c), threads),
             [&](int, std::int64_t begin, std::int64_t end) {
                 pack_part(test, x, image.planes, image.c, image.pixels, begin, end, words);
             });
}

void pack_signs(const float* x, Image image, std::uint64_t* words, int threads) {
    pack(AtLeast{}, x, image, words, threads);
}

void pack_clipped(const float* x, Image image, std::uint64_t* words, int threads) {
    const std::int64_t rows = image.n * image.pixels, width = words_of(image.c);
    // Both planes of a few rows at a time: x is read from memory once.
    const std::int64_t few = std::max<std::int64_t>(16, 4096 / std::max<std::int64_t>(1, image.c));
    parallel(rows, worth(rows * width, threads), [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; row += few) {
            const std::int64_t stop = std::min(end, row + few);
            pack_part(AtLeast{}, x, image.planes, image.c, image.pixels, row, stop, words);
            pack_part(Within{}, x, image.planes, image.c, image.pixels, row, stop,
                      words + rows * width);
        }
    });
}

void pack_thresholds(const float* x, const float* threshold, const std::uint64_t* flip,
                     Image image, std::uint64_t* words, int threads) {
    const std::int64_t rows = image.n * image.pixels, width = words_of(image.c);
    parallel(rows, worth(rows * width, threads), [&](int, std::int64_t begin, std::int64_t end) {
        pack_part(AtLeast{threshold}, x, image.planes, image.c, image.pixels, begin, end, words);
        for (std::int64_t row = begin; row < end; ++row)
            for (std::int64_t w = 0; w < width; ++w) words[row * width + w] ^= flip[w];
    });
}

void pack_bits(const std::uint8_t* flags, Image image, std::uint64_t* words, int threads) {
    pack(AnyBit{}, flags, image, words, threads);
}

void bit_planes(const std::uint8_t* x, int bits, Image image, std::uint64_t* words, int threads) {
    const std::int64_t size = image.n * image.pixels * words_of(image.c);
    for (int bit = 0; bit < bits; ++bit)
        pack(AnyBit{static_cast<std::uint8_t>(1 << bit)}, x, image, words + bit * size, threads);
}

inline std::uint64_t ones(int n) {
    return n == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
}

// Calls word(row, its first element, how many, its bits) for all words of [rows, n].
template <class Word>
void each_word(const std::uint64_t* words, std::int64_t rows, std::int64_t n, int threads,
               Word word) {
    const std::int64_t width = words_of(n);
    parallel(rows, worth(rows * width, threads), [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row)
            for (std::int64_t w = 0; w < width; ++w)
                word(row * n + w * word_bits,
                     static_cast<int>(std::min(word_bits, n - w * word_bits)),
                     words[row * width + w]);
    });
}

void unpack_signs(const std::uint64_t* words, std::int64_t rows, std::int64_t n, float* x,
                  int threads) {
    each_word(words, rows, n, threads, [=](std::int64_t at, int count, std::uint64_t word) {
        float* to = x + at;
#if defined(WIRING_WIDE)
        const __m512 minus = _mm512_set1_ps(-1), plus = _mm512_set1_ps(1);
        const std::uint64_t valid = ones(count);
        for (int i = 0; i < count; i += 16)
            _mm512_mask_storeu_ps(
                to + i, static_cast<__mmask16>(valid >> i),
                _mm512_mask_blend_ps(static_cast<__mmask16>(word >> i), minus, plus));
#else
        const Int8x32 place = {31, 30, 29, 28, 27, 26, 25, 24};
        const auto top = static_cast<std::int32_t>(0x80000000u);
        int i = 0;
        for (; i + 8 <= count; i += 8) {
            // 1.0f, with the inverted bit for its sign.
            const auto byte = static_cast<std::int32_t>(~(word >> i) & 255);
            const Int8x32 one = (((byte + Int8x32{}) << place) & top) | 0x3f800000;
            std::memcpy(to + i, &one, sizeof one);
        }
        for (; i < count; ++i) to[i] = (word >> i) & 1 ? 1.0f : -1.0f;
#endif
    });
}

void keep_bits(const float* x, const std::uint64_t* words, std::int64_t rows, std::int64_t n,
               float* y, int threads) {
    each_word(words, rows, n, threads, [=](std::int64_t at, int count, std::uint64_t word) {
        const float* from = x + at;
        float* to = y + at;
#if defined(WIRING_WIDE)
        const std::uint64_t valid = ones(count);
        for (int i = 0; i < count; i += 16)
            _mm512_mask_storeu_ps(
                to + i, static_cast<__mmask16>(valid >> i),
                _mm512_maskz_loadu_ps(static_cast<__mmask16>((word & valid) >> i), from + i));
#else
        const Int8x32 place = {1, 2, 4, 8, 16, 32, 64, 128};
        int i = 0;
        for (; i + 8 <= count; i += 8) {
            const auto byte = static_cast<std::int32_t>((word >> i) & 255);
            Int8x32 kept;
            std::memcpy(&kept, from + i, sizeof kept);
            kept &= ((byte + Int8x32{}) & place) != 0;
            std::memcpy(to + i, &kept, sizeof kept);
        }
        for (; i < count; ++i) to[i] = (word >> i) & 1 ? from[i] : 0.0f;
#endif
    });
}

}  // namespace

extern const bitpack::Kernels bitpack_kernels = {
    pack_signs, pack_clipped, pack_thresholds, pack_bits, bit_planes, unpack_signs, keep_bits};

}  // namespace WIRING_ISA
