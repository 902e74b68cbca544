// 3x3 convolutions [B, T, F, C] by Winograd's F(4, 3) along both axes: four frames out of six products, each a 1x3
// convolution along frequency, that is of four bins out of six products. Over few positions, and for the gradient of a kernel,
// in parts (`squares.h`).

#include <algorithm>
#include <vector>

#include "dense.h"
#include "handlers.h"
#include "memory.h"
#include "products.h"
#include "squares.h"
#include "threads.h"
#include "winograd.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t kSquares = 48;  // at a time: their windows and products stay in a second cache, kernels are read less often

Shape shape_of(Floats& x, int64_t out) {
  const auto d = x.dimensions();
  return {d[1], d[2], d[3], out, d[0] * d[1] / kTile};
}

// Runs task(first, last) on groups of tiles, as many groups for each thread.
template <typename Task>
void for_tiles(ffi::ThreadPool& pool, const Shape& s, Task task) {
  const int64_t fit = kSquares / (s.bins / kTile);
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  const int64_t rounds = (s.tiles - 1) / (std::max<int64_t>(1, fit) * threads) + 1;
  const int64_t groups = std::min(s.tiles, rounds * threads);
  parallel_for(pool, groups, [&](int64_t i) { task(i * s.tiles / groups, (i + 1) * s.tiles / groups); });
}

// Convolves a group of tiles, whose transforms along time are `inputs`: by each product along time, those along frequency.
void convolve_squares(const Shape& s, const float* inputs, const float* kernel, int64_t first, int64_t last, float* y) {
  const int64_t rows = (last - first) * s.bins, squares = rows / kTile, apart = (last - first) * s.tile_size();
  const int64_t windows_apart = squares * s.in + kLine, products_apart = squares * s.out + kLine;
  thread_local std::vector<float> kept;
  float* windows = scratch(kept, kSix * (windows_apart + products_apart + rows * s.out));
  float* products = windows + kSix * windows_apart;
  float* sums = products + kSix * products_apart;
  for (int p = 0; p < kSix; ++p) {
    for (int64_t i = 0; i < squares; ++i) {
      const float* from = inputs + p * apart + i / (s.bins / kTile) * s.tile_size() + i % (s.bins / kTile) * kTile * s.in;
      for (int64_t c = 0; c < s.in; c += kWide) {
        Wide d[kSix];
        for (int j = 0; j < kSix; ++j) d[j] = load_wide(from + j * s.in + c);
        transform_inputs<kTile>(d, windows + i * s.in + c, windows_apart);
      }
    }
    for (int q = 0; q < kSix; ++q)
      for_panels(s.out / kPanel, [&](int64_t panel, int64_t n) {
        const auto row = [&](int64_t i) { return windows + q * windows_apart + i * s.in; };
        const float* of_product = kernel + ((panel * kSix + p) * kSix + q) * s.apart();
        multiply_rows(row, 0, squares, of_product, n, kSix * kSix * s.apart(), s.in,
                      products + q * products_apart + panel * kPanel, s.out);
      });
    for (int64_t i = 0; i < squares; ++i)
      for (int64_t n = 0; n < s.out; n += kWide)
        transform_products<kTile>(products + i * s.out + n, products_apart, sums + (p * rows + i * kTile) * s.out + n, s.out);
  }
  transform_output(sums, rows, s, first, y);
}

ffi::Future convolve(ffi::ThreadPool pool, Floats x, Floats kernel, Result y, bool turned) {
  const auto d = kernel.dimensions();
  if (d.size() == 2) {  // x [..., C] times the kernel
    const int64_t in = d[turned], out = d[!turned];
    return multiply_dense(pool, x.element_count() / in, out, in, {x.typed_data(), in, false}, {kernel.typed_data(), d[1], turned},
                          y->typed_data());
  }
  const Shape s = shape_of(x, y->dimensions()[3]);
  // By the example, so that its result does not depend on what comes with it.
  if (s.bins % kTile != 0 || s.positions() <= std::min(s.in, s.out)) {
    by_squares(s, [&](const auto& squares) {
      squares.convolve(pool, x.typed_data(), kernel.typed_data(), turned, y->typed_data());
    });
    return done();
  }
  const int64_t panels = s.out / kPanel, panel_size = kSix * kSix * s.apart();
  Block kernels(panels * panel_size);
  float* transformed = kernels.start();
  parallel_for(pool, panels, [&](int64_t panel) {
    transform_kernel<kTile>(kernel.typed_data(), s, panel, turned, 0, s.in, transformed + panel * panel_size, s.apart());
  });
  for_tiles(pool, s, [&](int64_t first, int64_t last) {
    const int64_t apart = (last - first) * s.tile_size();
    thread_local std::vector<float> kept;
    float* inputs = scratch(kept, kSix * apart);
    for (int64_t t = first; t < last; ++t)
      transform_tile(x.typed_data(), s, t, s.tile_size(), inputs + (t - first) * s.tile_size(), apart);
    convolve_squares(s, inputs, transformed, first, last, y->typed_data());
  });
  return done();
}

// The gradient of the kernel, [3, 3, C, D] or [C, D].
ffi::Future kernel_gradient(ffi::ThreadPool pool, Floats x, Floats gradient, Result result) {
  const auto d = result->dimensions();
  if (d.size() == 2)
    return multiply_dense(pool, d[0], d[1], x.element_count() / d[0], {x.typed_data(), d[0], true},
                          {gradient.typed_data(), d[1], false}, result->typed_data());
  by_squares(shape_of(x, gradient.dimensions()[3]), [&](const auto& squares) {
    squares.correlate(pool, x.typed_data(), gradient.typed_data(), result->typed_data());
  });
  return done();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(dualspec_convolve, convolve, for_convolution());
XLA_FFI_DEFINE_HANDLER_SYMBOL(dualspec_kernel_gradient, kernel_gradient, for_kernel_gradient());
