#include "cpu/pass.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/grad_pe.h"
#include "cpu/kernels.h"
#include "cpu/pass_dictionary.h"
#include "cpu/pass_partials.h"

namespace d2ls {
namespace {

// context and log-sum-exp of one query row of [G B, J], from the partial results of its image's chunks.
void combine_row(const PassForward& call, const PassPartials& partials, const PassSizes& p, int64_t row) {
  const PassShape& s = call.in.shape;
  const int64_t chunks = partials.chunks.per_image, first = row / s.rows * chunks, j = row % s.rows;
  float top = -std::numeric_limits<float>::infinity();
  for (int64_t t = first; t < first + chunks; ++t) {
    top = std::max(top, partials[t].row_max[j]);
  }
  float* context = call.context + row * s.channels;
  std::fill(context, context + s.channels, 0.0f);
  float sum = 0.0f;
  for (int64_t t = first; t < first + chunks; ++t) {
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

// The partial results of one row of a matrix, added up over the chunks, as a row of its gradient.
void store_row(const PassShape& s, const PassPartials& partials, float* first, void* grad, int64_t row) {
  partials.sum(first, s.channels);
  chosen_pass(s.dtype).narrow(s.dtype, first, grad, row * s.channels, s.channels);
}

void store_grad_query(const PassBackward& call, const PassPartials& partials, const PassSizes& p,
                      const Parallel& parallel) {
  const PassShape& s = call.in.shape;
  parallel(s.dictionaries * s.batch * s.rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* first = partials.first_of(row / s.rows).acc + row % s.rows * p.channels;
      store_row(s, partials, first, call.grad_query, row);
    }
  });
}

void store_grad_refine(const PassBackward& call, const PassPartials& partials, const PassSizes& p,
                       const Parallel& parallel) {
  const PassShape& s = call.in.shape;
  const GroupOrder order(s, p);
  const int64_t head_rows = s.heads * s.entries;
  parallel(s.dictionaries * s.batch * head_rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const PassPartial first = partials.first_of(row / head_rows);
      const int64_t from = order(row % head_rows);
      store_row(s, partials, first.key + from * p.channels, call.grad_key, row);
      store_row(s, partials, first.value + from * p.channels, call.grad_value, row);
      partials.sum(first.key_bias + from, 1);
      call.grad_key_bias[row] = first.key_bias[from];
    }
  });
  // Norm and bias vectors are shared by all dictionaries and images.
  float* vectors = partials[0].vectors;
  partials.sum_all(vectors, 3 * p.channels);
  float* const out[] = {call.grad_out_bias, call.grad_norm_weight, call.grad_norm_bias};
  for (int i = 0; i < 3; ++i) {
    std::copy(vectors + i * p.channels, vectors + i * p.channels + s.channels, out[i]);
  }
}

}  // namespace

void pass_forward(const PassForward& call, const Parallel& parallel) {
  const PassShape& s = call.in.shape;
  const PassKernels& kernels = chosen_pass(s.dtype);
  const PassSizes p = pass_sizes(s);
  const PassDictionary dictionary(call.in, nullptr, p, parallel);
  const PassPartials partials(s, p, false);
  parallel(partials.chunks.count, 1, [&](int64_t begin, int64_t end) {
    const Buffer scratch(kernels.scratch(p, false));
    for_strips(s, partials, begin, end, [&](const PassStrip& strip, int64_t partial) {
      const PassPacked packed = dictionary[strip.dictionary * s.batch + strip.image];
      kernels.forward(call, p, packed, strip, partials[partial], scratch.get());
    });
  });
  parallel(s.dictionaries * s.batch * s.rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      combine_row(call, partials, p, row);
    }
  });
}

void pass_backward(const PassBackward& call, const Parallel& parallel) {
  const PassShape& s = call.in.shape;
  const PassKernels& kernels = chosen_pass(s.dtype);
  const PassSizes p = pass_sizes(s);
  const PassDictionary dictionary(call.in, &call, p, parallel);
  const PassPartials partials(s, p, true);
  const GradPe through(s, call.grad_pe);
  parallel(partials.chunks.count, 1, [&](int64_t begin, int64_t end) {
    const Buffer scratch(kernels.scratch(p, true)), total(kStrip * p.channels);
    for_strips(s, partials, begin, end, [&](const PassStrip& strip, int64_t partial) {
      const PassPacked packed = dictionary[strip.dictionary * s.batch + strip.image];
      float* sum = s.dictionaries > 1 ? total.get() : nullptr;
      kernels.backward(call, p, packed, strip, partials[partial], through.image(strip.image), sum, scratch.get());
    });
  });
  store_grad_query(call, partials, p, parallel);
  if (s.entries > 0) {
    store_grad_refine(call, partials, p, parallel);
  }
  through.store(kernels.narrow, parallel);
}

}  // namespace d2ls
