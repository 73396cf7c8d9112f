// The k largest of n scores in linear time, exactly.
#pragma once

#include <cstdint>

#include "native/isa.h"

namespace select_edges {

struct Outcome {
    std::int64_t usable;  // allowed scores
    bool nan;             // one of them is NaN
};

struct Kernels {
    // scores [n]; allowed [n], bytes, 0 for no, or null where all are; live [n], written 1 for the k largest allowed
    // scores, the lower index first among equals, else 0. -0 equals +0.
    // Where k is not in 1..usable, or an allowed score is NaN, live is left as it was.
    Outcome (*select)(const float* scores, const std::uint8_t* allowed, std::int64_t n,
                      std::int64_t k, std::uint8_t* live, int threads);
};

}  // namespace select_edges

WIRING_DECLARE_KERNELS(select_edges)
