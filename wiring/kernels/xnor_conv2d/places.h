// Where output pixels read: runs of pixels whose valid taps are the same.
//
// A tap outside the image adds nothing, which no bit can say. So output pixels are sorted into
// classes by the taps that fall inside, and every class has its own list of words to add: one
// class for the interior, and a few for the borders.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "xnor_conv2d/cpu.h"

namespace WIRING_ISA {
namespace {

using xnor_conv2d::Shape;

// One word to add: its offset behind the pixel's first tap, and its row in a panel.
struct Step {
    std::int64_t x, w;
};

// An output pixel: where its first tap lies in x (in words, perhaps before it), and its index.
struct Place {
    std::int64_t x, y;
};

// Up to `most` pixels of one class.
struct Block {
    std::int64_t first;
    int count, kind;
};

// Outputs first..last-1 along one axis see the filter positions low..high-1.
struct Run {
    std::int64_t first, last, low, high;
};

inline std::vector<Run> runs(std::int64_t outputs, std::int64_t size, std::int64_t kernel,
                             std::int64_t stride, std::int64_t padding) {
    std::vector<Run> all;
    for (std::int64_t o = 0; o < outputs; ++o) {
        const std::int64_t start = o * stride - padding;
        const std::int64_t low = std::clamp<std::int64_t>(-start, 0, kernel);
        const std::int64_t high = std::clamp<std::int64_t>(size - start, low, kernel);
        if (all.empty() || all.back().low != low || all.back().high != high)
            all.push_back({o, o, low, high});
        all.back().last = o + 1;
    }
    return all;
}

struct Places {
    // Of each class: its steps are steps[begins[kind]..begins[kind + 1]-1], its taps the rows.
    std::vector<Step> steps;
    std::vector<std::int64_t> begins{0};
    std::vector<std::vector<std::int64_t>> taps;
    std::vector<Place> places;
    std::vector<Block> blocks;

    Places(const Shape& s, int most) {
        const auto down = runs(s.oh, s.h, s.kh, s.stride, s.padding);
        const auto across = runs(s.ow, s.w, s.kw, s.stride, s.padding);
        places.resize(static_cast<std::size_t>(s.n * s.oh * s.ow));
        for (const Run& rows : down)
            for (const Run& columns : across) add(s, rows, columns, most);
    }

    const Step* first_step(const Block& block) const {
        return steps.data() + begins[static_cast<std::size_t>(block.kind)];
    }
    std::int64_t length(const Block& block) const {
        const auto kind = static_cast<std::size_t>(block.kind);
        return begins[kind + 1] - begins[kind];
    }

  private:
    std::int64_t filled = 0;

    void add(const Shape& s, const Run& rows, const Run& columns, int most) {
        const auto kind = static_cast<int>(taps.size());
        taps.emplace_back();
        for (std::int64_t i = rows.low; i < rows.high; ++i)
            for (std::int64_t j = columns.low; j < columns.high; ++j) {
                taps.back().push_back(i * s.kw + j);
                for (std::int64_t k = 0; k < s.words; ++k)
                    steps.push_back({(i * s.w + j) * s.words + k, (i * s.kw + j) * s.words + k});
            }
        begins.push_back(static_cast<std::int64_t>(steps.size()));
        const std::int64_t first = filled;
        Place* next = places.data() + filled;
        for (std::int64_t n = 0; n < s.n; ++n)
            for (std::int64_t i = rows.first; i < rows.last; ++i) {
                const std::int64_t line = (n * s.h + i * s.stride - s.padding) * s.w - s.padding;
                for (std::int64_t j = columns.first; j < columns.last; ++j)
                    *next++ = {(line + j * s.stride) * s.words, (n * s.oh + i) * s.ow + j};
            }
        filled = next - places.data();
        blocks.reserve(blocks.size() + static_cast<std::size_t>((filled - first) / most + 1));
        for (std::int64_t p = first; p < filled; p += most)
            blocks.push_back({p, static_cast<int>(std::min<std::int64_t>(most, filled - p)), kind});
    }
};

}  // namespace
}  // namespace WIRING_ISA
