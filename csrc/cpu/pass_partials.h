// The partial results of a pass, and the walk over the pixels that fills them.
#pragma once

#include <algorithm>
#include <limits>

#include "cpu/pass.h"

namespace d2ls {

// Those of all chunks in one block of memory, those of a dictionary together, image after image.
class PassPartials {
 public:
  PassPartials(const PassShape& s, const PassSizes& p, bool backward)
      : chunks(s.batch, s.pixels),
        acc_(s.rows * p.channels),
        maxima_(backward ? 0 : p.rows),
        matrix_(backward ? p.group_rows * p.channels : 0),
        bias_(backward ? p.groups : 0),
        vectors_(backward && s.entries > 0 ? 3 * p.channels : 0),
        stride_(round_up(acc_ + 2 * maxima_ + 2 * matrix_ + bias_ + vectors_, 16)),
        count_(s.dictionaries * chunks.count),
        memory_(count_ * stride_) {}

  PassPartial operator[](int64_t index) const {
    float* at = memory_.get() + index * stride_;
    PassPartial partial{};
    partial.acc = at;
    partial.row_max = at + acc_;
    partial.row_sum = partial.row_max + maxima_;
    partial.key = partial.row_sum + maxima_;
    partial.value = partial.key + matrix_;
    partial.key_bias = partial.value + matrix_;
    partial.vectors = partial.key_bias + bias_;
    return partial;
  }
  void clear(int64_t index) const {
    const PassPartial partial = (*this)[index];
    std::fill(partial.acc, partial.acc + stride_, 0.0f);
    std::fill(partial.row_max, partial.row_max + maxima_, -std::numeric_limits<float>::infinity());
  }

  // The first of dictionary and image g * B + b, to part of which sum() adds that part of the image's other chunks.
  PassPartial first_of(int64_t index) const { return (*this)[index * chunks.per_image]; }
  void sum(float* first, int64_t count) const { sum_chunks(first, chunks.per_image, stride_, count); }
  // The same over the chunks of all images and dictionaries.
  void sum_all(float* first, int64_t count) const { sum_chunks(first, count_, stride_, count); }

  const Chunks chunks;

 private:
  int64_t acc_, maxima_, matrix_, bias_, vectors_, stride_, count_;
  Buffer memory_;
};

// Pixels that meet one dictionary before they meet the next: few enough to wait in a second-level cache of 1 MB, enough
// that the matrices of a dictionary, which fill the rest of it, are not exchanged for another's with every tile.
constexpr int64_t kStrip = 256;

// Calls body(strip, index of its partial results) for chunks begin .. end, all dictionaries on one strip before the next.
template <typename Body>
void for_strips(const PassShape& s, const PassPartials& partials, int64_t begin, int64_t end, const Body& body) {
  const Chunks& chunks = partials.chunks;
  for (int64_t t = begin; t < end; ++t) {
    const Chunk chunk = chunks[t];
    for (int64_t g = 0; g < s.dictionaries; ++g) {
      partials.clear(g * chunks.count + t);
    }
    for (int64_t first = chunk.begin; first < chunk.end; first += kStrip) {
      for (int64_t g = 0; g < s.dictionaries; ++g) {
        body(PassStrip{chunk.batch, g, first, std::min(first + kStrip, chunk.end)}, g * chunks.count + t);
      }
    }
  }
}

}  // namespace d2ls
