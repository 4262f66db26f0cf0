#include "cpu/pass.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/kernels.h"

namespace d2ls {
namespace {

// Pixels that meet one dictionary before they meet the next: few enough to wait in a second-level cache of 1 MB, enough
// that the matrices of a dictionary, which fill the rest of it, are not exchanged for another's with every tile.
constexpr int64_t kStrip = 256;

const PassKernels& kernels(Dtype dtype) { return chosen_pass(dtype); }

PassSizes sizes_of(const PassShape& s) {
  const int64_t lanes = kernels(s.dtype).lanes;
  // Softmax over the entries runs on short vectors of 8 heads, or of 4 where H is no multiple of 8.
  const int64_t heads = s.heads % 8 == 0 ? s.heads : round_up(s.heads, 4);
  const int64_t group_rows = s.entries * heads;
  return {round_up(s.channels, lanes), round_up(s.rows, lanes), heads, group_rows, round_up(group_rows, lanes)};
}

// Where row h * K + k of the head-major order stands in the order k * Hp + h of the kernels.
struct GroupOrder {
  GroupOrder(const PassShape& s, const PassSizes& p) : entries(s.entries), heads(p.heads) {}
  int64_t operator()(int64_t row) const { return row % entries * heads + row / entries; }
  int64_t entries, heads;
};

// [rows, Cp] -> [C, columns], zero in the columns beyond.
void transpose(const float* matrix, int64_t rows, int64_t channels, int64_t stride, int64_t columns, float* out) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t j = 0; j < columns; ++j) {
      out[c * columns + j] = j < rows ? matrix[j * stride + c] : 0.0f;
    }
  }
}

void pad_vector(const float* source, int64_t count, int64_t padded, float* out) {
  std::copy(source, source + count, out);
  std::fill(out + count, out + padded, 0.0f);
}

