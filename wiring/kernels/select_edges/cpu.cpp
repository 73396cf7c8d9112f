// A radix selection: the bits of a float, made to order as integers, are decided 12, 10 and 10 at
// a time. The first histogram takes all scores; the others only the candidates, those of the one
// bin in which the k-th largest lies. A last pass compares with the threshold that came out.
#include "select_edges/cpu.h"

#include <cstring>

#include "native/parallel.h"

namespace WIRING_ISA {
namespace {

using select_edges::Outcome;

constexpr int first_bits = 12, next_bits = 10;
constexpr int first_shift = 32 - first_bits;
constexpr std::int64_t bins = 1 << first_bits, next_bins = 1 << next_bits;
constexpr std::int64_t block = 512;

// Larger floats have larger keys.
inline std::uint32_t key(float x) {
    const float y = x + 0.0f;  // -0 becomes +0
    std::uint32_t bits;
    std::memcpy(&bits, &y, sizeof bits);
    return bits ^ (static_cast<std::uint32_t>(static_cast<std::int32_t>(bits) >> 31) | 0x80000000u);
}

inline float value(std::uint32_t key) {
    const std::uint32_t bits = key & 0x80000000u ? key ^ 0x80000000u : ~key;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// `all` scores are allowed where there are no flags.
template <bool all>
inline bool usable(const std::uint8_t* allowed, std::int64_t i) {
    return all || allowed[i] != 0;
}

// What one part of the scores contributes. Parts, unlike threads, are the same in every pass.
struct Part {
    std::int64_t begin, end;
    std::int64_t candidates, offset;  // in the deciding bin: how many, and where they are kept
    std::int64_t equal;               // to the threshold
    bool nan;
};

template <bool all>
void histogram(const float* scores, const std::uint8_t* allowed, Part& part, std::int64_t* counts) {
    std::fill_n(counts, 2 * bins, 0);
    std::uint16_t bin[block];
    int nan = 0;
    for (std::int64_t start = part.begin; start < part.end; start += block) {
        const int n = static_cast<int>(std::min(block, part.end - start));
        const float* x = scores + start;
        // Apart from the counting, so that it runs in vectors.
        for (int i = 0; i < n; ++i) {
            bin[i] = static_cast<std::uint16_t>(key(x[i]) >> first_shift);
            nan |= (x[i] != x[i]) & usable<all>(allowed, start + i);
        }
        // Two counters a bin: neighbours often share one, and would wait for each other.
        int i = 0;
        for (; i + 2 <= n; i += 2) {
            counts[bin[i]] += usable<all>(allowed, start + i);
            counts[bins + bin[i + 1]] += usable<all>(allowed, start + i + 1);
        }
        if (i < n) counts[bin[i]] += usable<all>(allowed, start + i);
    }
    for (std::int64_t i = 0; i < bins; ++i) counts[i] += counts[bins + i];
    part.nan = nan != 0;
}

// The allowed keys of one bin, in order.
template <bool all>
void collect(const float* scores, const std::uint8_t* allowed, const Part& part, std::uint32_t bin,
             std::uint32_t* candidates) {
    std::uint32_t keys[block];
    std::uint8_t wanted[block];
    std::int64_t found = 0;
    for (std::int64_t start = part.begin; start < part.end && found < part.candidates; start += block) {
        const int n = static_cast<int>(std::min(block, part.end - start));
        for (int i = 0; i < n; ++i) {
            keys[i] = key(scores[start + i]);
            wanted[i] = (keys[i] >> first_shift == bin) & usable<all>(allowed, start + i);
        }
        for (int i = 0; i < n; ++i) {
            candidates[found] = keys[i];  // behind the last one there is room for one more
            found += wanted[i];
        }
    }
}

// The bin in which the `rank`-th largest lies (from 1); `rank` becomes its rank in there.
std::uint32_t decide(const std::int64_t* counts, std::int64_t size, std::int64_t& rank) {
    std::int64_t bin = size - 1;
    for (; bin > 0 && counts[bin] < rank; --bin) rank -= counts[bin];
    return static_cast<std::uint32_t>(bin);
}

// The next bits of the threshold, from the candidates that share those above `shift + next_bits`.
std::uint32_t refine(const std::uint32_t* candidates, std::int64_t n, std::uint32_t prefix,
                     int shift, std::int64_t& rank) {
    std::int64_t counts[next_bins] = {};
    for (std::int64_t i = 0; i < n; ++i)
        counts[candidates[i] >> shift & (next_bins - 1)] +=
            candidates[i] >> (shift + next_bits) == prefix;
    return prefix << next_bits | decide(counts, next_bins, rank);
}

// Bytes may alias everything: __restrict__ lets these loops run in vectors.
template <bool all>
void mark(const float* __restrict__ scores, const std::uint8_t* __restrict__ allowed,
          const Part& part, float threshold, std::int64_t ties, std::uint8_t* __restrict__ live) {
    const std::int64_t end = part.end;
    if (ties <= 0) {
        for (std::int64_t i = part.begin; i < end; ++i)
            live[i] = usable<all>(allowed, i) & (scores[i] > threshold);
        return;
    }
    for (std::int64_t i = part.begin; i < end; ++i)
        live[i] = usable<all>(allowed, i) & (scores[i] >= threshold);
    for (std::int64_t i = end, more = part.equal - ties; more > 0;) {
        --i;
        const bool drop = live[i] && scores[i] == threshold;
        live[i] &= !drop;
        more -= drop;
    }
}

template <bool all>
Outcome select_among(const float* scores, const std::uint8_t* allowed, std::int64_t n,
                     std::int64_t k, std::uint8_t* live, int threads) {
    const std::int64_t parts = std::max<std::int64_t>(1, std::min<std::int64_t>(threads, n / block));
    Scratch<Part> part(static_cast<std::size_t>(parts));
    Scratch<std::int64_t> counts(static_cast<std::size_t>(2 * parts * bins));
    parallel(parts, threads, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t p = begin; p < end; ++p) {
            part[p] = {n * p / parts, n * (p + 1) / parts, 0, 0, 0, false};
            histogram<all>(scores, allowed, part[p], &counts[2 * p * bins]);
        }
    });

