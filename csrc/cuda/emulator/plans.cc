// Prints every plan that is compiled: kernel, type, architecture, channels, variant, threads, blocks an SM, shared memory.
#include <cstdio>

#include "cuda/attend.cuh"
#include "cuda/attend_backward.cuh"
#include "cuda/classify.cuh"
#include "cuda/combine_parts.cuh"
#include "cuda/merge.cuh"
#include "cuda/refine.cuh"
#include "cuda/refine_attend.cuh"
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
                  classify_threads, 2, 0);
    }
  }
}

template <class Architecture>
void print_channels(const char* architecture) {
  print_types<Architecture, 64>(architecture);
  print_types<Architecture, 256>(architecture);
  std::printf("merge_chunks fp32 %s 256 - %d 1 0\n", architecture, merge_threads);
  for (const char* type : {"bf16", "fp16", "fp32"}) {
    print_classify(type, architecture);
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
