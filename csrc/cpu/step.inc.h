// The tasks of a dictionary step, forward and backward; see step.h for the formulas.
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

inline void mix_rows(const StepInputs& in, StepState state, StepRows rows, int64_t head, double* scratch) {
  const StepScratch s = carve_step(in, scratch);
  gather_rows(in, Dtype::f32, in.update.context, rows, head, s);
  double* to = state.mixed + rows.begin * in.inner + head * in.width();
  project_rows(in, s.wide, in.update.value_weight, in.update.value_bias, rows, head, 1.0, to, in.inner);
}

inline void advance_rows(const StepInputs& in, StepState state, StepRows rows, float* dictionary) {
  const int64_t channels = in.channels, inner = in.inner;
  const double share = 1.0 / static_cast<double>(channels);
  if (in.update.context != nullptr) {
    dots(rows.end - rows.begin, channels, inner, state.mixed + rows.begin * inner, inner, in.update.out_weight, inner,
         state.entry + rows.begin * channels, channels);
  }
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const float* previous = in.dictionary + r * channels;
    const float* position = in.position + r * channels;
    double* entry = state.entry + r * channels;
    double* normal = state.normal + r * channels;
    if (in.update.context != nullptr) {
      for (int64_t c = 0; c < channels; ++c) entry[c] += static_cast<double>(in.update.out_bias[c]) + previous[c];
      const double mean = share * sum_terms(channels, [&](int64_t c) { return entry[c]; });
      const double variance =
          share * sum_terms(channels, [&](int64_t c) { return (entry[c] - mean) * (entry[c] - mean); });
      state.inverse[r] = 1.0 / __builtin_sqrt(variance + in.eps);
      for (int64_t c = 0; c < channels; ++c) {
        normal[c] = (entry[c] - mean) * state.inverse[r];
        entry[c] = normal[c] * in.update.norm_weight[c] + in.update.norm_bias[c];
      }
      if (dictionary != nullptr) to_floats(entry, channels, dictionary + r * channels);
    } else {
      for (int64_t c = 0; c < channels; ++c) entry[c] = previous[c];
    }
    for (int64_t c = 0; c < channels; ++c) state.placed[r * channels + c] = entry[c] + position[c];
  }
}

inline void fold_part(const StepInputs& in, const StepFold& part, const double* placed, StepRows rows, int64_t head,
                      void* to, float* bias, const StepScratch& s) {
  const int64_t d = in.width(), channels = in.channels, count = rows.end - rows.begin;
  const double* tokens = placed + rows.begin * channels;
  project_rows(in, tokens, part.weight, part.bias, rows, head, score_scale(in), s.projected, d);
  product(count, channels, d, {s.projected, d, 1}, part.folding + head * d * channels, channels, s.wide, channels, false);
  scatter_rows(in, in.dtype, s, rows, head, to);
  for (int64_t r = 0; r < count && bias != nullptr; ++r) {
    double sum = 0.0;
    for (int64_t i = 0; i < d; ++i) sum += s.projected[r * d + i] * part.folding_bias[head * d + i];
    bias[folded_row(in, rows.begin + r, head)] = static_cast<float>(sum);
  }
}

inline void fold_rows(const StepForward& call, StepState state, StepRows rows, int64_t head, double* scratch) {
  const StepInputs& in = call.in;
  const StepScratch s = carve_step(in, scratch);
  const int64_t d = in.width(), channels = in.channels, count = rows.end - rows.begin;
  if (in.look.weight != nullptr) fold_part(in, in.look, state.placed, rows, head, call.query, nullptr, s);
  if (in.key.weight == nullptr) return;
  fold_part(in, in.key, state.placed, rows, head, call.key, call.key_bias, s);
  const double* tokens = state.entry + rows.begin * channels;
  project_rows(in, tokens, in.value.weight, in.value.bias, rows, head, 1.0, s.projected, d);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < d; ++i) s.folding[i * channels + c] = in.value.out_weight[c * in.inner + head * d + i];
  }
  product(count, channels, d, {s.projected, d, 1}, s.folding, channels, s.wide, channels, false);
  scatter_rows(in, in.dtype, s, rows, head, call.value);
}

inline StepRows block_at(const StepInputs& in, int64_t begin) {
  return {begin, begin + kStepBlock < in.rows() ? begin + kStepBlock : in.rows()};
}

