// The CPU kernels for any processor: 128-bit vectors, which SSE2 and NEON both have.
#include "cpu/kernels.h"

#define D2LS_LANES 4
#if defined(__x86_64__)
#define D2LS_REGISTERS_16
#endif

namespace d2ls {
namespace portable {

#include "cpu/kernels.inc.h"

}  // namespace portable

Kernels kernels_portable() { return portable::kernels(); }

}  // namespace d2ls