// The dictionary side of every image and dictionary, widened to float32, reordered, transposed and padded, once a call.
class Dictionary {
 public:
  Dictionary(const PassInputs& in, const PassBackward* backward, const PassSizes& p, const Parallel& parallel)
      : s_(in.shape),
        p_(p),
        count_(s_.dictionaries * s_.batch),
        query_t_(count_ * s_.channels * p.rows),
        query_(count_ * s_.rows * p.channels),
        grad_t_(backward ? count_ * s_.channels * p.rows : 0),
        grad_(backward ? count_ * s_.rows * p.channels : 0),
        offset_(count_ * p.rows),
        lse_(count_ * p.rows),
        key_t_(count_ * s_.channels * p.groups),
        key_(count_ * p.group_rows * p.channels),
        key_bias_(count_ * p.groups),
        value_(count_ * p.group_rows * p.channels),
        value_t_(backward ? count_ * s_.channels * p.groups : 0),
        vectors_(3 * p.channels) {
    if (s_.entries > 0) {
      pad_vector(in.out_bias, s_.channels, p.channels, vectors_.get());
      pad_vector(in.norm_weight, s_.channels, p.channels, vectors_.get() + p.channels);
      pad_vector(in.norm_bias, s_.channels, p.channels, vectors_.get() + 2 * p.channels);
    }
    parallel(count_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        if (s_.rows > 0) pack_query(in, backward, b);
        if (s_.entries > 0) pack_key_and_value(in, backward != nullptr, b);
      }
    });
  }

  PassPacked operator[](int64_t b) const {
    const int64_t rows = s_.rows * p_.channels, rows_t = s_.channels * p_.rows;
    const int64_t groups = p_.group_rows * p_.channels, groups_t = s_.channels * p_.groups;
    return {query_t_.get() + b * rows_t,
            query_.get() + b * rows,
            grad_t_.get() + b * rows_t,
            grad_.get() + b * rows,
            offset_.get() + b * p_.rows,
            lse_.get() + b * p_.rows,
            key_t_.get() + b * groups_t,
            key_bias_.get() + b * p_.groups,
            value_.get() + b * groups,
            key_.get() + b * groups,
            value_t_.get() + b * groups_t,
            vectors_.get(),
            vectors_.get() + p_.channels,
            vectors_.get() + 2 * p_.channels};
  }

 private:
  void pack(float* matrix, int64_t rows, int64_t columns) const { kernels(s_.dtype).pack(matrix, rows, columns); }

  void widen_row(Dtype dtype, const void* source, int64_t row, float* out) const {
    kernels(s_.dtype).widen(dtype, source, row * s_.channels, out, s_.channels);
    std::fill(out + s_.channels, out + p_.channels, 0.0f);
  }

  void pack_query(const PassInputs& in, const PassBackward* backward, int64_t b) {
    float* query = query_.get() + b * s_.rows * p_.channels;
    for (int64_t j = 0; j < s_.rows; ++j) {
      widen_row(s_.dtype, in.query, b * s_.rows + j, query + j * p_.channels);
    }
    const int64_t transposed = b * s_.channels * p_.rows;
    transpose(query, s_.rows, s_.channels, p_.channels, p_.rows, query_t_.get() + transposed);
    pack(query_t_.get() + transposed, s_.channels, p_.rows);
    if (backward == nullptr) {
      return;
    }
    float* grad = grad_.get() + b * s_.rows * p_.channels;
    for (int64_t j = 0; j < p_.rows; ++j) {
      float dot = 0.0f;
      // Padded rows: an infinite normaliser makes their weights, and so their gradients, zero.
      float norm = std::numeric_limits<float>::infinity();
      if (j < s_.rows) {
        const int64_t row = b * s_.rows + j;
        widen_row(Dtype::f32, backward->grad_context, row, grad + j * p_.channels);
        // The gradient of the scores is a difference of products with this row: all must see the same one.
        kernels(s_.dtype).round(grad + j * p_.channels, p_.channels);
        for (int64_t c = 0; c < s_.channels; ++c) {
          dot += grad[j * p_.channels + c] * backward->context[row * s_.channels + c];
        }
        dot -= backward->grad_log_sum_exp[row];
        norm = backward->log_sum_exp[row];
      }
      offset_.get()[b * p_.rows + j] = dot;
      lse_.get()[b * p_.rows + j] = norm;
    }
    transpose(grad, s_.rows, s_.channels, p_.channels, p_.rows, grad_t_.get() + transposed);
    pack(grad_t_.get() + transposed, s_.channels, p_.rows);
    pack(query, s_.rows, p_.channels);
    pack(grad, s_.rows, p_.channels);
  }

  void pack_key_and_value(const PassInputs& in, bool backward, int64_t b) {
    const GroupOrder order(s_, p_);
    const int64_t head_rows = s_.heads * s_.entries;
    float* key = key_.get() + b * p_.group_rows * p_.channels;
    float* value = value_.get() + b * p_.group_rows * p_.channels;
    float* bias = key_bias_.get() + b * p_.groups;
    std::fill(key, key + p_.group_rows * p_.channels, 0.0f);
    std::fill(value, value + p_.group_rows * p_.channels, 0.0f);
    std::fill(bias, bias + p_.groups, 0.0f);
    for (int64_t row = 0; row < head_rows; ++row) {
      const int64_t to = order(row), from = b * head_rows + row;
      widen_row(s_.dtype, in.key, from, key + to * p_.channels);
      widen_row(s_.dtype, in.value, from, value + to * p_.channels);
      bias[to] = in.key_bias[from];
    }
    const int64_t transposed = b * s_.channels * p_.groups;
    transpose(key, p_.group_rows, s_.channels, p_.channels, p_.groups, key_t_.get() + transposed);
    pack(key_t_.get() + transposed, s_.channels, p_.groups);
    if (backward) {
      transpose(value, p_.group_rows, s_.channels, p_.channels, p_.groups, value_t_.get() + transposed);
      pack(value_t_.get() + transposed, s_.channels, p_.groups);
      pack(key, p_.group_rows, p_.channels);
    }
    pack(value, p_.group_rows, p_.channels);
  }

  PassShape s_;
  PassSizes p_;
  int64_t count_;
  Buffer query_t_, query_, grad_t_, grad_, offset_, lse_, key_t_, key_, key_bias_, value_, value_t_, vectors_;
};

// The partial results of all chunks in one block of memory, those of a dictionary together, image after image.
class Partials {
 public:
  Partials(const PassShape& s, const PassSizes& p, bool backward, const Chunks& chunks)
      : acc_(s.rows * p.channels),
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
  int64_t count() const { return count_; }
  int64_t stride() const { return stride_; }

 private:
  int64_t acc_, maxima_, matrix_, bias_, vectors_, stride_, count_;
  Buffer memory_;
};

// Calls body(strip, index of its partial results) for chunks begin .. end, all dictionaries on one strip before the next.
template <typename Body>
void for_strips(const PassShape& s, const Chunks& chunks, const Partials& partials, int64_t begin, int64_t end,
                const Body& body) {
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

// context and log-sum-exp of one query row of [G B, J], from the partial results of its image's chunks.
void combine_row(const PassForward& call, const Partials& partials, const Chunks& chunks, const PassSizes& p,
                 int64_t row) {
  const PassShape& s = call.in.shape;
  const int64_t first = row / s.rows * chunks.per_image, j = row % s.rows;
  float top = -std::numeric_limits<float>::infinity();
  for (int64_t t = first; t < first + chunks.per_image; ++t) {
    top = std::max(top, partials[t].row_max[j]);
  }
  float* context = call.context + row * s.channels;
  std::fill(context, context + s.channels, 0.0f);
  float sum = 0.0f;
  for (int64_t t = first; t < first + chunks.per_image; ++t) {
    const PassPartial partial = partials[t];
    const float scale = std::exp(partial.row_max[j] - top);
    const float* acc = partial.acc + j * p.channels;
    sum += partial.row_sum[j] * scale;
    for (int64_t c = 0; c < s.channels; ++c) {
      context[c] += acc[c] * scale;
    }
  }
  for (int64_t c = 0; c < s.channels; ++c) {
    context[c] /= sum;
  }
  call.log_sum_exp[row] = top + std::log(sum);
}

}  // namespace

