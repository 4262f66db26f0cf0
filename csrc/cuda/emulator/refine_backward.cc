// refine's backward for tests: the launcher and its kernels on the CPU.
#include "cuda/refine_backward.h"

#include "cuda/emulator/library.h"

extern "C" const char* d2ls_emulate_refine_backward(const d2ls::cuda::Device* device,
                                                    const d2ls::cuda::RefineBackwardCall* call) {
  std::vector<float> scratch = d2ls::cuda::emulator::poisoned(refine_backward_scratch(*device, *call));
  return d2ls::cuda::emulator::told(refine_backward(*device, *call, scratch.data()));
}
