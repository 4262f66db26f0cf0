#include "cpu/projected.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/kernels.h"

namespace d2ls {
namespace {

const ProjectedKernels& kernels() { return chosen_kernels().projected; }

ProjectedSizes sizes_of(const PassShape& s, int64_t width, int64_t groups, bool backward) {
  const int64_t lanes = kernels().lanes;
  const auto whole = [lanes](int64_t count) { return round_up(count, lanes); };
  PassSizes pass{};
  pass.channels = whole(s.channels);
  const int64_t depth = width / s.heads;
  return {pass,  s.heads,   depth,     whole(depth),     width,  whole(width), whole(width) + lanes,
          s.entries, whole(s.entries), groups, backward};
}

// A matrix [rows, columns] with its rows padded by zeros; `wanted` false leaves it empty.
class Padded {
 public:
  Padded(const float* matrix, int64_t rows, int64_t columns, int64_t stride, const Parallel& parallel,
         bool wanted = true)
      : memory_(wanted ? rows * stride : 0) {
    parallel(wanted ? rows : 0, 64, [&](int64_t begin, int64_t end) {
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

// A block of memory for every chunk, with parts of the given sizes.
class Partials {
 public:
  Partials(int64_t chunks, std::initializer_list<int64_t> sizes) : stride_(0) {
    for (const int64_t size : sizes) {
      offsets_[count_++] = stride_;
      stride_ += round_up(size, 16);
    }
    memory_ = std::make_unique<Buffer>(chunks * stride_);
  }
  float* part(int64_t chunk, int index) const { return memory_->get() + chunk * stride_ + offsets_[index]; }
  int64_t stride() const { return stride_; }

 private:
  int64_t offsets_[6];
  int count_ = 0;
  int64_t stride_;
  std::unique_ptr<Buffer> memory_;
};

// Sums a part over `chunks` chunks from `chunk` on, [rows, stride] of which `columns` count, into out [rows, columns].
void sum_rows(const Partials& partials, int64_t chunk, int index, int64_t chunks, int64_t rows, int64_t stride,
              int64_t columns, float* out, const Parallel& parallel) {
  parallel(rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* first = partials.part(chunk, index) + r * stride;
      sum_chunks(first, chunks, partials.stride(), columns);
      std::copy(first, first + columns, out + r * columns);
    }
  });
}

// Sums a part [H, K, dp] over an image's chunks into rows [K, D] of the dictionary.
void sum_heads(const Partials& partials, const Chunks& chunks, const ProjectedSizes& p, int64_t image, int index,
               int64_t offset, float* out, const Parallel& parallel) {
  const int64_t first = image * chunks.per_image;
  parallel(p.heads * p.entries, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* sum = partials.part(first, index) + (offset * p.heads * p.entries + row) * p.depths;
      sum_chunks(sum, chunks.per_image, partials.stride(), p.depth);
      std::copy(sum, sum + p.depth, out + row % p.entries * p.width + row / p.entries * p.depth);
    }
  });
}

// The gradient that went through x + pe [B, N, C], as that of pe.
void store_pe(const PassShape& s, const Buffer& through, void* grad_pe, const Parallel& parallel) {
  const int64_t image = s.pixels * s.channels, images = s.shared_pe ? 1 : s.batch;
  parallel(s.pixels, 64, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * s.channels, count = (end - begin) * s.channels;
    if (s.shared_pe) {
      sum_chunks(through.get() + first, s.batch, image, count);
    }
    for (int64_t b = 0; b < images; ++b) {
      kernels().narrow(s.dtype, through.get() + b * image + first, grad_pe, b * image + first, count);
    }
  });
}

// mixed and log-sum-exp of head h of image b, from the partial results of the image's chunks.
void combine_head(const AttendProjectedForward& call, const Partials& partials, const Chunks& chunks,
                  const ProjectedSizes& p, int64_t b, int64_t h) {
  const int64_t first = b * chunks.per_image, last = first + chunks.per_image;
  for (int64_t k = 0; k < p.entries; ++k) {
    const int64_t at = h * p.columns + k;
    float top = -std::numeric_limits<float>::infinity();
    for (int64_t t = first; t < last; ++t) {
      top = std::max(top, partials.part(t, 1)[at]);
    }
    float* mixed = call.mixed + (b * p.entries + k) * p.width + h * p.depth;
    std::fill(mixed, mixed + p.depth, 0.0f);
    float sum = 0.0f;
    for (int64_t t = first; t < last; ++t) {
      const float scale = std::exp(partials.part(t, 1)[at] - top);
      const float* mixed_t = partials.part(t, 0) + h * p.depth * p.columns + k;
      sum += partials.part(t, 2)[at] * scale;
      for (int64_t i = 0; i < p.depth; ++i) {
        mixed[i] += mixed_t[i * p.columns] * scale;
      }
    }
    for (int64_t i = 0; i < p.depth; ++i) {
      mixed[i] /= sum;
    }
    call.log_sum_exp[(b * p.heads + h) * p.entries + k] = top + std::log(sum);
  }
}

// The vectors that a pixel update adds and scales by, padded.
class Vectors {
 public:
  Vectors(const RefineProjectedInputs& in, const ProjectedSizes& p) : memory_(3 * p.pass.channels + p.widths) {
    const int64_t c = in.pass.shape.channels, stride = p.pass.channels;
    const float* const given[] = {in.pass.out_bias, in.pass.norm_weight, in.pass.norm_bias};
    std::fill(memory_.get(), memory_.get() + 3 * stride + p.widths, 0.0f);
    for (int i = 0; i < 3; ++i) {
      std::copy(given[i], given[i] + c, memory_.get() + i * stride);
    }
    std::copy(in.query_bias, in.query_bias + p.width, memory_.get() + 3 * stride);
    norm.out_bias = memory_.get();
    norm.norm_weight = memory_.get() + stride;
    norm.norm_bias = memory_.get() + 2 * stride;
    query_bias = memory_.get() + 3 * stride;
  }
  PassPacked norm{};
  const float* query_bias;

