// What both halves of the projected interaction do with a tile of pixels; see projected.h.
//
// "_t" matrices have the T pixels of a tile as their columns: then scores, softmax over the entries and mixing run over
// whole vectors of pixels for any number of entries and any depth of a head.
// Included inside the namespace of one instruction set; see isa_*.cpp.

// out [D, kTile] = rows [T, stride], zero in the columns beyond T.
inline void transpose_tile(const ProjectedSizes& p, int64_t rows, const float* matrix, float* out) {
  for (int64_t first = 0; first < p.width; first += kLanes) {
    const int64_t last = first + kLanes < p.width ? first + kLanes : p.width;
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t i = first; i < last; ++i) {
        out[i * kTile + n] = matrix[n * p.stride + i];
      }
    }
    for (int64_t i = first; i < last && rows < kTile; ++i) {
      clear(out + i * kTile + rows, kTile - rows);
    }
  }
}

// The vector beyond the projections of every row of a tile: read with the last head, never used.
inline void clear_slack(const ProjectedSizes& p, float* rows) {
  for (int64_t n = 0; n < kTile; ++n) {
    clear(rows + n * p.stride + p.widths, p.stride - p.widths);
  }
}

inline int64_t pixel_columns(int64_t rows) { return (rows + kLanes - 1) / kLanes * kLanes; }

inline void copy_through(const PassShape& s, const ProjectedSizes& p, int64_t first, int64_t rows, const float* through,
                         float* image) {
  for (int64_t n = 0; n < rows && image != nullptr; ++n) {
    __builtin_memcpy(image + (first + n) * s.channels, through + n * p.pass.channels, s.channels * 4);
  }
}

// Adds grad_t [D, T] times weight [D, Cp] to output [T, Cp]; by itself also to `through`, unless null.
inline void project_backward(const ProjectedSizes& p, int64_t rows, const float* grad_t, const float* weight,
                             float* output, float* through) {
  const int64_t channels = p.pass.channels;
  const Strided grad{grad_t, 1, kTile};
  if (through == nullptr) {
    gemm(rows, channels, p.width, grad, weight, channels, output, channels, true);
    return;
  }
  gemm(rows, channels, p.width, grad, weight, channels, through, channels, false);
  for (int64_t i = 0; i < rows * channels; i += kLanes) {
    store(output + i, load(output + i) + load(through + i));
  }
}
