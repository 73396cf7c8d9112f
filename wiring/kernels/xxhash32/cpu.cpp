// xxh32 of keys of two words. What the first word leaves is the same for a whole row; the rest runs
// in vectors over the second. Remainders by a constant are products (Lemire, Kaser, Kurz, 2019),
// exact for 32 bits; they need 64 x 64 bits, so they have a loop of their own.
#include "xxhash32/cpu.h"

#include "native/parallel.h"

namespace WIRING_ISA {
namespace {

constexpr std::uint32_t p2 = 2246822519u, p3 = 3266489917u, p4 = 668265263u, p5 = 374761393u;
constexpr std::int64_t block = 256;

inline std::uint32_t rotl(std::uint32_t x, int bits) { return x << bits | x >> (32 - bits); }

inline std::uint32_t take(std::uint32_t state, std::uint32_t word) {
    return rotl(state + word * p3, 17) * p4;
}

inline std::uint32_t finish(std::uint32_t h) {
    h = (h ^ h >> 15) * p2;
    h = (h ^ h >> 13) * p3;
    return h ^ h >> 16;
}

void places(std::int64_t row, std::uint32_t weights, std::uint32_t seed, std::uint32_t other,
            std::int64_t first, std::int64_t last, std::int32_t* places, int threads) {
    const std::uint64_t inverse = ~std::uint64_t{0} / weights + 1;  // 0 for a single weight
    parallel(last - first, threads, [&](int, std::int64_t begin, std::int64_t end) {
        std::uint32_t hash[block], coin[block];
        for (std::int64_t i = begin; i < end; ++i) {
            const auto word = static_cast<std::uint32_t>(first + i);
            const std::uint32_t one = take(seed + p5 + 8, word), two = take(other + p5 + 8, word);
            for (std::int64_t start = 0; start < row; start += block) {
                const int n = static_cast<int>(std::min(block, row - start));
                const auto from = static_cast<std::uint32_t>(start);
                for (int j = 0; j < n; ++j) {
                    const std::uint32_t next = from + static_cast<std::uint32_t>(j);
                    hash[j] = finish(take(one, next));
                    coin[j] = (0u - (finish(take(two, next)) >> 31)) & weights;
                }
                std::int32_t* out = places + i * row + start;
                for (int j = 0; j < n; ++j) {
                    const std::uint64_t fraction = inverse * hash[j];
                    const auto rest = static_cast<std::uint32_t>(
                        static_cast<unsigned __int128>(fraction) * weights >> 64);
                    out[j] = static_cast<std::int32_t>(rest + coin[j]);
                }
            }
        }
    });
}

}  // namespace

extern const xxhash32::Kernels xxhash32_kernels = {places};

}  // namespace WIRING_ISA
