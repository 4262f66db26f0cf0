// The dictionary side of a pass as its kernels take it.
#pragma once

#include "cpu/pass.h"

namespace d2ls {

PassSizes pass_sizes(const PassShape& shape);

// Where row h * K + k of the head-major order stands in the order k * Hp + h of the kernels.
struct GroupOrder {
  GroupOrder(const PassShape& s, const PassSizes& p) : entries(s.entries), heads(p.heads) {}
  int64_t operator()(int64_t row) const { return row % entries * heads + row / entries; }
  int64_t entries, heads;
};

// That of every image and dictionary, widened to float32, reordered, transposed and padded, once a call.
class PassDictionary {
 public:
  // `backward` is null for a forward.
  PassDictionary(const PassInputs& in, const PassBackward* backward, const PassSizes& sizes, const Parallel& parallel);

  // Of dictionary g of image b, at g * B + b.
  PassPacked operator[](int64_t index) const;

 private:
  void pack(float* matrix, int64_t rows, int64_t columns) const;
  void widen_row(Dtype dtype, const void* source, int64_t row, float* out) const;
  void pack_query(const PassInputs& in, bool backward, int64_t index);
  void pack_grad_context(const PassBackward& call, int64_t index);
  void pack_key_and_value(const PassInputs& in, bool backward, int64_t index);

  PassShape s_;
  PassSizes p_;
  int64_t count_;
  Buffer query_t_, query_, grad_t_, grad_, offset_, lse_, key_t_, key_, key_bias_, value_, value_t_, vectors_;
};

}  // namespace d2ls
