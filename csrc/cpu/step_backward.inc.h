// The same tasks undone, the last first: unfold, retreat, unmix.
// Included inside the namespace of one instruction set; see isa_*.cpp.

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
