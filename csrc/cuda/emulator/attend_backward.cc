// attend's backward for tests: the launcher and its kernels on the CPU.
#include "cuda/attend_backward.h"

#include "cuda/emulator/library.h"

extern "C" const char* d2ls_emulate_attend_backward(const d2ls::cuda::Device* device,
                                                    const d2ls::cuda::AttendBackwardCall* call) {
  std::vector<float> scratch = d2ls::cuda::emulator::poisoned(attend_backward_scratch(*device, *call));
  return d2ls::cuda::emulator::told(attend_backward(*device, *call, scratch.data()));
}
