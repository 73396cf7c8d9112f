#include "l1_conv2d/cpu.h"

#include "l1_conv2d/bytes.h"
#include "l1_conv2d/edges.h"
#include "l1_conv2d/forward.h"
#include "l1_conv2d/gradients.h"

namespace WIRING_ISA {
namespace {

// How a mask is best obeyed: not at all, edge by edge, or as bits beside the weights.
enum class Way { complete, sparse, masked };

Way way(Bits& live, std::int64_t most) {
    if (live.size() == live.rows * live.columns) return Way::complete;
    return live.size() <= most ? Way::sparse : Way::masked;
}

void forward(const float* x, const float* weight, const std::uint8_t* live, std::int64_t most,
             const Layer& layer, float* y, int threads) {
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
    if (live) {
        Bits bits(live, layer.destinations, layer.depth(), threads);
        const Way best = way(bits, most);
        if (best == Way::sparse)
            return sparse_input_gradient(grad, x, weight, bits, layer, mode, result, threads);
        if (best == Way::complete) live = nullptr;
    }
    dense_input_gradient(grad, x, weight, live, layer, mode, result, threads);
}

}  // namespace

extern const l1_conv2d::Kernels l1_conv2d_kernels = {
    pack_weights, dense_forward, forward,    input_gradient,
    sign_weight_gradient, pack_bytes, forward_bytes,
};

}  // namespace WIRING_ISA
