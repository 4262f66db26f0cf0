#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/grad_pe.h"
#include "cpu/kernels.h"
#include "cpu/projected.h"
#include "cpu/projected_host.h"

namespace d2ls {
namespace {

// mixed and log-sum-exp of head h of image b, from the partial results of the image's chunks.
void combine_head(const AttendProjectedForward& call, const ProjectedPartials& partials, const ProjectedSizes& p,
                  int64_t b, int64_t h) {
  const int64_t first = b * partials.chunks.per_image, last = first + partials.chunks.per_image;
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

// grad_mixed . mixed - grad_log_sum_exp of every head and entry, [B, H, K].
void offsets_of(const AttendProjectedBackward& call, const ProjectedSizes& p, float* out, const Parallel& parallel) {
  const int64_t rows = p.heads * p.entries;
  parallel(call.in.pass.shape.batch * rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = (i / rows * p.entries + i % p.entries) * p.width + i % rows / p.entries * p.depth;
      float dot = 0.0f;
      for (int64_t c = 0; c < p.depth; ++c) {
        dot += call.grad_mixed[at + c] * call.mixed[at + c];
      }
      out[i] = dot - call.grad_log_sum_exp[i];
    }
  });
}

}  // namespace

void attend_projected_forward(const AttendProjectedForward& call, const Parallel& parallel) {
  const AttendProjectedInputs& in = call.in;
  const PassShape& s = in.pass.shape;
  const ProjectedKernels& kernels = chosen_kernels().projected;
  const ProjectedSizes p = projected_sizes(s, in.width, 1, false);
  const Transposed key_weight_t(in.key_weight, 1, p.width, s.channels, p.widths, parallel);
  const Transposed value_weight_t(in.value_weight, 1, p.width, s.channels, p.widths, parallel);
  const Transposed query_t(in.query, s.batch, p.entries, p.width, p.columns, parallel);
  const ProjectedPartials partials(s, {p.width * p.columns, p.heads * p.columns, p.heads * p.columns});
  for_chunks(partials.chunks, kernels.attend_scratch(p), parallel, [&](Chunk chunk, int64_t t, float* scratch) {
    AttendProjectedPacked packed{};
    packed.key_weight_t = key_weight_t.get();
    packed.value_weight_t = value_weight_t.get();
    packed.query_t = query_t.get() + chunk.batch * p.width * p.columns;
    AttendProjectedPartial partial{};
    partial.mixed_t = partials.part(t, 0);
    partial.row_max = partials.part(t, 1);
    partial.row_sum = partials.part(t, 2);
    kernels.attend_forward(call, p, packed, chunk, partial, scratch);
  });
  parallel(s.batch * p.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      combine_head(call, partials, p, i / p.heads, i % p.heads);
    }
  });
}

void attend_projected_backward(const AttendProjectedBackward& call, const Parallel& parallel) {
  const AttendProjectedInputs& in = call.in;
  const PassShape& s = in.pass.shape;
  const ProjectedKernels& kernels = chosen_kernels().projected;
  const ProjectedSizes p = projected_sizes(s, in.width, 1, true);
  const int64_t channels = p.pass.channels, rows = p.heads * p.entries;
  const Transposed key_weight_t(in.key_weight, 1, p.width, s.channels, p.widths, parallel);
  const Transposed value_weight_t(in.value_weight, 1, p.width, s.channels, p.widths, parallel);
  const Padded key_weight(in.key_weight, p.width, s.channels, channels, parallel);
  const Padded value_weight(in.value_weight, p.width, s.channels, channels, parallel);
  const Buffer offsets(s.batch * rows);
  offsets_of(call, p, offsets.get(), parallel);
  const ProjectedPartials partials(s, {rows * p.depths, p.width * channels, p.width * channels});
  const GradPe through(s, call.grad_pe);
  for_chunks(partials.chunks, kernels.attend_scratch(p), parallel, [&](Chunk chunk, int64_t t, float* scratch) {
    const AttendProjectedPacked packed{key_weight_t.get(), value_weight_t.get(), nullptr, key_weight.get(),
                                       value_weight.get(), offsets.get() + chunk.batch * rows};
    AttendProjectedPartial partial{};
    partial.query = partials.part(t, 0);
    partial.key_weight = partials.part(t, 1);
    partial.value_weight = partials.part(t, 2);
    kernels.attend_backward(call, p, packed, chunk, partial, through.image(chunk.batch), scratch);
  });
  for (int64_t b = 0; b < s.batch; ++b) {
    partials.sum_heads(p, b, 0, 0, call.grad_query + b * p.entries * p.width, parallel);
  }
  partials.sum_rows(1, p.width, channels, s.channels, call.grad_key_weight, parallel);
  partials.sum_rows(2, p.width, channels, s.channels, call.grad_value_weight, parallel);
  through.store(kernels.narrow, parallel);
}

}  // namespace d2ls
