// interact for tests: the launcher and its kernels on the CPU.
#include "cuda/interact.h"

#include "cuda/emulator/library.h"

extern "C" const char* d2ls_emulate_interact(const d2ls::cuda::Device* device, const d2ls::cuda::InteractCall* call) {
  std::vector<float> scratch = d2ls::cuda::emulator::poisoned(interact_scratch(*device, *call));
  return d2ls::cuda::emulator::told(interact(*device, *call, scratch.data()));
}

extern "C" const char* d2ls_why_not_interact(const d2ls::cuda::Device* device, const d2ls::cuda::InteractCall* call) {
  return d2ls::cuda::emulator::told(why_not(*device, *call, call->batch));
}
