// The CUDA part of the extension: a library of its own, so that the CPU part loads where there is no CUDA runtime.
// Only the stable ABI is used; see ../registration.cpp.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/library.h>

#include <string>

namespace {

// Architectures that the kernels were compiled for, as nvcc lists them (800 is sm_80), and the runtime's version.
std::string cuda_build_info() {
#define D2LS_TEXT(...) #__VA_ARGS__
#define D2LS_LIST(...) D2LS_TEXT(__VA_ARGS__)
  int runtime = 0;
  const bool known = cudaRuntimeGetVersion(&runtime) == cudaSuccess;
  return std::string("arch=") + D2LS_LIST(__CUDA_ARCH_LIST__) +
         " runtime=" + (known ? std::to_string(runtime / 1000) + "." + std::to_string(runtime % 1000 / 10) : "unknown");
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(d2ls_fast, m) { m.def("cuda_build_info() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CompositeExplicitAutograd, m) {
  m.impl("cuda_build_info", TORCH_BOX(&cuda_build_info));
}
