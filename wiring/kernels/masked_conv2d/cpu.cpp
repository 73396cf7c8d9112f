#include "masked_conv2d/cpu.h"

#include "native/dots.h"
#include "native/sparse.h"

namespace WIRING_ISA {
namespace {

using masked_conv2d::Convolution;
using masked_conv2d::Row;

struct Multiply {
    static constexpr bool own = false;
    static Floats step(Floats sum, Floats x, Floats w, Floats) { return fma(x, w, sum); }
};

struct Dot {
    static Floats step(Floats sum, Floats grad, Floats x, Floats) { return fma(grad, x, sum); }
};

// The convolution as the skeleton sees it.
struct Problem {
    Filter filter;
    Shape x, y;

    explicit Problem(const Convolution& c)
        : filter{c.sources, c.kernel_h, c.kernel_w, c.stride, c.padding},
          x{c.images, c.sources, c.height, c.width, c.x_last},
          y{c.images, c.destinations, filter.output(c.height, c.kernel_h),
            filter.output(c.width, c.kernel_w), c.y_last} {
        const bool pointwise = filter.taps() == 1 && c.stride == 1 && c.padding == 0;
        if (pointwise && c.x_last && c.y_last) {
            x = x.row();
            y = y.row();
        }
    }
};

bool forward(const Convolution& c, const float* x, const float* weight, const std::uint8_t* live,
             float* y, std::int64_t most, int threads) {
    const Problem p(c);
    Bits bits(live, c.destinations, p.filter.columns(), threads);
    if (bits.size() > most) return false;
    const Planes planes = p.filter.planes(p.x);
    Forward edges(bits, weight, p.filter, planes, threads);
    gather<Multiply>(planes, x, edges.list(), Sink{p.y, 1}, y, threads);
    return true;
}

bool input_gradient(const Convolution& c, const float* grad, const float* weight,
                    const std::uint8_t* live, float* dx, std::int64_t most, int threads) {
    const Problem p(c);
    Bits bits(live, c.destinations, p.filter.columns(), threads);
    if (bits.size() > most) return false;
    const Planes planes = Backward::planes(p.filter, p.y, p.x.height, p.x.width);
    Backward edges(bits, weight, p.filter, planes);
    gather<Multiply>(planes, grad, edges.list(), Sink{p.x, c.stride}, dx, threads);
    return true;
}

bool weight_gradient(const Convolution& c, const float* grad, const float* x,
                     const std::uint8_t* learn, float* dw, std::int64_t most, int threads) {
    const Problem p(c);
    const Index columns = p.filter.columns();
    Bits bits(learn, c.destinations, columns, threads);
    if (bits.size() > most) return false;
    const Planes planes = p.filter.planes(p.x, dot_vectors);
    // The gradient does not depend on the weights.
    Forward edges(bits, nullptr, p.filter, planes, threads);
    Reused<float> sums(static_cast<std::size_t>(bits.size()));
    dots<Dot>(planes, x, p.y, grad, edges.list(), sums.data(), threads);
    std::fill(dw, dw + c.destinations * columns, 0.0f);
    const float* from = sums.data();
    bits.each(threads, [=](Index d, Index e, std::int64_t k) { dw[d * columns + e] = from[k]; });
    return true;
}

void mask(const float* x, const std::uint8_t* flags, std::int64_t size, float* result,
          int threads) {
    constexpr Index part = Index{1} << 14;
    parallel(ceil_div(size, part), threads, [=](int, Index begin, Index end) {
        const Index last = std::min(size, end * part);
        for (Index i = begin * part; i < last; ++i) result[i] = flags[i] ? x[i] : 0.0f;
    });
}

void layout(const Convolution& c, std::int64_t* line, std::int64_t* columns) {
    const Problem p(c);
    const Planes planes = p.filter.planes(p.x);
    *line = planes.stride;
    *columns = planes.grid.columns;
}

void prepared(const Convolution& c, const float* x, const Row& row, float* y, int threads) {
    const Problem p(c);
    const Edges list{c.destinations, row.start, static_cast<const Edge*>(row.edges)};
    Extra extra;
    extra.shift = row.shift;
    extra.relu = row.relu;
    gather<Multiply>(p.filter.planes(p.x), x, list, Sink{p.y, 1}, y, threads, extra);
}

}  // namespace

extern const masked_conv2d::Kernels masked_conv2d_kernels = {
    forward, input_gradient, weight_gradient, mask, layout, prepared};

}  // namespace WIRING_ISA
