// attend for tests: the launcher and its kernels on the CPU.
#include "cuda/attend.h"

#include "cuda/emulator/library.h"

extern "C" const char* d2ls_emulate_attend(const d2ls::cuda::Device* device, const d2ls::cuda::AttendCall* call) {
  std::vector<float> scratch = d2ls::cuda::emulator::poisoned(attend_scratch(*device, *call));
  return d2ls::cuda::emulator::told(attend(*device, *call, scratch.data()));
}
