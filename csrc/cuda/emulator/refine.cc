// refine for tests: the launcher and its kernel on the CPU.
#include "cuda/refine.h"

#include "cuda/emulator/library.h"

extern "C" const char* d2ls_emulate_refine(const d2ls::cuda::Device* device, const d2ls::cuda::RefineCall* call) {
  return d2ls::cuda::emulator::told(refine(*device, *call));
}