void pass_forward(const PassForward& call, const Parallel& parallel) {
  const PassShape& s = call.in.shape;
  const PassSizes p = sizes_of(s);
  const Chunks chunks(s.batch, s.pixels);
  const Dictionary dictionary(call.in, nullptr, p, parallel);
  const Partials partials(s, p, false, chunks);
  parallel(chunks.count, 1, [&](int64_t begin, int64_t end) {
    const Buffer scratch(kernels(s.dtype).scratch(p, false));
    for_strips(s, chunks, partials, begin, end, [&](const PassStrip& strip, int64_t partial) {
      const PassPacked packed = dictionary[strip.dictionary * s.batch + strip.image];
      kernels(s.dtype).forward(call, p, packed, strip, partials[partial], scratch.get());
    });
  });
  parallel(s.dictionaries * s.batch * s.rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      combine_row(call, partials, chunks, p, row);
    }
  });
}

void pass_backward(const PassBackward& call, const Parallel& parallel) {
  const PassShape& s = call.in.shape;
  const PassSizes p = sizes_of(s);
  const Chunks chunks(s.batch, s.pixels);
  const Dictionary dictionary(call.in, &call, p, parallel);
  const Partials partials(s, p, true, chunks);
  // The gradient of a shared positional encoding is a sum over the batch, so it waits in float32 until all are done.
  const Buffer through(call.grad_pe != nullptr ? s.batch * s.pixels * s.channels : 0);
  parallel(chunks.count, 1, [&](int64_t begin, int64_t end) {
    const Buffer scratch(kernels(s.dtype).scratch(p, true)), total(kStrip * p.channels);
    for_strips(s, chunks, partials, begin, end, [&](const PassStrip& strip, int64_t partial) {
      const PassPacked packed = dictionary[strip.dictionary * s.batch + strip.image];
      float* image = call.grad_pe != nullptr ? through.get() + strip.image * s.pixels * s.channels : nullptr;
      float* sum = s.dictionaries > 1 ? total.get() : nullptr;
      kernels(s.dtype).backward(call, p, packed, strip, partials[partial], image, sum, scratch.get());
    });
  });

  const auto first_of = [&](int64_t b) { return partials[b * chunks.per_image]; };
  const auto reduce = [&](float* first, int64_t count) {
    sum_chunks(first, chunks.per_image, partials.stride(), count);
  };
  parallel(s.dictionaries * s.batch * s.rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* sum = first_of(row / s.rows).acc + row % s.rows * p.channels;
      reduce(sum, s.channels);
      kernels(s.dtype).narrow(s.dtype, sum, call.grad_query, row * s.channels, s.channels);
    }
  });
  if (s.entries > 0) {
    const GroupOrder order(s, p);
    const int64_t head_rows = s.heads * s.entries;
    parallel(s.dictionaries * s.batch * head_rows, 8, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const PassPartial first = first_of(row / head_rows);
        const int64_t from = order(row % head_rows);
        float* const matrices[] = {first.key + from * p.channels, first.value + from * p.channels};
        void* const out[] = {call.grad_key, call.grad_value};
        for (int i = 0; i < 2; ++i) {
          reduce(matrices[i], s.channels);
          kernels(s.dtype).narrow(s.dtype, matrices[i], out[i], row * s.channels, s.channels);
        }
        reduce(first.key_bias + from, 1);
        call.grad_key_bias[row] = first.key_bias[from];
      }
    });
    // Norm and bias vectors are shared by all: their sum runs over the chunks of all dictionaries and images.
    float* vectors = partials[0].vectors;
    sum_chunks(vectors, partials.count(), partials.stride(), 3 * p.channels);
    float* const out[] = {call.grad_out_bias, call.grad_norm_weight, call.grad_norm_bias};
    for (int i = 0; i < 3; ++i) {
      std::copy(vectors + i * p.channels, vectors + i * p.channels + s.channels, out[i]);
    }
  }
  if (call.grad_pe != nullptr) {
    const int64_t image = s.pixels * s.channels;
    const int64_t images = s.shared_pe ? 1 : s.batch;
    parallel(s.pixels, 64, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * s.channels, count = (end - begin) * s.channels;
      if (s.shared_pe) {
        sum_chunks(through.get() + first, s.batch, image, count);
      }
      for (int64_t b = 0; b < images; ++b) {
        kernels(s.dtype).narrow(s.dtype, through.get() + b * image + first, call.grad_pe, b * image + first, count);
      }
    });
  }
}

}  // namespace d2ls
