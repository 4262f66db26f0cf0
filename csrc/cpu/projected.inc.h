// The projected interaction as the host calls it.
// Included inside the namespace of one instruction set; see isa_*.cpp.

inline ProjectedKernels projected_kernels() {
  return {kLanes,
          attend_projected_scratch,
          refine_projected_scratch,
          attend_projected_chunk,
          attend_projected_backward_chunk,
          refine_projected_chunk,
          refine_projected_backward_chunk,
          narrow};
}
