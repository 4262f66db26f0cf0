#include <algorithm>

#include "cpu/grad_pe.h"
#include "cpu/kernels.h"
#include "cpu/projected.h"
#include "cpu/projected_host.h"

namespace d2ls {
namespace {

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

void refine_projected_forward(const RefineProjectedForward& call, const Parallel& parallel) {
  const RefineProjectedInputs& in = call.in;
  const PassShape& s = in.pass.shape;
  const ProjectedKernels& kernels = chosen_kernels().projected;
  const ProjectedSizes p = projected_sizes(s, in.width, in.groups, false);
  const Vectors vectors(in, p);
  const Transposed query_weight_t(in.query_weight, 1, p.width, s.channels, p.widths, parallel);
  const Transposed out_weight_t(in.out_weight, 1, s.channels, p.width, p.pass.channels, parallel);
  const RefineProjectedPacked packed{vectors.norm,       query_weight_t.get(), vectors.query_bias,
                                     out_weight_t.get(), nullptr,              nullptr};
  const Chunks chunks(s.batch, s.pixels);
  for_chunks(chunks, kernels.refine_scratch(p), parallel, [&](Chunk chunk, int64_t, float* scratch) {
    kernels.refine_forward(call, p, packed, chunk, scratch);
  });
}

void refine_projected_backward(const RefineProjectedBackward& call, const Parallel& parallel) {
  const RefineProjectedInputs& in = call.in;
  const PassShape& s = in.pass.shape;
  const ProjectedKernels& kernels = chosen_kernels().projected;
  const ProjectedSizes p = projected_sizes(s, in.width, in.groups, true);
  const int64_t channels = p.pass.channels, matrix = p.width * channels;
  const Vectors vectors(in, p);
  const Transposed query_weight_t(in.query_weight, 1, p.width, s.channels, p.widths, parallel);
  const Transposed out_weight_t(in.out_weight, 1, s.channels, p.width, channels, parallel);
  const Padded query_weight(in.query_weight, p.width, s.channels, channels, parallel);
  const Padded out_weight(in.out_weight, s.channels, p.width, p.widths, parallel);
  const RefineProjectedPacked packed{vectors.norm,       query_weight_t.get(), vectors.query_bias,
                                     out_weight_t.get(), query_weight.get(),   out_weight.get()};
  const int64_t rows = p.groups * p.heads * p.entries * p.depths;
  const ProjectedPartials partials(s, {rows, rows, matrix, matrix, p.width, 3 * channels});
  const GradPe through(s, call.grad_pe);
  for_chunks(partials.chunks, kernels.refine_scratch(p), parallel, [&](Chunk chunk, int64_t t, float* scratch) {
    const RefineProjectedPartial partial{partials.part(t, 0), partials.part(t, 1), partials.part(t, 2),
                                         partials.part(t, 3), partials.part(t, 4), partials.part(t, 5)};
    kernels.refine_backward(call, p, packed, chunk, partial, through.image(chunk.batch), scratch);
  });
  for (int64_t i = 0; i < p.groups * s.batch; ++i) {
    const int64_t b = i % s.batch, g = i / s.batch, at = i * p.entries * p.width;
    partials.sum_heads(p, b, 0, g, call.grad_key + at, parallel);
    partials.sum_heads(p, b, 1, g, call.grad_value + at, parallel);
  }
  partials.sum_rows(2, p.width, channels, s.channels, call.grad_query_weight, parallel);
  const Buffer out_weight_grad_t(p.width * s.channels);
  partials.sum_rows(3, p.width, channels, s.channels, out_weight_grad_t.get(), parallel);
  for (int64_t i = 0; i < p.width; ++i) {
    for (int64_t c = 0; c < s.channels; ++c) {
      call.grad_out_weight[c * p.width + i] = out_weight_grad_t.get()[i * s.channels + c];
    }
  }
  partials.sum_rows(4, 1, p.width, p.width, call.grad_query_bias, parallel);
  const Buffer vectors_grad(3 * s.channels);
  partials.sum_rows(5, 3, channels, s.channels, vectors_grad.get(), parallel);
  float* const out[] = {call.grad_out_bias, call.grad_norm_weight, call.grad_norm_bias};
  for (int i = 0; i < 3; ++i) {
    const float* sum = vectors_grad.get() + i * s.channels;
    std::copy(sum, sum + s.channels, out[i]);
  }
  through.store(kernels.narrow, parallel);
}

}  // namespace d2ls
