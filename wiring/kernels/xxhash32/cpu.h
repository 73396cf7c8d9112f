// Where a hash of its position sends each edge of a bundle.
#pragma once

#include <cstdint>

#include "native/isa.h"

namespace xxhash32 {

struct Kernels {
    // places [(last - first) * row]: xxh32(i, j; seed) mod weights, and `weights` more where the
    // highest bit of xxh32(i, j; other) is set, for i in first..last-1 and j in 0..row-1, both as
    // 32-bit words. 1 <= weights <= 2**30.
    void (*places)(std::int64_t row, std::uint32_t weights, std::uint32_t seed,
                   std::uint32_t other, std::int64_t first, std::int64_t last,
                   std::int32_t* places, int threads);
};

}  // namespace xxhash32

WIRING_DECLARE_KERNELS(xxhash32)
