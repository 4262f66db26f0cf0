#include "cpu/kernels.h"

namespace d2ls {

const Kernels& chosen_kernels() {
  static const Kernels chosen = [] {
#if defined(__x86_64__)
    if (isa() == Isa::avx512) return kernels_avx512();
    if (isa() == Isa::avx2) return kernels_avx2();
#endif
    return kernels_portable();
  }();
  return chosen;
}

const PassKernels& chosen_pass(Dtype dtype) {
#if defined(D2LS_HAVE_AVX512_BF16)
  static const PassKernels pairs = pass_kernels_avx512_bf16();
  if (dtype == Dtype::bf16 && isa_for_bf16() == Isa::avx512_bf16) return pairs;
#endif
  return chosen_kernels().pass;
}

}  // namespace d2ls