 private:
  Buffer memory_;
};

}  // namespace

void attend_projected_forward(const AttendProjectedForward& call, const Parallel& parallel) {
  const AttendProjectedInputs& in = call.in;
  const PassShape& s = in.pass.shape;
  const ProjectedSizes p = sizes_of(s, in.width, 1, false);
  const Chunks chunks(s.batch, s.pixels);
  const Transposed key_weight_t(in.key_weight, 1, p.width, s.channels, p.widths, parallel);
  const Transposed value_weight_t(in.value_weight, 1, p.width, s.channels, p.widths, parallel);
  const Transposed query_t(in.query, s.batch, p.entries, p.width, p.columns, parallel);
  const Partials partials(chunks.count, {p.width * p.columns, p.heads * p.columns, p.heads * p.columns});
  parallel(chunks.count, 1, [&](int64_t begin, int64_t end) {
    const Buffer scratch(kernels().attend_scratch(p));
    for (int64_t t = begin; t < end; ++t) {
      const Chunk chunk = chunks[t];
      AttendProjectedPacked packed{};
      packed.key_weight_t = key_weight_t.get();
      packed.value_weight_t = value_weight_t.get();
      packed.query_t = query_t.get() + chunk.batch * p.width * p.columns;
      AttendProjectedPartial partial{};
      partial.mixed_t = partials.part(t, 0);
      partial.row_max = partials.part(t, 1);
      partial.row_sum = partials.part(t, 2);
      kernels().attend_forward(call, p, packed, chunk, partial, scratch.get());
    }
  });
  parallel(s.batch * p.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      combine_head(call, partials, chunks, p, i / p.heads, i % p.heads);
    }
  });
}

void attend_projected_backward(const AttendProjectedBackward& call, const Parallel& parallel) {
  const AttendProjectedInputs& in = call.in;
  const PassShape& s = in.pass.shape;
  const ProjectedSizes p = sizes_of(s, in.width, 1, true);
  const Chunks chunks(s.batch, s.pixels);
  const int64_t channels = p.pass.channels;
  const Transposed key_weight_t(in.key_weight, 1, p.width, s.channels, p.widths, parallel);
  const Transposed value_weight_t(in.value_weight, 1, p.width, s.channels, p.widths, parallel);
  const Padded key_weight(in.key_weight, p.width, s.channels, channels, parallel);
  const Padded value_weight(in.value_weight, p.width, s.channels, channels, parallel);
  const int64_t rows = p.heads * p.entries;
  const Buffer offsets(s.batch * rows);
  parallel(s.batch * rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = (i / rows * p.entries + i % p.entries) * p.width + i % rows / p.entries * p.depth;
      float dot = 0.0f;
      for (int64_t c = 0; c < p.depth; ++c) {
        dot += call.grad_mixed[at + c] * call.mixed[at + c];
      }
      offsets.get()[i] = dot - call.grad_log_sum_exp[i];
    }
  });
  const Partials partials(chunks.count, {rows * p.depths, p.width * channels, p.width * channels});
  const Buffer through(call.grad_pe != nullptr ? s.batch * s.pixels * s.channels : 0);
  parallel(chunks.count, 1, [&](int64_t begin, int64_t end) {
    const Buffer scratch(kernels().attend_scratch(p));
    for (int64_t t = begin; t < end; ++t) {
      const Chunk chunk = chunks[t];
      const AttendProjectedPacked packed{key_weight_t.get(), value_weight_t.get(), nullptr, key_weight.get(),
                                         value_weight.get(), offsets.get() + chunk.batch * rows};
      AttendProjectedPartial partial{};
      partial.query = partials.part(t, 0);
      partial.key_weight = partials.part(t, 1);
      partial.value_weight = partials.part(t, 2);
      float* image = call.grad_pe != nullptr ? through.get() + chunk.batch * s.pixels * s.channels : nullptr;
      kernels().attend_backward(call, p, packed, chunk, partial, image, scratch.get());
    }
  });
  for (int64_t b = 0; b < s.batch; ++b) {
    sum_heads(partials, chunks, p, b, 0, 0, call.grad_query + b * p.entries * p.width, parallel);
  }
  sum_rows(partials, 0, 1, chunks.count, p.width, channels, s.channels, call.grad_key_weight, parallel);
  sum_rows(partials, 0, 2, chunks.count, p.width, channels, s.channels, call.grad_value_weight, parallel);
  if (call.grad_pe != nullptr) {
    store_pe(s, through, call.grad_pe, parallel);
  }
}

