// What both halves of the projected interaction share on the host side.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <memory>

#include "cpu/kernels.h"
#include "cpu/projected.h"

namespace d2ls {

inline ProjectedSizes projected_sizes(const PassShape& s, int64_t width, int64_t groups, bool backward) {
  const int64_t lanes = chosen_kernels().projected.lanes;
  const auto whole = [lanes](int64_t count) { return round_up(count, lanes); };
  PassSizes pass{};
  pass.channels = whole(s.channels);
  const int64_t depth = width / s.heads;
  return {pass,  s.heads,   depth,     whole(depth),     width,  whole(width), whole(width) + lanes,
          s.entries, whole(s.entries), groups, backward};
}

// A matrix [rows, columns] with its rows padded by zeros.
class Padded {
 public:
  Padded(const float* matrix, int64_t rows, int64_t columns, int64_t stride, const Parallel& parallel)
      : memory_(rows * stride) {
    parallel(rows, 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        float* to = memory_.get() + r * stride;
        std::copy(matrix + r * columns, matrix + (r + 1) * columns, to);
        std::fill(to + columns, to + stride, 0.0f);
      }
    });
  }
  const float* get() const { return memory_.get(); }

 private:
  Buffer memory_;
};

// The transpose [columns, rows] of a matrix [rows, columns], padded likewise; of `count` matrices in a row.
class Transposed {
 public:
  Transposed(const float* matrix, int64_t count, int64_t rows, int64_t columns, int64_t stride,
             const Parallel& parallel)
      : memory_(count * columns * stride) {
    parallel(count * columns, 32, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float* from = matrix + i / columns * rows * columns + i % columns;
        float* to = memory_.get() + i * stride;
        for (int64_t r = 0; r < rows; ++r) {
          to[r] = from[r * columns];
        }
        std::fill(to + rows, to + stride, 0.0f);
      }
    });
  }
  const float* get() const { return memory_.get(); }

 private:
  Buffer memory_;
};

// A block of memory for every chunk, with parts of the given sizes. Their sums are formed in the first chunk's.
class ProjectedPartials {
 public:
  ProjectedPartials(const PassShape& s, std::initializer_list<int64_t> sizes) : chunks(s.batch, s.pixels), stride_(0) {
    for (const int64_t size : sizes) {
      offsets_[count_++] = stride_;
      stride_ += round_up(size, 16);
    }
    memory_ = std::make_unique<Buffer>(chunks.count * stride_);
  }
  float* part(int64_t chunk, int index) const { return memory_->get() + chunk * stride_ + offsets_[index]; }

  // Sums a part [rows, stride], of which `columns` count, over all chunks into out [rows, columns].
  void sum_rows(int index, int64_t rows, int64_t stride, int64_t columns, float* out, const Parallel& parallel) const {
    parallel(rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        float* first = part(0, index) + r * stride;
        sum_chunks(first, chunks.count, stride_, columns);
        std::copy(first, first + columns, out + r * columns);
      }
    });
  }

  // Sums group `group` of a part [G, H, K, dp] over an image's chunks into rows [K, D] of a dictionary.
  void sum_heads(const ProjectedSizes& p, int64_t image, int index, int64_t group, float* out,
                 const Parallel& parallel) const {
    float* groups = part(image * chunks.per_image, index);
    parallel(p.heads * p.entries, 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        float* sum = groups + (group * p.heads * p.entries + row) * p.depths;
        sum_chunks(sum, chunks.per_image, stride_, p.depth);
        std::copy(sum, sum + p.depth, out + row % p.entries * p.width + row / p.entries * p.depth);
      }
    });
  }

  const Chunks chunks;

 private:
  int64_t offsets_[6];
  int count_ = 0;
  int64_t stride_;
  std::unique_ptr<Buffer> memory_;
};

}  // namespace d2ls
