// refine_attend for tests: the launcher and its kernels on the CPU.
#include "cuda/refine_attend.h"

#include "cuda/emulator/library.h"

extern "C" const char* d2ls_emulate_refine_attend(const d2ls::cuda::Device* device,
                                                  const d2ls::cuda::RefineAttendCall* call) {
  std::vector<float> scratch = d2ls::cuda::emulator::poisoned(refine_attend_scratch(*device, *call));
  return d2ls::cuda::emulator::told(refine_attend(*device, *call, scratch.data()));
}
