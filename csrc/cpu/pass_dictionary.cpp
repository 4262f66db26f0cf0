#include "cpu/pass_dictionary.h"

#include <algorithm>
#include <limits>

#include "cpu/kernels.h"

namespace d2ls {
namespace {

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

}  // namespace

PassSizes pass_sizes(const PassShape& s) {
  const int64_t lanes = chosen_pass(s.dtype).lanes;
  // Softmax over the entries runs on short vectors of 8 heads, or of 4 where H is no multiple of 8.
  const int64_t heads = s.heads % 8 == 0 ? s.heads : round_up(s.heads, 4);
  const int64_t group_rows = s.entries * heads;
  return {round_up(s.channels, lanes), round_up(s.rows, lanes), heads, group_rows, round_up(group_rows, lanes)};
}

PassDictionary::PassDictionary(const PassInputs& in, const PassBackward* backward, const PassSizes& p,
                               const Parallel& parallel)
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
      if (s_.rows > 0) pack_query(in, backward != nullptr, b);
      if (s_.rows > 0 && backward != nullptr) pack_grad_context(*backward, b);
      if (s_.entries > 0) pack_key_and_value(in, backward != nullptr, b);
    }
  });
}

PassPacked PassDictionary::operator[](int64_t b) const {
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

void PassDictionary::pack(float* matrix, int64_t rows, int64_t columns) const {
  chosen_pass(s_.dtype).pack(matrix, rows, columns);
}

void PassDictionary::widen_row(Dtype dtype, const void* source, int64_t row, float* out) const {
  chosen_pass(s_.dtype).widen(dtype, source, row * s_.channels, out, s_.channels);
  std::fill(out + s_.channels, out + p_.channels, 0.0f);
}

void PassDictionary::pack_query(const PassInputs& in, bool backward, int64_t b) {
  float* query = query_.get() + b * s_.rows * p_.channels;
  for (int64_t j = 0; j < s_.rows; ++j) {
    widen_row(s_.dtype, in.query, b * s_.rows + j, query + j * p_.channels);
  }
  const int64_t transposed = b * s_.channels * p_.rows;
  transpose(query, s_.rows, s_.channels, p_.channels, p_.rows, query_t_.get() + transposed);
  pack(query_t_.get() + transposed, s_.channels, p_.rows);
  if (backward) {
    pack(query, s_.rows, p_.channels);
  }
}

void PassDictionary::pack_grad_context(const PassBackward& call, int64_t b) {
  float* grad = grad_.get() + b * s_.rows * p_.channels;
  for (int64_t j = 0; j < p_.rows; ++j) {
    float dot = 0.0f;
    // Padded rows: an infinite normaliser makes their weights, and so their gradients, zero.
    float norm = std::numeric_limits<float>::infinity();
    if (j < s_.rows) {
      const int64_t row = b * s_.rows + j;
      widen_row(Dtype::f32, call.grad_context, row, grad + j * p_.channels);
      // The gradient of the scores is a difference of products with this row: all must see the same one.
      chosen_pass(s_.dtype).round(grad + j * p_.channels, p_.channels);
      for (int64_t c = 0; c < s_.channels; ++c) {
        dot += grad[j * p_.channels + c] * call.context[row * s_.channels + c];
      }
      dot -= call.grad_log_sum_exp[row];
      norm = call.log_sum_exp[row];
    }
    offset_.get()[b * p_.rows + j] = dot;
    lse_.get()[b * p_.rows + j] = norm;
  }
  const int64_t transposed = b * s_.channels * p_.rows;
  transpose(grad, s_.rows, s_.channels, p_.channels, p_.rows, grad_t_.get() + transposed);
  pack(grad_t_.get() + transposed, s_.channels, p_.rows);
  pack(grad, s_.rows, p_.channels);
}

void PassDictionary::pack_key_and_value(const PassInputs& in, bool backward, int64_t b) {
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

}  // namespace d2ls