inline void add_columns(const double* rows, int64_t count, int64_t stride, int64_t width, double* sums) {
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t i = 0; i < width; ++i) sums[i] += rows[r * stride + i];
  }
}

// Gradients of one head's part of a projection and of what it was folded with; rows_grad [B K, I] keeps that of the
// projected rows.
inline void unfold_part(const StepInputs& in, const StepFold& part, const StepFoldGradients& to, const void* grad,
                        const float* grad_bias, const double* placed, double* rows_grad, int64_t head,
                        const StepScratch& s) {
  const int64_t d = in.width(), channels = in.channels, inner = in.inner;
  const double scale = score_scale(in);
  for (int64_t i = 0; i < 2 * d; ++i) s.bias[i] = 0.0;
  for (int64_t begin = 0; begin < in.rows(); begin += kStepBlock) {
    const StepRows rows = block_at(in, begin);
    const int64_t count = rows.end - begin;
    const double* tokens = placed + begin * channels;
    project_rows(in, tokens, part.weight, part.bias, rows, head, scale, s.projected, d);
    gather_rows(in, in.dtype, grad, rows, head, s);
    dots(count, d, channels, s.wide, channels, part.folding + head * d * channels, channels, s.grad, d);
    for (int64_t r = 0; r < count; ++r) {
      const double of_bias = grad_bias == nullptr ? 0.0 : grad_bias[folded_row(in, begin + r, head)];
      for (int64_t i = 0; i < d; ++i) {
        double& value = s.grad[r * d + i];
        if (grad_bias != nullptr) {
          value += of_bias * part.folding_bias[head * d + i];
          s.bias[d + i] += of_bias * s.projected[r * d + i];
        }
        value *= scale;
        rows_grad[(begin + r) * inner + head * d + i] = value;
      }
    }
    product(d, channels, count, {s.projected, 1, d}, s.wide, channels, s.folding, channels, begin > 0);
    product(d, channels, count, {s.grad, 1, d}, tokens, channels, s.weight, channels, begin > 0);
    add_columns(s.grad, count, d, d, s.bias);
  }
  to_floats(s.weight, d * channels, to.weight + head * d * channels);
  to_floats(s.folding, d * channels, to.folding + head * d * channels);
  to_floats(s.bias, d, to.bias + head * d);
  if (grad_bias != nullptr) to_floats(s.bias + d, d, to.folding_bias + head * d);
}

// [C, d] to a head's columns of [C, I].
inline void columns_to_floats(const StepInputs& in, const double* from, int64_t head, float* to) {
  const int64_t d = in.width();
  for (int64_t c = 0; c < in.channels; ++c) to_floats(from + c * d, d, to + c * in.inner + head * d);
}

inline void unfold_value(const StepBackward& call, StepState state, int64_t head, const StepScratch& s) {
  const StepInputs& in = call.in;
  const int64_t d = in.width(), channels = in.channels, inner = in.inner;
  for (int64_t i = 0; i < d; ++i) s.bias[i] = 0.0;
  for (int64_t begin = 0; begin < in.rows(); begin += kStepBlock) {
    const StepRows rows = block_at(in, begin);
    const int64_t count = rows.end - begin;
    const double* tokens = state.entry + begin * channels;
    double* grad = state.value + begin * inner + head * d;
    project_rows(in, tokens, in.value.weight, in.value.bias, rows, head, 1.0, s.projected, d);
    gather_rows(in, in.dtype, call.grad_value, rows, head, s);
    product(count, d, channels, {s.wide, channels, 1}, in.value.out_weight + head * d, inner, grad, inner, false);
    product(channels, d, count, {s.wide, 1, channels}, s.projected, d, s.folding, d, begin > 0);
    product(d, channels, count, {grad, 1, inner}, tokens, channels, s.weight, channels, begin > 0);
    add_columns(grad, count, inner, d, s.bias);
  }
  to_floats(s.weight, d * channels, call.to_entry_weight + head * d * channels);
  to_floats(s.bias, d, call.to_entry_bias + head * d);
  columns_to_floats(in, s.folding, head, call.to_entry_out_weight);
}

