#include "bitpack/cpu.h"

#include "native/floats.h"
#include "native/parallel.h"

namespace WIRING_ISA {
namespace {

constexpr std::int64_t bits = 64;

// The signs of up to 64 floats, first one lowest.
inline std::uint64_t signs(const float* x, int n) {
    std::uint64_t word = 0;
    int i = 0;
#if defined(WIRING_ISA_avx512) || defined(WIRING_ISA_avx512popcnt)
    for (; i + 16 <= n; i += 16)
        word |= std::uint64_t{_mm512_cmp_ps_mask(_mm512_loadu_ps(x + i), _mm512_setzero_ps(),
                                                 _CMP_GE_OQ)}
                << i;
#elif defined(WIRING_ISA_avx2)
    for (; i + 8 <= n; i += 8) {
        const __m256 ge = _mm256_cmp_ps(_mm256_loadu_ps(x + i), _mm256_setzero_ps(), _CMP_GE_OQ);
        word |= static_cast<std::uint64_t>(static_cast<unsigned>(_mm256_movemask_ps(ge))) << i;
    }
#endif
    for (; i < n; ++i) word |= std::uint64_t{x[i] >= 0.0f} << i;
    return word;
}

inline std::uint64_t flags(const std::uint8_t* x, int n) {
    std::uint64_t word = 0;
    for (int i = 0; i < n; ++i) word |= std::uint64_t{x[i] != 0} << i;
    return word;
}

template <class T, class Word>
void pack(const T* x, std::int64_t rows, std::int64_t n, std::uint64_t* words, int threads,
          Word word) {
    const std::int64_t width = (n + bits - 1) / bits;
    parallel(rows, threads, [=](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row)
            for (std::int64_t w = 0; w < width; ++w)
                words[row * width + w] =
                    word(x + row * n + w * bits, static_cast<int>(std::min(bits, n - w * bits)));
    });
}

void pack_signs(const float* x, std::int64_t rows, std::int64_t n, std::uint64_t* words,
                int threads) {
    pack(x, rows, n, words, threads, signs);
}

void pack_bits(const std::uint8_t* x, std::int64_t rows, std::int64_t n, std::uint64_t* words,
               int threads) {
    pack(x, rows, n, words, threads, flags);
}

void unpack_signs(const std::uint64_t* words, std::int64_t rows, std::int64_t n, float* x,
                  int threads) {
    const std::int64_t width = (n + bits - 1) / bits;
    parallel(rows, threads, [=](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row)
            for (std::int64_t i = 0; i < n; ++i)
                x[row * n + i] = (words[row * width + i / bits] >> (i % bits)) & 1 ? 1.0f : -1.0f;
    });
}

}  // namespace

extern const bitpack::Kernels bitpack_kernels = {pack_signs, pack_bits, unpack_signs};

}  // namespace WIRING_ISA