void refine_projected_forward(const RefineProjectedForward& call, const Parallel& parallel) {
  const RefineProjectedInputs& in = call.in;
  const PassShape& s = in.pass.shape;
  const ProjectedSizes p = sizes_of(s, in.width, in.groups, false);
  const Chunks chunks(s.batch, s.pixels);
  const Vectors vectors(in, p);
  const Transposed query_weight_t(in.query_weight, 1, p.width, s.channels, p.widths, parallel);
  const Transposed out_weight_t(in.out_weight, 1, s.channels, p.width, p.pass.channels, parallel);
  const RefineProjectedPacked packed{vectors.norm,       query_weight_t.get(), vectors.query_bias,
                                     out_weight_t.get(), nullptr,              nullptr};
  parallel(chunks.count, 1, [&](int64_t begin, int64_t end) {
    const Buffer scratch(kernels().refine_scratch(p));
    for (int64_t t = begin; t < end; ++t) {
      kernels().refine_forward(call, p, packed, chunks[t], scratch.get());
    }
  });
}

void refine_projected_backward(const RefineProjectedBackward& call, const Parallel& parallel) {
  const RefineProjectedInputs& in = call.in;
  const PassShape& s = in.pass.shape;
  const ProjectedSizes p = sizes_of(s, in.width, in.groups, true);
  const Chunks chunks(s.batch, s.pixels);
  const int64_t channels = p.pass.channels, matrix = p.width * channels;
  const Vectors vectors(in, p);
  const Transposed query_weight_t(in.query_weight, 1, p.width, s.channels, p.widths, parallel);
  const Transposed out_weight_t(in.out_weight, 1, s.channels, p.width, channels, parallel);
  const Padded query_weight(in.query_weight, p.width, s.channels, channels, parallel);
  const Padded out_weight(in.out_weight, s.channels, p.width, p.widths, parallel);
  const RefineProjectedPacked packed{vectors.norm,       query_weight_t.get(), vectors.query_bias,
                                     out_weight_t.get(), query_weight.get(),   out_weight.get()};
  const int64_t rows = p.groups * p.heads * p.entries * p.depths;
  const Partials partials(chunks.count, {rows, rows, matrix, matrix, p.width, 3 * channels});
  const Buffer through(call.grad_pe != nullptr ? s.batch * s.pixels * s.channels : 0);
  parallel(chunks.count, 1, [&](int64_t begin, int64_t end) {
    const Buffer scratch(kernels().refine_scratch(p));
    for (int64_t t = begin; t < end; ++t) {
      const Chunk chunk = chunks[t];
      const RefineProjectedPartial partial{partials.part(t, 0), partials.part(t, 1), partials.part(t, 2),
                                           partials.part(t, 3), partials.part(t, 4), partials.part(t, 5)};
      float* image = call.grad_pe != nullptr ? through.get() + chunk.batch * s.pixels * s.channels : nullptr;
      kernels().refine_backward(call, p, packed, chunk, partial, image, scratch.get());
    }
  });
  for (int64_t i = 0; i < p.groups * s.batch; ++i) {
    const int64_t b = i % s.batch, g = i / s.batch, at = i * p.entries * p.width;
    sum_heads(partials, chunks, p, b, 0, g, call.grad_key + at, parallel);
    sum_heads(partials, chunks, p, b, 1, g, call.grad_value + at, parallel);
  }
  sum_rows(partials, 0, 2, chunks.count, p.width, channels, s.channels, call.grad_query_weight, parallel);
  const Buffer out_weight_grad_t(p.width * s.channels);
  sum_rows(partials, 0, 3, chunks.count, p.width, channels, s.channels, out_weight_grad_t.get(), parallel);
  for (int64_t i = 0; i < p.width; ++i) {
    for (int64_t c = 0; c < s.channels; ++c) {
      call.grad_out_weight[c * p.width + i] = out_weight_grad_t.get()[i * s.channels + c];
    }
  }
  sum_rows(partials, 0, 4, chunks.count, 1, p.width, p.width, call.grad_query_bias, parallel);
  float* const out[] = {call.grad_out_bias, call.grad_norm_weight, call.grad_norm_bias};
  sum_chunks(partials.part(0, 5), chunks.count, partials.stride(), 3 * channels);
  for (int i = 0; i < 3; ++i) {
    const float* sum = partials.part(0, 5) + i * channels;
    std::copy(sum, sum + s.channels, out[i]);
  }
  if (call.grad_pe != nullptr) {
    store_pe(s, through, call.grad_pe, parallel);
  }
}

}  // namespace d2ls
