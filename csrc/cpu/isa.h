// The instruction set that the CPU kernels use, chosen when the first kernel runs.
#pragma once

// Compilers that know AVX512-BF16; with others that set does not exist.
#if defined(__x86_64__) && ((defined(__clang__) && __clang_major__ >= 10) || (!defined(__clang__) && __GNUC__ >= 11))
#define D2LS_HAVE_AVX512_BF16
#endif

namespace d2ls {

enum class Isa { portable, avx2, avx512, avx512_bf16 };

// The best set this processor has for kernels that compute in float32, at most avx512. The environment variable
// D2LS_FAST_ISA (portable, avx2, avx512) can ask for a lower one.
Isa isa();

// The same for kernels that multiply bfloat16 as it is: avx512_bf16 where the processor has it and isa() is avx512, unless
// D2LS_FAST_ISA asks for a lower one.
Isa isa_for_bf16();

const char* isa_name(Isa isa);

}  // namespace d2ls
