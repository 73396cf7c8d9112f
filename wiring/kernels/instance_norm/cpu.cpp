// One strip of channels of one image at a time: it stays in the core's cache for all its passes.
// Lanes are channels, so no sum crosses lanes.
#include "instance_norm/cpu.h"

#include <cmath>

#include "native/floats.h"
#include "native/parallel.h"

namespace WIRING_ISA {
namespace {

using instance_norm::Images;
using instance_norm::Window;

constexpr int strip = 32;
constexpr std::int64_t rows = 64;  // pixels summed before they join the total: less rounding

// Calls body with the number of channels of a strip: a constant where the strip is full.
template <class Body>
inline void with_width(int width, Body&& body) {
    struct Full {
        constexpr operator int() const { return strip; }
    };
    if (width == strip)
        body(Full{});
    else
        body(width);
}

struct Moments {
    float mean[strip], scale[strip];
};

template <class Width>
inline void moments(const float* __restrict__ x, const Images& images, Width width, Moments& m) {
    const std::int64_t c = images.channels;
    float total[strip] = {};
    for (std::int64_t start = 0; start < images.pixels; start += rows) {
        float part[strip] = {};
        const std::int64_t end = std::min(start + rows, images.pixels);
        for (std::int64_t p = start; p < end; ++p)
            for (int i = 0; i < width; ++i) part[i] += x[p * c + i];
        for (int i = 0; i < width; ++i) total[i] += part[i];
    }
    const float pixels = static_cast<float>(images.pixels);
    for (int i = 0; i < width; ++i) m.mean[i] = total[i] / pixels;
    float squares[strip] = {};
    for (std::int64_t start = 0; start < images.pixels; start += rows) {
        float part[strip] = {};
        const std::int64_t end = std::min(start + rows, images.pixels);
        for (std::int64_t p = start; p < end; ++p)
            for (int i = 0; i < width; ++i) {
                const float d = x[p * c + i] - m.mean[i];
                part[i] += d * d;
            }
        for (int i = 0; i < width; ++i) squares[i] += part[i];
    }
    for (int i = 0; i < width; ++i)
        m.scale[i] = 1.0f / std::sqrt(squares[i] / pixels + images.eps);
}

// y = (x - mean)·slope + shift.
template <class Width>
inline void line(const Moments& m, const float* weight, const float* bias, Width width,
                 float* slope, float* shift) {
    for (int i = 0; i < width; ++i) {
        slope[i] = m.scale[i] * weight[i];
        shift[i] = bias[i];
    }
}

// What the images contribute [n, width], added up in their order.
void add_images(const float* parts, std::int64_t n, std::int64_t width, float* total) {
    std::fill_n(total, width, 0.0f);
    for (std::int64_t image = 0; image < n; ++image)
        for (std::int64_t i = 0; i < width; ++i) total[i] += parts[image * width + i];
}

// Calls body(thread, image, first channel, width) for every strip of every image, in parallel.
template <class Body>
void for_strips(const Images& images, int threads, Body&& body) {
    const std::int64_t strips = (images.channels + strip - 1) / strip;
    parallel(images.n * strips, threads, [&](int thread, std::int64_t begin, std::int64_t end) {
        for (std::int64_t task = begin; task < end; ++task) {
            const std::int64_t first = task % strips * strip;
            const auto width = static_cast<int>(
                std::min<std::int64_t>(strip, images.channels - first));
            with_width(width, [&](auto w) { body(thread, task / strips, first, w); });
        }
    });
}

void forward(const float* x, const float* weight, const float* bias, const Images& images,
             float* y, int threads) {
    const std::int64_t c = images.channels;
    for_strips(images, threads, [&](int, std::int64_t image, std::int64_t first, auto width) {
        const float* __restrict__ from = x + image * images.pixels * c + first;
        float* __restrict__ to = y + image * images.pixels * c + first;
        Moments m;
        moments(from, images, width, m);
        float slope[strip], shift[strip];
        line(m, weight + first, bias + first, width, slope, shift);
        const float floor = images.relu ? 0.0f : -INFINITY;
        for (std::int64_t p = 0; p < images.pixels; ++p)
            for (int i = 0; i < width; ++i) {
                const float z = (from[p * c + i] - m.mean[i]) * slope[i] + shift[i];
                to[p * c + i] = z < floor ? floor : z;  // a NaN stays one
            }
    });
}

// What reaches the norm through the ReLU.
template <bool relu>
inline float pulled(float grad, float z) {
    return !relu || z > 0.0f ? grad : 0.0f;
}

// sums, products [n, channels]: Σ grad and Σ grad · normalised x of each image.
template <bool relu>
void image_gradients(const float* grad, const float* x, const float* weight, const float* bias,
                     const Images& images, float* dx, float* sums, float* products, int threads) {
    const std::int64_t c = images.channels;
    for_strips(images, threads, [&](int, std::int64_t image, std::int64_t first, auto width) {
        const std::int64_t offset = image * images.pixels * c + first;
        const float* __restrict__ from = x + offset;
        const float* __restrict__ g = grad + offset;
        float* __restrict__ to = dx + offset;
        Moments m;
        moments(from, images, width, m);
        float slope[strip], shift[strip], sum[strip] = {}, product[strip] = {};
        line(m, weight + first, bias + first, width, slope, shift);
        for (std::int64_t start = 0; start < images.pixels; start += rows) {
            float s[strip] = {}, q[strip] = {};
            const std::int64_t end = std::min(start + rows, images.pixels);
            for (std::int64_t p = start; p < end; ++p)
                for (int i = 0; i < width; ++i) {
                    const float d = from[p * c + i] - m.mean[i];
                    const float pull = pulled<relu>(g[p * c + i], d * slope[i] + shift[i]);
                    s[i] += pull;
                    q[i] += pull * (d * m.scale[i]);
                }
            for (int i = 0; i < width; ++i) {
                sum[i] += s[i];
                product[i] += q[i];
            }
        }
        const float share = 1.0f / static_cast<float>(images.pixels);
        for (int i = 0; i < width; ++i) {
            sums[image * c + first + i] = sum[i];
            products[image * c + first + i] = product[i];
            sum[i] *= share;
            product[i] *= share * m.scale[i];
        }
        for (std::int64_t p = 0; p < images.pixels; ++p)
            for (int i = 0; i < width; ++i) {
                const float d = from[p * c + i] - m.mean[i];
                const float pull = pulled<relu>(g[p * c + i], d * slope[i] + shift[i]);
                to[p * c + i] = (pull - (sum[i] + d * product[i])) * slope[i];
            }
    });
}

void gradients(const float* grad, const float* x, const float* weight, const float* bias,
               const Images& images, float* dx, float* dweight, float* dbias, int threads) {
    const std::int64_t c = images.channels;
    Scratch<float> sums(static_cast<std::size_t>(images.n * c));
    Scratch<float> products(static_cast<std::size_t>(images.n * c));
    const auto run = images.relu ? image_gradients<true> : image_gradients<false>;
    run(grad, x, weight, bias, images, dx, sums.data(), products.data(), threads);
    add_images(sums.data(), images.n, c, dbias);
    add_images(products.data(), images.n, c, dweight);
}

constexpr int taps = 9;

// Where a window's taps lie in an image with a border, [(height + 2)(width + 2), strip].
inline std::int64_t tap(const Window& window, int k) {
    return (k / 3 * (window.width + 2) + k % 3) * strip;
}

inline std::int64_t bordered(const Window& window) {
    return (window.height + 2) * (window.width + 2) * strip;
}

// The norm and ReLU of one strip of an image, inside a border of 0.
template <class Width>
void activate(const float* __restrict__ x, const Images& images, const Window& window, Width width,
              const Moments& m, const float* slope, const float* shift, float* __restrict__ z) {
    std::fill_n(z, bordered(window), 0.0f);
    for (std::int64_t row = 0; row < window.height; ++row) {
        float* __restrict__ to = z + ((row + 1) * (window.width + 2) + 1) * strip;
        const float* __restrict__ from = x + row * window.width * images.channels;
        for (std::int64_t p = 0; p < window.width; ++p)
            for (int i = 0; i < width; ++i) {
                const float v =
                    (from[p * images.channels + i] - m.mean[i]) * slope[i] + shift[i];
                to[p * strip + i] = v < 0.0f ? 0.0f : v;  // a NaN stays one
            }
    }
}

template <class Width>
void load_filter(const float* filter, std::int64_t first, Width width, float (&taken)[taps][strip]) {
    for (int k = 0; k < taps; ++k)
        for (int i = 0; i < width; ++i) taken[k][i] = filter[(first + i) * taps + k];
}

inline Floats load(const float* p, int n) {
    return n == Floats::lanes ? Floats::load(p) : Floats::load(p, n);
}

// Of one strip: z with its border → y, whose pixels lie c floats apart.
void filter_strip(const float* z, const Window& window, const float (&filter)[taps][strip],
                  int width, std::int64_t c, float* y) {
    for (int v = 0; v < width; v += Floats::lanes) {
        const int n = std::min(Floats::lanes, width - v);
        Floats f[taps];
        for (int k = 0; k < taps; ++k) f[k] = Floats::load(filter[k] + v);
        for (std::int64_t row = 0; row < window.rows(); ++row)
            for (std::int64_t column = 0; column < window.columns(); ++column) {
                const float* corner =
                    z + (row * (window.width + 2) + column) * window.stride * strip + v;
                Floats sum = f[0] * Floats::load(corner);
                for (int k = 1; k < taps; ++k)
                    sum = fma(f[k], Floats::load(corner + tap(window, k)), sum);
                float* to = y + (row * window.columns() + column) * c + v;
                n == Floats::lanes ? sum.store(to) : sum.store(to, n);
            }
    }
}

// The transpose: adds to dz (with its border, 0 before), and writes the filter's gradient.
void filter_gradients(const float* grad, std::int64_t pitch, const float* z, const Window& window,
                      const float (&filter)[taps][strip], int width, float* dz,
                      float (&dfilter)[taps][strip]) {
    for (int v = 0; v < width; v += Floats::lanes) {
        const int n = std::min(Floats::lanes, width - v);
        Floats f[taps], df[taps];
        for (int k = 0; k < taps; ++k) {
            f[k] = Floats::load(filter[k] + v);
            df[k] = Floats::all(0.0f);
        }
        for (std::int64_t row = 0; row < window.rows(); ++row)
            for (std::int64_t column = 0; column < window.columns(); ++column) {
                const std::int64_t corner =
                    (row * (window.width + 2) + column) * window.stride * strip + v;
                const Floats g = load(grad + (row * window.columns() + column) * pitch + v, n);
                for (int k = 0; k < taps; ++k) {
                    const std::int64_t at = corner + tap(window, k);
                    df[k] = fma(g, Floats::load(z + at), df[k]);
                    fma(g, f[k], Floats::load(dz + at)).store(dz + at);
                }
            }
        for (int k = 0; k < taps; ++k) df[k].store(dfilter[k] + v);
    }
}

void depthwise(const float* x, const float* weight, const float* bias, const float* filter,
               const Images& images, const Window& window, float* y, int threads) {
    const std::int64_t c = images.channels, rows = window.rows(), columns = window.columns();
    const auto size = static_cast<std::size_t>(bordered(window));
    Scratch<float> scratch(size * static_cast<std::size_t>(threads));
    for_strips(images, threads, [&](int thread, std::int64_t image, std::int64_t first, auto width) {
        const float* from = x + image * images.pixels * c + first;
        float* __restrict__ z = &scratch[size * static_cast<std::size_t>(thread)];
        Moments m;
        moments(from, images, width, m);
        float slope[strip], shift[strip], f[taps][strip] = {};
        line(m, weight + first, bias + first, width, slope, shift);
        load_filter(filter, first, width, f);
        activate(from, images, window, width, m, slope, shift, z);
        filter_strip(z, window, f, width, c, y + image * rows * columns * c + first);
    });
}

void depthwise_gradients(const float* grad, std::int64_t pitch, const float* x, const float* weight, const float* bias,
                         const float* filter, const Images& images, const Window& window,
                         float* dx, float* dweight, float* dbias, float* dfilter, int threads) {
    const std::int64_t c = images.channels, rows = window.rows(), columns = window.columns();
    const auto size = static_cast<std::size_t>(bordered(window));
    const auto values = static_cast<std::size_t>(images.n * c);
    Scratch<float> activated(size * static_cast<std::size_t>(threads));
    Scratch<float> pulls(size * static_cast<std::size_t>(threads));
    Scratch<float> sums(values), products(values), filters(values * taps);
    for_strips(images, threads, [&](int thread, std::int64_t image, std::int64_t first, auto width) {
        const std::int64_t offset = image * images.pixels * c + first;
        float* __restrict__ z = &activated[size * static_cast<std::size_t>(thread)];
        float* __restrict__ dz = &pulls[size * static_cast<std::size_t>(thread)];
        Moments m;
        moments(x + offset, images, width, m);
        float slope[strip], shift[strip], f[taps][strip] = {}, df[taps][strip];
        line(m, weight + first, bias + first, width, slope, shift);
        load_filter(filter, first, width, f);
        activate(x + offset, images, window, width, m, slope, shift, z);
        std::fill_n(dz, size, 0.0f);
        filter_gradients(grad + image * rows * columns * pitch + first, pitch, z, window, f, width,
                         dz, df);
        for (int k = 0; k < taps; ++k)
            for (int i = 0; i < width; ++i)
                filters[(image * c + first + i) * taps + k] = df[k][i];
        // The ReLU's mask is in z; from here on dz is what reaches the norm.
        float sum[strip] = {}, product[strip] = {};
        for (std::int64_t row = 0; row < window.height; ++row)
            for (std::int64_t column = 0; column < window.width; ++column) {
                const std::int64_t here = ((row + 1) * (window.width + 2) + column + 1) * strip;
                const float* from = x + offset + (row * window.width + column) * c;
                for (int i = 0; i < width; ++i) {
                    const float pull = z[here + i] > 0.0f ? dz[here + i] : 0.0f;
                    dz[here + i] = pull;
                    sum[i] += pull;
                    product[i] += pull * ((from[i] - m.mean[i]) * m.scale[i]);
                }
            }
        const float share = 1.0f / static_cast<float>(images.pixels);
        for (int i = 0; i < width; ++i) {
            sums[image * c + first + i] = sum[i];
            products[image * c + first + i] = product[i];
            sum[i] *= share;
            product[i] *= share * m.scale[i];
        }
        for (std::int64_t row = 0; row < window.height; ++row)
            for (std::int64_t column = 0; column < window.width; ++column) {
                const std::int64_t here = ((row + 1) * (window.width + 2) + column + 1) * strip;
                const std::int64_t there = offset + (row * window.width + column) * c;
                for (int i = 0; i < width; ++i) {
                    const float d = x[there + i] - m.mean[i];
                    dx[there + i] = (dz[here + i] - (sum[i] + d * product[i])) * slope[i];
                }
            }
    });
    add_images(sums.data(), images.n, c, dbias);
    add_images(products.data(), images.n, c, dweight);
    add_images(filters.data(), images.n, c * taps, dfilter);
}

}  // namespace

extern const instance_norm::Kernels instance_norm_kernels = {forward, gradients, depthwise,
                                                             depthwise_gradients};

}  // namespace WIRING_ISA
