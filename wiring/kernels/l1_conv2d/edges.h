// The same sums over live edges alone (native/sparse.h): work goes with their number.
#pragma once

#include "l1_conv2d/lanes.h"
#include "native/dots.h"
#include "native/sparse.h"

namespace WIRING_ISA {
namespace {

using l1_conv2d::Layer;

struct Distance {
    static constexpr bool own = false;
    static Floats step(Floats sum, Floats x, Floats w, Floats) { return sum - abs(x - w); }
};

// The planes hold the gradient, `own` is x.
struct ClippedPull {
    static constexpr bool own = true;
    static Floats step(Floats sum, Floats grad, Floats w, Floats x) {
        return fma(grad, clamp(w - x), sum);
    }
};

struct SignPull {
    static constexpr bool own = true;
    static Floats step(Floats sum, Floats grad, Floats w, Floats x) {
        return fma(grad, sign(w - x), sum);
    }
};

struct Side {
    static Floats step(Floats sum, Floats grad, Floats x, Floats w) {
        return fma(grad, sign(x - w), sum);
    }
};

// A layer as native/sparse.h sees it.
struct Gathering {
    Filter filter;
    Shape x, y;

    explicit Gathering(const Layer& layer)
        : filter{layer.sources, layer.kernel_height, layer.kernel_width, layer.stride,
                 layer.padding},
          x{layer.images, layer.sources, layer.height, layer.width, true},
          y{layer.images, layer.destinations, layer.out_height, layer.out_width, true} {
        if (layer.taps() == 1 && layer.stride == 1 && layer.padding == 0) {
            x = x.row();
            y = y.row();
        }
    }
};

void sparse_forward(const float* x, const float* weight, Bits& live, const Layer& layer, float* y,
                    int threads) {
    const Gathering g(layer);
    const Planes planes = g.filter.planes(g.x);
    Forward edges(live, weight, g.filter, planes, threads);
    gather<Distance>(planes, x, edges.list(), Sink{g.y, 1}, y, threads);
}

void sparse_input_gradient(const float* grad, const float* x, const float* weight, Bits& live,
                           const Layer& layer, int mode, float* result, int threads) {
    const Gathering g(layer);
    const Planes planes = Backward::planes(g.filter, g.y, g.x.height, g.x.width);
    Backward edges(live, weight, g.filter, planes);
    const Sink sink{g.x, layer.stride};
    Extra extra;
    extra.own = x;
    extra.own_shape = g.x;
    if (mode == l1_conv2d::sign)
        gather<SignPull>(planes, grad, edges.list(), sink, result, threads, extra);
    else
        gather<ClippedPull>(planes, grad, edges.list(), sink, result, threads, extra);
}

void sign_weight_gradient(const float* grad, const float* x, const float* weight,
                          const std::uint8_t* learn, const Layer& layer, float* result,
                          int threads) {
    const Gathering g(layer);
    const Index columns = g.filter.columns();
    Bits bits(learn, layer.destinations, columns, threads);
    const Planes planes = g.filter.planes(g.x);
    Forward edges(bits, weight, g.filter, planes, threads);
    Scratch<float> sums(static_cast<std::size_t>(bits.size()));
    dots<Side>(planes, x, g.y, grad, edges.list(), sums.data(), threads);
    std::fill_n(result, layer.destinations * columns, 0.0f);
    const float* from = sums.data();
    bits.each(threads, [=](Index d, Index e, std::int64_t k) { result[d * columns + e] = from[k]; });
}

}  // namespace
}  // namespace WIRING_ISA
