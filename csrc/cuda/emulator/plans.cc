// Prints every plan that is compiled: kernel, type, architecture, channels, variant, threads, blocks an SM, shared memory.
#include <cstdio>

#include "cuda/attend.cuh"
#include "cuda/attend_backward.cuh"
#include "cuda/classify.cuh"
#include "cuda/classify_gradients.cuh"
#include "cuda/dictionary_step.cuh"
#include "cuda/interact.cuh"
#include "cuda/combine_parts.cuh"
#include "cuda/merge.cuh"
#include "cuda/nce_merge.cuh"
#include "cuda/refine.cuh"
#include "cuda/refine_attend.cuh"
#include "cuda/segmentation_sums.cuh"
#include "cuda/sum_parts.cuh"
#include "cuda/refine_backward_kernel.cuh"
#include "cuda/undo_norm_kernel.cuh"

namespace d2ls::cuda {

template <class Plan>
void print(const char* kernel, const char* type, const char* architecture, const char* variant) {
  std::printf("%s %s %s %d %s %d %d %u\n", kernel, type, architecture, Plan::channels, variant, Plan::threads,
              Plan::blocks, Plan::shared_bytes);
}

template <class Kind, class Architecture, int C>
void print_all(const char* type, const char* architecture) {
  print<AttendPlan<Kind, Architecture, C>>("attend_chunk", type, architecture, "-");
  print<AttendBackwardPlan<Kind, Architecture, C>>("attend_backward_chunk", type, architecture, "-");
  print<RefinePlan<Kind, Architecture, C, true>>("refine_chunk", type, architecture, "one-block");
  print<RefinePlan<Kind, Architecture, C, false>>("refine_chunk", type, architecture, "blocks");
  if constexpr (sizeof(typename Kind::Number) == 2) {
    print<RefineBackwardPlan<Kind, Architecture, C, true>>("refine_backward_chunk", type, architecture, "one-block");
  }
  if constexpr (C == 256) {
    print<RefineBackwardPlan<Kind, Architecture, C, false>>("refine_backward_chunk", type, architecture, "blocks");
    print<UndoNormPlan<Kind, Architecture, C>>("undo_norm_chunk", type, architecture, "blocks");
  }
  if constexpr (sizeof(typename Kind::Number) == 2 && Architecture::large_shared_memory) {
    print<RefineAttendPlan<Kind, Architecture, C>>("refine_attend_chunk", type, architecture, "-");
    print<InteractPlan<Kind, Architecture, C>>("interact_kernel", type, architecture, "-");
  }
}

template <class Architecture, int C>
void print_types(const char* architecture) {
  print_all<Half<Bf16>, Architecture, C>("bf16", architecture);
  print_all<Half<Fp16>, Architecture, C>("fp16", architecture);
  print_all<RoundedFloat32, Architecture, C>("tf32", architecture);
  print_all<Float32, Architecture, C>("fp32", architecture);
}

// Their shared memory holds the class vectors.
void print_classify(const char* type, const char* architecture) {
  for (const int channels : {64, 256}) {
    for (const char* variant : {"logits", "labels"}) {
      std::printf("classify_pixels_kernel %s %s %d %s %d %d %d\n", type, architecture, channels, variant,
                  classify_threads, classify_blocks_an_sm, 0);
    }
    for (const char* variant : {"logits", "loss"}) {
      std::printf("classify_gradients_kernel %s %s %d %s %d %d %d\n", type, architecture, channels, variant,
                  gradient_threads, gradient_blocks_an_sm, 0);
    }
    std::printf("segmentation_sums_kernel %s %s %d - %d %d %d\n", type, architecture, channels, sums_threads,
                sums_blocks_an_sm, 0);
  }
}

template <class Architecture>
void print_channels(const char* architecture) {
  print_types<Architecture, 64>(architecture);
  print_types<Architecture, 256>(architecture);
  std::printf("merge_chunks fp32 %s %d - %d 1 %u\n", architecture, merge_channels, merge_threads, merge_shared_bytes);
  std::printf("sum_parts_kernel fp32 %s 256 - %d 1 %u\n", architecture, sum_threads, sum_shared_bytes);
  std::printf("nce_merge_kernel fp32 %s 256 - %d 1 %d\n", architecture, nce_merge_threads, 8 * nce_merge_threads);
  for (const char* type : {"bf16", "fp16", "fp32"}) {
    for (const char* kernel : {"nce_sums_kernel", "nce_gradients_kernel"}) {  // their shared memory holds the entries
      std::printf("%s %s %s 256 - %d %d 0\n", kernel, type, architecture, nce_threads, nce_blocks_an_sm);
    }
    print_classify(type, architecture);
    // Its shared memory holds the entries.
    std::printf("dictionary_step_kernel %s %s 256 - %d 1 0\n", type, architecture, step_threads);
    std::printf("combine_parts_kernel %s %s 256 - %d 1 %u\n", type, architecture, combine_threads, combine_shared_bytes);
  }
  for (const char* type : {"bf16", "fp16"}) {
    std::printf("combine_parts_kernel %s %s 256 pixels %d 1 %u\n", type, architecture, combine_threads,
                combine_shared_bytes);
  }
}

}  // namespace d2ls::cuda

int main() {
  d2ls::cuda::print_channels<d2ls::cuda::Ampere>("sm_80");
  d2ls::cuda::print_channels<d2ls::cuda::Hopper>("sm_90a");
  d2ls::cuda::print_channels<d2ls::cuda::Blackwell>("sm_100");
}
