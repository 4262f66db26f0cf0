// nce_sums and its backward for tests: the launches and their kernels on the CPU.
#include "cuda/nce.h"

#include "cuda/emulator/library.h"

namespace d2ls::cuda::emulator {

struct NceSumsCall {
  NceCall of;
  NceSums sums;
};

extern "C" const char* d2ls_emulate_nce_sums(const Device* device, const NceSumsCall* call) {
  return told(nce_sums(*device, call->of, call->sums, poisoned(nce_sums_scratch(*device, call->of)).data()));
}

extern "C" const char* d2ls_emulate_nce_gradients(const Device* device, const NceGradientsCall* call) {
  return told(nce_gradients(*device, *call, poisoned(nce_gradients_scratch(*device, call->of)).data()));
}

}  // namespace d2ls::cuda::emulator
