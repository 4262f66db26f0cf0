// dictionary_step for tests: the launcher and its kernels on the CPU.
#include "cuda/dictionary_step.h"

#include "cuda/emulator/library.h"

extern "C" const char* d2ls_emulate_dictionary_step(const d2ls::cuda::Device* device, const d2ls::cuda::StepCall* call) {
  std::vector<float> scratch = d2ls::cuda::emulator::poisoned(dictionary_step_scratch(*device, *call));
  return d2ls::cuda::emulator::told(dictionary_step(*device, *call, scratch.data()));
}
