// Rows of a dictionary step: a task's memory, and moving and projecting a block of rows.
// Included inside the namespace of one instruction set; see isa_*.cpp.

// What one task works in: a block of rows and the weights of one head.
struct StepScratch {
  double* wide;       // [block, C]
  double* projected;  // [block, d]
  double* grad;       // [block, d]
  double* weight;     // [d, C]
  double* folding;    // [d, C] or [C, d]
  double* bias;       // [2, d]
  float* line;        // [C]
};

inline int64_t step_scratch(const StepInputs& in) {
  const int64_t block = kStepBlock, d = in.width();
  return 2 * block * in.channels + 2 * block * d + 2 * d * in.channels + 2 * d + in.channels;
}

inline StepScratch carve_step(const StepInputs& in, double* at) {
  const int64_t block = kStepBlock, d = in.width();
  StepScratch s{};
  s.wide = at;
  s.projected = s.wide + block * in.channels;
  s.grad = s.projected + block * d;
  s.weight = s.grad + block * d;
  s.folding = s.weight + d * in.channels;
  s.bias = s.folding + d * in.channels;
  s.line = reinterpret_cast<float*>(s.bias + 2 * d);
  return s;
}

// Where entry k of image b lies in a head-major tensor [B, H K, ...].
inline int64_t folded_row(const StepInputs& in, int64_t row, int64_t head) {
  return (row / in.entries * in.heads + head) * in.entries + row % in.entries;
}

inline void gather_rows(const StepInputs& in, Dtype dtype, const void* from, StepRows rows, int64_t head,
                        const StepScratch& s) {
  const int64_t channels = in.channels;
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    widen(dtype, from, folded_row(in, r, head) * channels, s.line, channels);
    double* to = s.wide + (r - rows.begin) * channels;
    for (int64_t c = 0; c < channels; ++c) to[c] = s.line[c];
  }
}

inline void scatter_rows(const StepInputs& in, Dtype dtype, const StepScratch& s, StepRows rows, int64_t head, void* to) {
  const int64_t channels = in.channels;
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const double* from = s.wide + (r - rows.begin) * channels;
    for (int64_t c = 0; c < channels; ++c) s.line[c] = static_cast<float>(from[c]);
    narrow(dtype, s.line, to, folded_row(in, r, head) * channels, channels);
  }
}

inline void to_floats(const double* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
}

// Sum of term(i) over i < count, in eight running sums.
template <class Term>
inline double sum_terms(int64_t count, Term term) {
  double part[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int lane = 0; lane < 8; ++lane) part[lane] += term(i + lane);
  }
  for (; i < count; ++i) part[0] += term(i);
  return ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
}

inline double score_scale(const StepInputs& in) { return 1.0 / __builtin_sqrt(static_cast<double>(in.width())); }

// to [rows, d] = (tokens weight_h' + bias_h) * scale
inline void project_rows(const StepInputs& in, const double* tokens, const float* weight, const float* bias,
                         StepRows rows, int64_t head, double scale, double* to, int64_t stride) {
  const int64_t d = in.width(), channels = in.channels, count = rows.end - rows.begin;
  dots(count, d, channels, tokens, channels, weight + head * d * channels, channels, to, stride);
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t i = 0; i < d; ++i) to[r * stride + i] = (to[r * stride + i] + bias[head * d + i]) * scale;
  }
}
