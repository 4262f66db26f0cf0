// classify for tests: the launcher and its kernels on the CPU.
#include "cuda/classify.h"

#include "cuda/emulator/library.h"

extern "C" const char* d2ls_emulate_classify(const d2ls::cuda::Device* device, const d2ls::cuda::ClassifyCall* call) {
  return d2ls::cuda::emulator::told(classify(*device, *call));
}
