// segmentation_sums and its backward for tests: the launches and their kernels on the CPU.
#include "cuda/segmentation.h"

#include "cuda/emulator/library.h"

namespace d2ls::cuda::emulator {

struct SegmentationSumsCall {
  SegmentationCall of;
  SegmentationSums sums;
};

struct SegmentationGradientsCall {
  SegmentationCall of;
  SegmentationSumsGradients given;
  ClassifyGradients gradients;
};

extern "C" const char* d2ls_emulate_segmentation_sums(const Device* device, const SegmentationSumsCall* call) {
  const int64_t scratch = segmentation_sums_scratch(*device, call->of);
  return told(segmentation_sums(*device, call->of, call->sums, poisoned(scratch).data()));
}

extern "C" const char* d2ls_emulate_segmentation_gradients(const Device* device,
                                                           const SegmentationGradientsCall* call) {
  const int64_t scratch = classify_gradients_scratch(*device, call->of.of);
  return told(segmentation_gradients(*device, call->of, call->given, call->gradients, poisoned(scratch).data()));
}

}  // namespace d2ls::cuda::emulator
