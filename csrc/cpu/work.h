// What all kernels share on the host side: aligned memory, and how N pixels are cut into chunks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace d2ls {

enum class Dtype { f32, bf16, f16 };

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Cache-line aligned, uninitialised float32 memory.
class Buffer {
 public:
  explicit Buffer(int64_t floats)
      : data_(static_cast<float*>(std::aligned_alloc(64, round_up(std::max<int64_t>(floats, 1) * 4, 64)))) {
    if (data_ == nullptr) {
      throw std::bad_alloc();
    }
  }
  float* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> data_;
};

struct Chunk {
  int64_t batch;
  int64_t begin;  // first pixel
  int64_t end;
};

// Chunks of the pixels of B images. Their number depends on N only, never on the number of threads, so that sums over
// chunks are bitwise repeatable. At least 256 pixels, so that partial results stay small beside the pixels; between 16
// and 64 chunks an image otherwise.
class Chunks {
 public:
  Chunks(int64_t batch, int64_t pixels) : total_(pixels) {
    const int64_t wanted = std::clamp<int64_t>(pixels / 1024, 16, 64);
    size_ = round_up(std::max<int64_t>(256, (pixels + wanted - 1) / wanted), 64);
    per_image = (pixels + size_ - 1) / size_;
    count = batch * per_image;
  }
  Chunk operator[](int64_t task) const {
    const int64_t begin = task % per_image * size_;
    return {task / per_image, begin, std::min(begin + size_, total_)};
  }
  int64_t per_image;
  int64_t count;

 private:
  int64_t total_;
  int64_t size_;
};

// body(chunk, its number, scratch) for every chunk of pixels; the chunks of a thread share the scratch memory.
template <class Body>
void for_chunks(const Chunks& chunks, int64_t scratch_floats, const Parallel& parallel, const Body& body) {
  parallel(chunks.count, 1, [&](int64_t begin, int64_t end) {
    const Buffer scratch(scratch_floats);
    for (int64_t t = begin; t < end; ++t) {
      body(chunks[t], t, scratch.get());
    }
  });
}

// Adds up the partial results of an image's chunks, in the order of the chunks, into the first one.
inline void sum_chunks(float* first, int64_t chunks, int64_t stride, int64_t count) {
  for (int64_t t = 1; t < chunks; ++t) {
    for (int64_t i = 0; i < count; ++i) {
      first[i] += first[t * stride + i];
    }
  }
}

}  // namespace d2ls