    Scratch<std::int64_t> totals(bins);
    Outcome outcome{0, false};
    std::fill_n(totals.data(), bins, 0);
    for (std::int64_t p = 0; p < parts; ++p) {
        outcome.nan |= part[p].nan;
        for (std::int64_t bin = 0; bin < bins; ++bin) totals[bin] += counts[2 * p * bins + bin];
    }
    for (std::int64_t bin = 0; bin < bins; ++bin) outcome.usable += totals[bin];
    if (outcome.nan || k < 1 || k > outcome.usable) return outcome;

    std::int64_t rank = k;
    const std::uint32_t bin = decide(totals.data(), bins, rank);
    const std::int64_t found = totals[bin];
    std::int64_t offset = 0;
    for (std::int64_t p = 0; p < parts; ++p) {
        part[p].candidates = counts[2 * p * bins + bin];
        part[p].offset = offset;
        offset += part[p].candidates + 1;
    }
    Scratch<std::uint32_t> candidates(static_cast<std::size_t>(found + parts));
    parallel(parts, threads, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t p = begin; p < end; ++p)
            collect<all>(scores, allowed, part[p], bin, &candidates[part[p].offset]);
    });
    // Closes the gaps of one between the parts.
    for (std::int64_t p = 1; p < parts; ++p)
        std::memmove(&candidates[part[p].offset - p], &candidates[part[p].offset],
                     static_cast<std::size_t>(part[p].candidates) * sizeof(std::uint32_t));

    std::uint32_t threshold = refine(candidates.data(), found, bin, next_bits, rank);
    threshold = refine(candidates.data(), found, threshold, 0, rank);
    // `rank` is now how many of the scores equal to the threshold live: the first ones.
    parallel(parts, threads, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t p = begin; p < end; ++p) {
            const std::uint32_t* mine = &candidates[part[p].offset - p];
            part[p].equal = 0;
            for (std::int64_t i = 0; i < part[p].candidates; ++i)
                part[p].equal += mine[i] == threshold;
        }
    });
    parallel(parts, threads, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t p = begin; p < end; ++p) {
            std::int64_t ties = rank;
            for (std::int64_t before = 0; before < p; ++before) ties -= part[before].equal;
            mark<all>(scores, allowed, part[p], value(threshold), ties, live);
        }
    });
    return outcome;
}

Outcome select(const float* scores, const std::uint8_t* allowed, std::int64_t n, std::int64_t k,
               std::uint8_t* live, int threads) {
    return allowed ? select_among<false>(scores, allowed, n, k, live, threads)
                   : select_among<true>(scores, allowed, n, k, live, threads);
}

}  // namespace

extern const select_edges::Kernels select_edges_kernels = {select};

}  // namespace WIRING_ISA
