#include "l1_conv2d/cpu.h"

#include "l1_conv2d/bytes.h"
#include "l1_conv2d/edges.h"
#include "l1_conv2d/forward.h"
#include "l1_conv2d/gradients.h"
#include "l1_conv2d/sliding.h"

namespace WIRING_ISA {
namespace {

// How a mask is best obeyed: not at all, edge by edge, or as bits beside the weights.
using l1_conv2d::Layer;

enum class Way { complete, sparse, masked };

Way way(Bits& live, std::int64_t most) {
    if (live.size() == live.rows * live.columns) return Way::complete;
    return live.size() <= most ? Way::sparse : Way::masked;
}

// As many threads as have something to do: starting one takes as long as some 2^18 terms.
int useful(int threads, const Layer& layer) {
    const std::int64_t terms = layer.outputs() * layer.destinations * layer.depth();
    return static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, terms >> 18)));
}

void prepared(const float* x, const float* packed, bool masked, const Layer& layer, float* y,
              int threads) {
    dense_forward(x, packed, masked, layer, y, useful(threads, layer));
}

void forward(const float* x, const float* weight, const std::uint8_t* live, std::int64_t most,
             const Layer& layer, float* y, int threads) {
    threads = useful(threads, layer);
    if (live) {
        Bits bits(live, layer.destinations, layer.depth(), threads);
        const Way best = way(bits, most);
        if (best == Way::sparse) return sparse_forward(x, weight, bits, layer, y, threads);
        if (best == Way::complete) live = nullptr;
    }
    Scratch<float> packed(
        static_cast<std::size_t>(l1_conv2d::packed_floats(layer, live != nullptr)));
    pack_weights(weight, live, layer, packed.data(), threads);
    dense_forward(x, packed.data(), live != nullptr, layer, y, threads);
}

void input_gradient(const float* grad, const float* x, const float* weight,
                    const std::uint8_t* live, std::int64_t most, const Layer& layer, int mode,
                    float* result, int threads) {
    threads = useful(threads, layer);
    if (live) {
        Bits bits(live, layer.destinations, layer.depth(), threads);
        const Way best = way(bits, most);
        if (best == Way::sparse)
            return sparse_input_gradient(grad, x, weight, bits, layer, mode, result, threads);
        if (best == Way::complete) live = nullptr;
    }
    dense_input_gradient(grad, x, weight, live, layer, mode, result, threads);
}

void pack_bytes(const std::uint8_t* weight, const std::uint8_t* live, const Layer& layer,
                std::uint8_t* packed, int threads) {
    if (l1_conv2d::slides(layer, live != nullptr))
        pack_sliding(weight, layer, packed, threads);
    else
        pack_grouped(weight, live, layer, packed, threads);
}

void forward_bytes(const std::uint8_t* x, const std::uint8_t* packed, bool masked,
                   std::uint8_t outside, const Layer& layer, std::int32_t* y, int threads) {
    threads = useful(threads, layer);
    if (l1_conv2d::slides(layer, masked))
        forward_sliding(x, packed, outside, layer, y, threads);
    else
        forward_grouped(x, packed, masked, outside, layer, y, threads);
}

}  // namespace

extern const l1_conv2d::Kernels l1_conv2d_kernels = {
    pack_weights, prepared, forward, input_gradient, sign_weight_gradient, pack_bytes,
    forward_bytes,
};

}  // namespace WIRING_ISA
