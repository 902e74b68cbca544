// 3x3 convolutions [B, T, F, C] by Winograd's F(4, 3) along both axes: four frames out of six products, each a 1x3
// convolution along frequency, that is of four bins out of six products. Over few positions tap by tap.

#include <algorithm>
#include <vector>

#include "direct.h"
#include "handlers.h"
#include "memory.h"
#include "products.h"
#include "threads.h"
#include "winograd.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t kSquares = 48;  // at a time: their windows and products stay in a second cache, kernels are read less often
constexpr int64_t kBlock = 192;   // rows of a panel that stay in a first cache together with as many of another array

Shape shape_of(Floats& x, int64_t out) {
  const auto d = x.dimensions();
  return {d[1], d[2], d[3], out, d[0] * d[1] / kTile};
}

// Runs task(first, last) on groups of tiles, as many groups for each thread.
template <typename Task>
void for_tiles(ffi::ThreadPool& pool, const Shape& s, Task task) {
  const int64_t fit = kSquares / s.squares();
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
      const float* from = inputs + p * apart + i / s.squares() * s.tile_size() + i % s.squares() * kTile * s.in;
      for (int64_t c = 0; c < s.in; c += kWide) {
        Wide d[kSix];
        for (int j = 0; j < kSix; ++j) d[j] = load_wide(from + j * s.in + c);
        transform_inputs(d, windows + i * s.in + c, windows_apart);
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
        transform_products(products + i * s.out + n, products_apart, sums + (p * rows + i * kTile) * s.out + n, s.out);
  }
  transform_output(sums, rows, s, first, y);
}

ffi::Error convolve(ffi::ThreadPool pool, Floats x, Floats kernel, Result y, bool turned) {
  const Shape s = shape_of(x, y->dimensions()[3]);
  if (s.directly()) {
    convolve_directly(pool, s, x.typed_data(), kernel.typed_data(), turned, y->typed_data());
    return ffi::Error::Success();
  }
  const int64_t panels = s.out / kPanel, panel_size = kSix * kSix * s.apart();
  Block kernels(panels * panel_size);
  float* transformed = kernels.start();
  parallel_for(pool, panels, [&](int64_t panel) {
    transform_kernel(kernel.typed_data(), s, panel, turned, transformed + panel * panel_size);
  });
  for_tiles(pool, s, [&](int64_t first, int64_t last) {
    const int64_t apart = (last - first) * s.tile_size();
    thread_local std::vector<float> kept;
    float* inputs = scratch(kept, kSix * apart);
    for (int64_t t = first; t < last; ++t)
      transform_tile(x.typed_data(), s, t, inputs + (t - first) * s.tile_size(), apart);
    convolve_squares(s, inputs, transformed, first, last, y->typed_data());
  });
  return ffi::Error::Success();
}

// The gradient of the transformed kernel, out [36][C][D]: of inputs [6][tiles][F + 2][C] and gradients
// [6][panel][rows][16].
void correlate_squares(ffi::ThreadPool& pool, const Shape& s, const float* inputs, const float* gradients, float* out) {
  const int64_t panels = s.out / kPanel, rows = s.tiles * s.bins;
  const int64_t together = pool.num_threads() > kSix ? 1 : kSix;  // products of a task, whose inputs come from far once
  parallel_for(pool, kSix * kSix / together, [&](int64_t task) {
    const int64_t p = task * together / kSix;
    thread_local std::vector<float> kept;
    float* windows = scratch(kept, kBlock * (s.in + kTogether * kPanel));  // [C / 16][squares][16]
    float* of_products = windows + kBlock * s.in;
    for (int64_t first = 0; first < rows / kTile; first += kBlock)
      for (int64_t product = task * together; product < (task + 1) * together; ++product) {
        const int64_t q = product % kSix, n = std::min(kBlock, rows / kTile - first);
        for (int64_t r = 0; r < n; ++r) {
          const int64_t tile = (first + r) / s.squares(), square = (first + r) % s.squares();
          const float* from = inputs + (p * s.tiles + tile) * s.tile_size() + square * kTile * s.in;
          for (int64_t c = 0; c < s.in; c += kWide) {
            Wide sum = Wide{};
            for (int j = 0; j < kSix; ++j) sum += kInputs[q][j] * load_wide(from + j * s.in + c);
            store(windows + (c / kPanel * n + r) * kPanel + c % kPanel, sum);
          }
        }
        for_panels(panels, [&](int64_t panel, int64_t n_panels) {
          for (int64_t i = 0; i < n_panels * n * kPanel; i += kWide) {
            const int64_t row = i / kPanel % n, from_panel = panel + i / kPanel / n;
            const float* bins = gradients + ((p * panels + from_panel) * rows + (first + row) * kTile) * kPanel + i % kPanel;
            Wide sum = Wide{};
            for (int j = 0; j < kTile; ++j) sum += kOutputs[j][q] * load_wide(bins + j * kPanel);
            store(of_products + i, sum);
          }
          for (int64_t c = 0; c < s.in; c += kPanel)
            for_blocks(kPanel, [&](int64_t block, int64_t m) {
              const float* from[kRows];
              for (int64_t r = 0; r < m; ++r) from[r] = windows + c * n + block + r;
              kMultiply[n_panels - 1][m](from, kPanel, 0, of_products, n * kPanel, n, 1,
                                         out + (product * s.in + c + block) * s.out + panel * kPanel, s.out, first > 0);
            });
        });
      }
  });
}

