// The launches of nce_sums.
#include "cuda/nce_merge.cuh"
#include "cuda/sum_parts.cuh"

namespace d2ls::cuda {

int64_t nce_sums_scratch(const Device& device, const NceCall& call) {
  return call.batch * nce_blocks(device, call) * nce_part(call);
}

Error nce_sums(const Device& device, const NceCall& call, const NceSums& sums, float* scratch) {
  if (const Error error = check_nce(call); !error.empty()) {
    return error;
  }
  const int blocks = nce_blocks(device, call), k = call.classes;
  Error error = by_type(call.type, [&](auto kind) {
    const uint32_t shared = nce_warps * NceWarpSums::bytes(k, k * call.prototypes);
    return launch(device, nce_sums_kernel<typename decltype(kind)::Number>, call.batch * blocks, nce_threads, shared,
                  NceArguments{call, scratch, blocks});
  });
  if (error.empty()) {
    error = sum_parts(device, nce_part(call),
                      {{scratch, sums.loss, call.batch, blocks, k},
                       {scratch + k, sums.positive, call.batch, blocks, k},
                       {scratch + 2 * k, sums.count, call.batch, blocks, k + 1}});
  }
  const NceMergeArguments merge{scratch + 3 * k + 1, sums.log_sum_exp, nce_part(call), blocks, k, call.prototypes};
  return !error.empty() ? error
                        : launch(device, nce_merge_kernel, call.batch * k, nce_merge_threads, 8 * nce_merge_threads,
                                 merge);
}

}  // namespace d2ls::cuda
