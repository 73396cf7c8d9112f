// Where the windows of output pixels lie in an image.
#pragma once

#include "l1_conv2d/cpu.h"

namespace WIRING_ISA {
namespace {

using l1_conv2d::Layer;

// Windows of up to T consecutive output pixels. Pixels behind the last one read `outside`.
template <int T, class Value>
class Windows {
  public:
    Windows(const Value* x, const Value* outside, std::int64_t channels, const Layer& layer,
            std::int64_t first, std::int64_t end)
        : outside_(outside), channels_(channels), shape_(layer) {
        const std::int64_t per_image = layer.out_height * layer.out_width;
        std::int64_t image = first / per_image, place = first % per_image;
        std::int64_t row = place / layer.out_width, column = place % layer.out_width;
        for (int t = 0; t < T; ++t) {
            const bool here = first + t < end;
            image_[t] = here ? x + image * layer.height * layer.width * channels : nullptr;
            top_[t] = row * layer.stride - layer.padding;
            left_[t] = column * layer.stride - layer.padding;
            if (here && ++column == layer.out_width) {
                column = 0;
                if (++row == layer.out_height) row = 0, ++image;
            }
        }
    }

    // The pixel that each window reads at a tap, -1 outside.
    std::int64_t pixel(int t, std::int64_t tap_row, std::int64_t tap_column) const {
        const std::int64_t y = top_[t] + tap_row, x = left_[t] + tap_column;
        const bool inside = image_[t] && y >= 0 && y < shape_.height && x >= 0 && x < shape_.width;
        return inside ? y * shape_.width + x : -1;
    }

    const Value* row(int t, std::int64_t tap_row, std::int64_t tap_column) const {
        const std::int64_t at = pixel(t, tap_row, tap_column);
        return at < 0 ? outside_ : image_[t] + at * channels_;
    }

  private:
    const Value* image_[T];
    const Value* outside_;
    std::int64_t top_[T], left_[T], channels_;
    const Layer& shape_;
};

// The whole window of each pixel as one row [taps · channels], T rows.
template <int T, class Value>
void copy_windows(const Windows<T, Value>& windows, const Layer& layer, std::int64_t channels,
                  Value* rows, std::int64_t row_length) {
    for (int t = 0; t < T; ++t) {
        Value* to = rows + t * row_length;
        for (std::int64_t y = 0; y < layer.kernel_height; ++y)
            for (std::int64_t x = 0; x < layer.kernel_width; ++x) {
                const Value* from = windows.row(t, y, x);
                for (std::int64_t s = 0; s < channels; ++s) *to++ = from[s];
            }
    }
}

}  // namespace
}  // namespace WIRING_ISA