// The gradient of the kernel, [3, 3, C, D].
ffi::Error kernel_gradient(ffi::ThreadPool pool, Floats x, Floats gradient, Result result) {
  const Shape s = shape_of(x, gradient.dimensions()[3]);
  if (s.directly()) {
    correlate_directly(pool, s, x.typed_data(), gradient.typed_data(), result->typed_data());
    return ffi::Error::Success();
  }
  const int64_t rows = s.tiles * s.bins, apart = s.tiles * s.tile_size();
  Block arrays(kSix * (apart + rows * s.out) + kSix * kSix * s.in * s.out);
  float* inputs = arrays.start();
  float* gradients = inputs + kSix * apart;
  float* products = gradients + kSix * rows * s.out;
  for_tiles(pool, s, [&](int64_t first, int64_t last) {
    const int64_t frame = s.bins * s.out;
    for (int64_t t = first; t < last; ++t) {
      transform_tile(x.typed_data(), s, t, inputs + t * s.tile_size(), apart);
      const float* from = gradient.typed_data() + s.frame(t) * frame;
      for (int64_t f = 0; f < s.bins; ++f)
        for (int64_t n = 0; n < s.out; n += kWide) {
          Wide g[kTile];
          for (int i = 0; i < kTile; ++i) g[i] = load_wide(from + i * frame + f * s.out + n);
          float* to = gradients + (n / kPanel * rows + t * s.bins + f) * kPanel + n % kPanel;
          transform_gradients(g, to, rows * s.out);
        }
    }
  });
  correlate_squares(pool, s, inputs, gradients, products);
  parallel_for(pool, s.in, [&](int64_t i) {
    float* to = result->typed_data() + i * s.out;
    const auto sum_along_time = [&](const float* from, int64_t along, Wide(&taps)[kTaps]) {
      Wide of_products[kSix];
      for (int p = 0; p < kSix; ++p) of_products[p] = load_wide(from + p * along);
      sum_to_taps(of_products, taps);
    };
    const int64_t size = s.in * s.out;
    for (int64_t n = 0; n < s.out; n += kWide) {
      const float* from = products + i * s.out + n;
      Wide by_time[kTaps][kSix];
      for (int q = 0; q < kSix; ++q) {
        Wide taps[kTaps];
        sum_along_time(from + q * size, kSix * size, taps);
        for (int r = 0; r < kTaps; ++r) by_time[r][q] = taps[r];
      }
      for (int r = 0; r < kTaps; ++r) {
        Wide taps[kTaps];
        sum_to_taps(by_time[r], taps);
        for (int j = 0; j < kTaps; ++j) store(to + (r * kTaps + j) * size + n, taps[j]);
      }
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(dualspec_convolve, convolve, for_convolution());
XLA_FFI_DEFINE_HANDLER_SYMBOL(dualspec_kernel_gradient, kernel_gradient, for_kernel_gradient());
