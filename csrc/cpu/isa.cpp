#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace d2ls {
namespace {

Isa best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
#if defined(D2LS_HAVE_AVX512_BF16)
    if (__builtin_cpu_supports("avx512bf16")) {
      return Isa::avx512_bf16;
    }
#endif
    return Isa::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return Isa::avx2;
  }
#endif
  return Isa::portable;
}

Isa choose() {
  const Isa found = best();
  const char* wanted = std::getenv("D2LS_FAST_ISA");
  if (wanted == nullptr) {
    return found;
  }
  for (const Isa candidate : {Isa::portable, Isa::avx2, Isa::avx512}) {
    // Only downwards: a set the processor lacks would end in an illegal instruction.
    if (std::strcmp(wanted, isa_name(candidate)) == 0 && candidate <= found) {
      return candidate;
    }
  }
  return found;
}

}  // namespace

Isa isa_for_bf16() {
  static const Isa chosen = choose();
  return chosen;
}

Isa isa() { return isa_for_bf16() == Isa::avx512_bf16 ? Isa::avx512 : isa_for_bf16(); }

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

}  // namespace d2ls
