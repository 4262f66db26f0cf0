#include "cpu/nce.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/kernels.h"

namespace d2ls {
namespace {

const NceKernels& kernels() { return chosen_kernels().nce; }

// The entries of every image, transposed and padded, once a call.
class Entries {
 public:
  Entries(const NceInputs& in, bool backward)
      : columns_(round_up(in.vectors(), kernels().lanes)),
        channels(round_up(in.channels, kernels().lanes)),
        turned_(in.channels * columns_),
        rows_(backward ? in.vectors() * channels : 0),
        transposed_(in.batch * turned_),
        padded_(in.batch * rows_) {
    for (int64_t b = 0; b < in.batch; ++b) {
      const float* from = in.entries + b * in.vectors() * in.channels;
      float* to = transposed_.get() + b * turned_;
      for (int64_t c = 0; c < in.channels; ++c) {
        for (int64_t j = 0; j < columns_; ++j) {
          to[c * columns_ + j] = j < in.vectors() ? from[j * in.channels + c] : 0.0f;
        }
      }
      for (int64_t j = 0; j < in.vectors() && backward; ++j) {
        float* row = padded_.get() + b * rows_ + j * channels;
        std::copy(from + j * in.channels, from + (j + 1) * in.channels, row);
        std::fill(row + in.channels, row + channels, 0.0f);
      }
    }
  }
  NcePacked operator[](int64_t b) const { return {transposed_.get() + b * turned_, padded_.get() + b * rows_}; }

 private:
  int64_t columns_;

 public:
  const int64_t channels;  // padded

 private:
  int64_t turned_, rows_;
  Buffer transposed_, padded_;
};

// Log-sum-exp of a class from the running maxima and sums of its entries in every chunk, [chunks, J]; 0 without labels.
float merge(const float* top, const float* sum, int64_t chunks, int64_t stride, int64_t prototypes) {
  float highest = top[0];
  for (int64_t t = 0; t < chunks; ++t) {
    highest = std::max(highest, *std::max_element(top + t * stride, top + t * stride + prototypes));
  }
  double total = 0.0;
  for (int64_t t = 0; t < chunks; ++t) {
    for (int64_t j = t * stride; j < t * stride + prototypes; ++j) {
      total += sum[j] * std::exp(static_cast<double>(top[j]) - highest);
    }
  }
  return total > 0.0 ? static_cast<float>(highest + std::log(total)) : 0.0f;
}

}  // namespace

void nce_forward(const NceForward& call, const Parallel& parallel) {
  const NceInputs& in = call.in;
  const Chunks chunks(in.batch, in.pixels);
  const Entries entries(in, false);
  const int64_t classes = in.classes, vectors = in.vectors();
  std::vector<double> sums(chunks.count * 2 * classes, 0.0);
  std::vector<int64_t> count(chunks.count * (classes + 1), 0);
  const Buffer top(in.columns ? chunks.count * vectors : 0), sum(in.columns ? chunks.count * vectors : 0);
  for_chunks(chunks, kernels().scratch(in, false), parallel, [&](Chunk chunk, int64_t t, float* scratch) {
    double* loss = sums.data() + t * 2 * classes;
    const int64_t column = in.columns ? t * vectors : 0;
    const NcePartial partial{loss, loss + classes, count.data() + t * (classes + 1), top.get() + column,
                             sum.get() + column};
    kernels().forward(call, entries[chunk.batch], chunk, partial, scratch);
  });
  for (int64_t b = 0; b < in.batch; ++b) {
    const int64_t first = b * chunks.per_image;
    for (int64_t k = 0; k <= classes; ++k) {
      int64_t pixels = 0;
      for (int64_t t = first; t < first + chunks.per_image; ++t) pixels += count[t * (classes + 1) + k];
      call.count[b * (classes + 1) + k] = pixels;
    }
    for (int64_t k = 0; k < classes; ++k) {
      double loss = 0.0, positive = 0.0;
      for (int64_t t = first; t < first + chunks.per_image; ++t) {
        loss += sums[t * 2 * classes + k];
        positive += sums[(t * 2 + 1) * classes + k];
      }
      const int64_t column = first * vectors + k * in.prototypes;
      call.loss[b * classes + k] = in.rows ? static_cast<float>(loss) : 0.0f;
      call.positive[b * classes + k] = in.columns ? static_cast<float>(positive) : 0.0f;
      call.log_sum_exp[b * classes + k] =
          in.columns ? merge(top.get() + column, sum.get() + column, chunks.per_image, vectors, in.prototypes) : 0.0f;
    }
  }
}

void nce_backward(const NceBackward& call, const Parallel& parallel) {
  const NceInputs& in = call.in;
  const Chunks chunks(in.batch, in.pixels);
  const Entries entries(in, true);
  const int64_t size = in.vectors() * entries.channels;
  const Buffer partials(chunks.count * size);
  for_chunks(chunks, kernels().scratch(in, true), parallel, [&](Chunk chunk, int64_t t, float* scratch) {
    kernels().backward(call, entries[chunk.batch], chunk, partials.get() + t * size, scratch);
  });
  for (int64_t b = 0; b < in.batch; ++b) {
    float* first = partials.get() + b * chunks.per_image * size;
    sum_chunks(first, chunks.per_image, size, size);
    for (int64_t j = 0; j < in.vectors(); ++j) {
      const float* row = first + j * entries.channels;
      std::copy(row, row + in.channels, call.grad_entries + (b * in.vectors() + j) * in.channels);
    }
  }
}

}  // namespace d2ls
