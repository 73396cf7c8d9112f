// Which instruction sets this machine has, and the choice among the compiled ones.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

// A kernel's cpu.h declares `struct Kernels` (function pointers) and then says
// WIRING_DECLARE_KERNELS(op); its cpu.cpp defines `const Kernels WIRING_ISA::op_kernels`.
#if defined(__x86_64__) || defined(_M_X64)
#define WIRING_DECLARE_KERNELS(op)                                                          \
    namespace portable { extern const op::Kernels op##_kernels; }                           \
    namespace avx2 { extern const op::Kernels op##_kernels; }                               \
    namespace avx512 { extern const op::Kernels op##_kernels; }                             \
    namespace avx512popcnt { extern const op::Kernels op##_kernels; }
#define WIRING_LIST_KERNELS(op)                                                             \
    {{"portable", &portable::op##_kernels}, {"avx2", &avx2::op##_kernels},                  \
     {"avx512", &avx512::op##_kernels}, {"avx512popcnt", &avx512popcnt::op##_kernels}}
#elif defined(__aarch64__)
#define WIRING_DECLARE_KERNELS(op)                                                          \
    namespace portable { extern const op::Kernels op##_kernels; }                           \
    namespace neon { extern const op::Kernels op##_kernels; }
#define WIRING_LIST_KERNELS(op)                                                             \
    {{"portable", &portable::op##_kernels}, {"neon", &neon::op##_kernels}}
#else
#define WIRING_DECLARE_KERNELS(op) namespace portable { extern const op::Kernels op##_kernels; }
#define WIRING_LIST_KERNELS(op) {{"portable", &portable::op##_kernels}}
#endif

namespace wiring {

// Whether this processor runs code compiled for `set`.
inline bool supported(const std::string& set) {
#if defined(__x86_64__) || defined(_M_X64)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                      __builtin_cpu_supports("popcnt");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (set == "avx2") return avx2;
    if (set == "avx512") return avx512;
    if (set == "avx512popcnt") return avx512 && __builtin_cpu_supports("avx512vpopcntdq");
#endif
    return set == "portable" || set == "neon";
}

// The compiled variants of one operation, slowest first, and the one in use.
template <class Kernels>
class Variants {
  public:
    struct Variant {
        std::string set;
        const Kernels* kernels;
    };

    Variants(std::vector<Variant> all) {
        for (auto& variant : all)
            if (supported(variant.set)) variants_.push_back(variant);
        chosen_ = variants_.back();
    }

    const Kernels& operator*() const { return *chosen_.kernels; }
    const Kernels* operator->() const { return chosen_.kernels; }
    const std::string& chosen() const { return chosen_.set; }

    std::vector<std::string> names() const {
        std::vector<std::string> result;
        for (auto& variant : variants_) result.push_back(variant.set);
        return result;
    }

    // Throws std::invalid_argument for a set that was not compiled or does not run here.
    void choose(const std::string& set) {
        for (auto& variant : variants_)
            if (variant.set == set) {
                chosen_ = variant;
                return;
            }
        throw std::invalid_argument("instruction set '" + set + "' is not available here");
    }

  private:
    std::vector<Variant> variants_;
    Variant chosen_;
};

}  // namespace wiring
