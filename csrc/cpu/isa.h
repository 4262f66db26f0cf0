// The instruction set that the CPU kernels use, chosen when the first kernel runs.
#pragma once

namespace d2ls {

enum class Isa { portable, avx2, avx512 };

// The best set this processor has; the environment variable D2LS_FAST_ISA (portable, avx2, avx512) can ask for a lower one.
Isa isa();

const char* isa_name(Isa isa);

}  // namespace d2ls
