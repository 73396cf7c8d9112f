// Memory for intermediate results that stays with its thread from one call to the next.
//
// A fresh megabyte costs as much as a small layer: the system hands out and clears its pages one
// by one. So a freed block waits for the next call that asks for no more, up to `kept` bytes.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <vector>

namespace WIRING_ISA {

class Blocks {
  public:
    struct Block {
        void* data;
        std::size_t bytes;
    };

    static Blocks& here() {
        static thread_local Blocks blocks;
        return blocks;
    }

    ~Blocks() {
        for (auto& block : free_) std::free(block.data);
    }

    // At least `bytes`, 64-byte aligned, not initialised. Throws std::bad_alloc.
    Block take(std::size_t bytes) {
        auto best = free_.end();
        for (auto it = free_.begin(); it != free_.end(); ++it)
            if (it->bytes >= bytes && (best == free_.end() || it->bytes < best->bytes)) best = it;
        if (best != free_.end()) {
            const Block block = *best;
            free_.erase(best);
            held_ -= block.bytes;
            return block;
        }
        const std::size_t rounded = (bytes + 4095) / 4096 * 4096;
        void* data = std::aligned_alloc(64, rounded);
        if (!data) throw std::bad_alloc();
        return {data, rounded};
    }

    void give(Block block) noexcept {
        constexpr std::size_t kept = std::size_t{32} << 20, most = 16;
        if (held_ + block.bytes > kept || free_.size() >= most) {
            std::free(block.data);
            return;
        }
        free_.push_back(block);
        held_ += block.bytes;
    }

  private:
    Blocks() { free_.reserve(16); }

    std::vector<Block> free_;
    std::size_t held_ = 0;
};

// An array in such a block. Make it before `parallel`, with a part for every thread.
template <class T>
class Reused {
  public:
    explicit Reused(std::size_t count) : block_(Blocks::here().take(count * sizeof(T))) {}
    ~Reused() { Blocks::here().give(block_); }
    Reused(const Reused&) = delete;
    Reused& operator=(const Reused&) = delete;
    T* data() { return static_cast<T*>(block_.data); }
    T& operator[](std::size_t i) { return data()[i]; }

  private:
    Blocks::Block block_;
};

}  // namespace WIRING_ISA
