// The backward of classify for tests: the launches and their kernels on the CPU.
#include "cuda/classify_gradients.h"

#include "cuda/emulator/library.h"

extern "C" const char* d2ls_emulate_classify_gradients(const d2ls::cuda::Device* device,
                                                       const d2ls::cuda::ClassifyGradientsCall* call) {
  using namespace d2ls::cuda;
  return emulator::told(
      classify_gradients(*device, *call, emulator::poisoned(classify_gradients_scratch(*device, call->of)).data()));
}
