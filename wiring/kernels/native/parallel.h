// Work shared among threads, and memory that does not throw inside a parallel region.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace WIRING_ISA {

// Calls body(thread, begin, end) on `threads` contiguous parts of 0..n. The parts depend on n
// and threads alone, so results that do not sum across parts do not depend on either.
template <class Body>
void parallel(std::int64_t n, int threads, Body&& body) {
    const int workers = static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, n)));
#ifdef _OPENMP
    if (workers > 1) {
#pragma omp parallel num_threads(workers)
        {
            // The runtime may grant fewer threads than asked for.
            const std::int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
            body(static_cast<int>(me), n * me / team, n * (me + 1) / team);
        }
        return;
    }
#endif
    body(0, std::int64_t{0}, n);
}

// One block of 64-byte aligned memory, not initialised. Throws std::bad_alloc: make it before
// `parallel`, with a part for every thread.
template <class T>
class Scratch {
  public:
    explicit Scratch(std::size_t count) : size_(count) {
        const std::size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
        data_ = static_cast<T*>(std::aligned_alloc(64, bytes ? bytes : 64));
        if (!data_) throw std::bad_alloc();
    }
    ~Scratch() { std::free(data_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    T* data() { return data_; }
    T& operator[](std::size_t i) { return data_[i]; }
    std::size_t size() const { return size_; }

  private:
    T* data_;
    std::size_t size_;
};

}  // namespace WIRING_ISA
