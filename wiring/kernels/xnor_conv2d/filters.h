// One-bit filters in training: scales, binarised weights and their gradient, row by row.
#pragma once

#include <cmath>
#include <cstdint>

#include "native/parallel.h"
#include "xnor_conv2d/cpu.h"

namespace WIRING_ISA {
namespace {

using xnor_conv2d::Gradient;
using xnor_conv2d::Rows;

// Fewer weights than this are not worth a second thread.
constexpr std::int64_t fewest_weights = 1 << 15;

// Σ of term(i) over 0..n-1, in 8 interleaved parts that the compiler can keep in vectors.
template <class Total, class Term>
inline Total interleaved_sum(std::int64_t n, Term term) {
    Total part[8] = {};
    std::int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; ++j) part[j] += term(i + j);
    for (; i < n; ++i) part[0] += term(i);
    return ((part[0] + part[4]) + (part[1] + part[5])) +
           ((part[2] + part[6]) + (part[3] + part[7]));
}

inline std::int64_t live_edges(const std::uint8_t* live, std::int64_t n) {
    std::int64_t total = 0;
    for (std::int64_t begin = 0; begin < n; begin += 1 << 20) {
        std::int32_t part = 0;
        for (std::int64_t i = begin; i < std::min<std::int64_t>(n, begin + (1 << 20)); ++i)
            part += live[i];
        total += part;
    }
    return total;
}

template <class Row>
void each_row(const Rows& rows, int threads, Row row) {
    const auto worth = std::clamp<std::int64_t>(rows.d * rows.k / fewest_weights, 1, threads);
    parallel(rows.d, static_cast<int>(worth), [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t d = begin; d < end; ++d)
            row(d, rows.weight + d * rows.k, rows.live + d * rows.k);
    });
}

void row_scales(Rows rows, float* alpha, int threads) {
    each_row(rows, threads, [&](std::int64_t d, const float* w, const std::uint8_t* live) {
        const double total = interleaved_sum<double>(
            rows.k, [=](std::int64_t i) { return live[i] ? std::fabs(w[i]) : 0.0f; });
        const std::int64_t count = live_edges(live, rows.k);
        alpha[d] = static_cast<float>(total / static_cast<double>(std::max<std::int64_t>(1, count)));
    });
}

void binary_filters(Rows rows, const float* alpha, float* filters, int threads) {
    each_row(rows, threads, [&](std::int64_t d, const float* w, const std::uint8_t* live) {
        float* to = filters + d * rows.k;
        const float a = alpha[d];
        for (std::int64_t i = 0; i < rows.k; ++i) {
            const float value = w[i] >= 0.0f ? a : -a;
            to[i] = live[i] ? value : 0.0f;
        }
    });
}

void binary_gradient(Rows rows, const float* alpha, const float* grad, const std::uint8_t* learn,
                     Gradient mode, std::int64_t sources, float* result, int threads) {
    each_row(rows, threads, [&](std::int64_t d, const float* w, const std::uint8_t* live) {
        const float* g = grad + d * rows.k;
        const std::uint8_t* learns = learn + d * rows.k;
        float* to = result + d * rows.k;
        const std::int64_t edges = live_edges(live, rows.k);
        const auto count = static_cast<float>(std::max<std::int64_t>(1, edges));
        const float a = alpha[d];
        // A dead edge of a row without live ones would be that row's only edge: α = |w|, n = 1.
        const auto straight = [=](std::int64_t i) {
            const float magnitude = std::fabs(w[i]);
            const float passes = g[i] * (edges ? a : magnitude);
            return magnitude < 1.0f ? passes : passes * 0.0f;
        };
        if (mode == Gradient::exact) {
            const float through = interleaved_sum<float>(rows.k, [=](std::int64_t i) {
                const float value = w[i] >= 0.0f ? g[i] : -g[i];
                return live[i] ? value : 0.0f;
            }) / count;
            for (std::int64_t i = 0; i < rows.k; ++i) {
                const float scale = w[i] >= 0.0f ? through : -through;
                const float value = straight(i) + (live[i] ? scale : 0.0f);
                to[i] = learns[i] ? value : 0.0f;
            }
            return;
        }
        const float factor =
            mode == Gradient::repo ? (1.0f - 1.0f / static_cast<float>(sources)) * count : 1.0f;
        for (std::int64_t i = 0; i < rows.k; ++i) {
            const float value = (g[i] / count + straight(i)) * factor;
            to[i] = learns[i] ? value : 0.0f;
        }
    });
}

}  // namespace
}  // namespace WIRING_ISA