inline void unfold_head(const StepBackward& call, StepState state, int64_t head, double* scratch) {
  const StepInputs& in = call.in;
  const StepScratch s = carve_step(in, scratch);
  if (in.look.weight != nullptr) {
    unfold_part(in, in.look, call.to_look, call.grad_query, nullptr, state.placed, state.query, head, s);
  }
  if (in.key.weight != nullptr) {
    unfold_part(in, in.key, call.to_key, call.grad_key, call.grad_key_bias, state.placed, state.key, head, s);
    unfold_value(call, state, head, s);
  }
}

inline void retreat_rows(const StepBackward& call, StepState state, StepRows rows, double* vectors, double* scratch) {
  const StepInputs& in = call.in;
  const int64_t channels = in.channels, inner = in.inner, count = rows.end - rows.begin, from = rows.begin * inner;
  const double share = 1.0 / static_cast<double>(channels);
  double* to_placed = scratch;
  double* to_entry = state.total + rows.begin * channels;
  for (int64_t i = 0; i < count * channels; ++i) to_placed[i] = 0.0;
  if (in.look.weight != nullptr) {
    product(count, channels, inner, {state.query + from, inner, 1}, in.look.weight, channels, to_placed, channels, true);
  }
  if (in.key.weight != nullptr) {
    product(count, channels, inner, {state.key + from, inner, 1}, in.key.weight, channels, to_placed, channels, true);
  }
  to_floats(to_placed, count * channels, call.to_position + rows.begin * channels);
  for (int64_t i = 0; i < count * channels; ++i) to_entry[i] = to_placed[i];
  if (in.key.weight != nullptr) {
    product(count, channels, inner, {state.value + from, inner, 1}, in.value.weight, channels, to_entry, channels, true);
  }
  for (int64_t r = rows.begin; r < rows.end && in.update.context != nullptr; ++r) {
    double* grad = state.total + r * channels;
    const double* normal = state.normal + r * channels;
    for (int64_t c = 0; c < channels; ++c) {
      grad[c] += call.grad_dictionary[r * channels + c];
      vectors[c] += grad[c] * normal[c];
      vectors[channels + c] += grad[c];
      grad[c] *= in.update.norm_weight[c];
    }
    const double mean = share * sum_terms(channels, [&](int64_t c) { return grad[c]; });
    const double tilt = share * sum_terms(channels, [&](int64_t c) { return grad[c] * normal[c]; });
    for (int64_t c = 0; c < channels; ++c) {
      grad[c] = state.inverse[r] * (grad[c] - mean - normal[c] * tilt);
      vectors[2 * channels + c] += grad[c];
    }
  }
  to_floats(to_entry, count * channels, call.to_dictionary + rows.begin * channels);
  if (in.update.context != nullptr) {
    product(count, inner, channels, {to_entry, channels, 1}, in.update.out_weight, inner, state.to_mixed + from, inner,
            false);
  }
}

inline void unmix_head(const StepBackward& call, StepState state, int64_t head, double* scratch) {
  const StepInputs& in = call.in;
  const StepScratch s = carve_step(in, scratch);
  const int64_t d = in.width(), channels = in.channels, inner = in.inner;
  for (int64_t i = 0; i < d; ++i) s.bias[i] = 0.0;
  for (int64_t begin = 0; begin < in.rows(); begin += kStepBlock) {
    const StepRows rows = block_at(in, begin);
    const int64_t count = rows.end - begin;
    const double* grad = state.to_mixed + begin * inner + head * d;
    gather_rows(in, Dtype::f32, in.update.context, rows, head, s);
    product(d, channels, count, {grad, 1, inner}, s.wide, channels, s.weight, channels, begin > 0);
    product(channels, d, count, {state.total + begin * channels, 1, channels}, state.mixed + begin * inner + head * d,
            inner, s.folding, d, begin > 0);
    add_columns(grad, count, inner, d, s.bias);
    product(count, channels, d, {grad, inner, 1}, in.update.value_weight + head * d * channels, channels, s.wide,
            channels, false);
    scatter_rows(in, Dtype::f32, s, rows, head, call.to_context);
  }
  to_floats(s.weight, d * channels, call.to_value_weight + head * d * channels);
  to_floats(s.bias, d, call.to_value_bias + head * d);
  columns_to_floats(in, s.folding, head, call.to_out_weight);
}

inline StepKernels step_kernels() {
  return {step_scratch, mix_rows, advance_rows, fold_rows, unfold_head, retreat_rows, unmix_head};
}
