// The gated GELU of arrays [..., 2 C]: C values, each times its gate and the part of a normal distribution below the gate.
// Source: Shazeer 2020 (arXiv:2002.05202), GEGLU.

#include <algorithm>

#include "handlers.h"
#include "threads.h"
#include "vectors.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t kNumbers = 1 << 15;  // of x that a task takes, about

// Calls task(row) for each row of x.
template <typename Task>
ffi::Future for_rows(ffi::ThreadPool& pool, Floats& x, Task task) {
  const int64_t width = x.dimensions().back(), rows = x.element_count() / width;
  const int64_t together = std::max<int64_t>(1, kNumbers / width);
  return start_parallel(pool, (rows + together - 1) / together, [=](int64_t i) {
    for (int64_t row = i * together; row < std::min(rows, (i + 1) * together); ++row) task(row);
  });
}

ffi::Future gated_gelu(ffi::ThreadPool pool, Floats x, Result y) {
  const int64_t c = y->dimensions().back();
  const float* from = x.typed_data();
  float* to = y->typed_data();
  return for_rows(pool, x, [=](int64_t row) {
    const float *values = from + 2 * row * c, *gates = values + c;
    for (int64_t i = 0; i < c; i += kWide) {
      Wide bell;
      const Wide gate = load_wide(gates + i);
      store(to + row * c + i, load_wide(values + i) * gate * below(gate, bell));
    }
  });
}

ffi::Future gated_gelu_gradient(ffi::ThreadPool pool, Floats x, Floats gradient, Result result) {
  constexpr float kDensity = 0.398942280f;  // of a normal distribution at 0
  const int64_t c = gradient.dimensions().back();
  const float *from = x.typed_data(), *of_y = gradient.typed_data();
  float* to = result->typed_data();
  return for_rows(pool, x, [=](int64_t row) {
    const float *values = from + 2 * row * c, *gates = values + c;
    for (int64_t i = 0; i < c; i += kWide) {
      Wide bell;
      const Wide gate = load_wide(gates + i), g = load_wide(of_y + row * c + i), part = below(gate, bell);
      store(to + 2 * row * c + i, g * gate * part);
      store(to + (2 * row + 1) * c + i, g * load_wide(values + i) * (part + gate * bell * kDensity));
    }
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(dualspec_gated_gelu, gated_gelu, threads_and().Arg<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(dualspec_gated_gelu_gradient, gated_gelu_gradient,
                              threads_and().Arg<Floats>().Arg<Floats>().Ret<Floats>());
