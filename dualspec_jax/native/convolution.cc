// 3x3 convolutions [B, T, F, C] by Winograd's F(4, 3) along time, as `models.cpu_convolution.winograd` defines them: four
// frames out of six products, each a 1x3 convolution along frequency, whose three taps lie one behind the other in memory.

#include <algorithm>
#include <vector>

#include "memory.h"
#include "products.h"
#include "threads.h"

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Floats>;

namespace {

constexpr int kTile = 4, kProducts = 6;
constexpr float kTaps[kProducts][3] = {{1 / 4.0f, 0, 0},
                                       {-1 / 6.0f, -1 / 6.0f, -1 / 6.0f},
                                       {-1 / 6.0f, 1 / 6.0f, -1 / 6.0f},
                                       {1 / 24.0f, 1 / 12.0f, 1 / 6.0f},
                                       {1 / 24.0f, -1 / 12.0f, 1 / 6.0f},
                                       {0, 0, 1}};

struct Shape {
  int64_t frames, bins, in, out;  // of one example
  int64_t tiles;                  // of the batch
  int64_t tile_size() const { return (bins + 2) * in; }
};

// The six transformed inputs of a tile, `apart` from each other, each [F + 2, C] with zeros at both ends.
void transform_input(const float* x, const Shape& s, int64_t tile, float* out, int64_t apart) {
  const int64_t tiles = s.frames / kTile, start = tile % tiles * kTile - 1, size = s.bins * s.in;
  const float* example = x + tile / tiles * s.frames * size;
  const float* frames[kTile + 2];
  thread_local std::vector<float> zeros;
  if (int64_t(zeros.size()) < size) zeros.resize(size);
  for (int i = 0; i < kTile + 2; ++i) {
    const bool inside = start + i >= 0 && start + i < s.frames;
    frames[i] = inside ? example + (start + i) * size : zeros.data();
  }
  for (int p = 0; p < kProducts; ++p) {
    std::fill(out + p * apart, out + p * apart + s.in, 0.0f);
    std::fill(out + p * apart + size + s.in, out + p * apart + size + 2 * s.in, 0.0f);
  }
  for (int64_t i = 0; i < size; i += 8) {
    Vec d[kTile + 2];
    for (int j = 0; j < kTile + 2; ++j) d[j] = load(frames[j] + i);
    float* to = out + s.in + i;
    store(to, 4.0f * d[0] - 5.0f * d[2] + d[4]);
    store(to + apart, d[3] + d[4] - 4.0f * (d[1] + d[2]));
    store(to + 2 * apart, d[4] - d[3] + 4.0f * (d[1] - d[2]));
    store(to + 3 * apart, d[4] - d[2] + 2.0f * (d[3] - d[1]));
    store(to + 4 * apart, d[4] - d[2] - 2.0f * (d[3] - d[1]));
    store(to + 5 * apart, 4.0f * d[1] - 5.0f * d[3] + d[5]);
  }
}

// A panel of sixteen outputs of the transformed kernel [3, 3, C, D], [6][3 C][16]; turned: of the kernel of the gradient of
// the input, with both axes turned around and inputs and outputs exchanged.
void transform_kernel(const float* kernel, const Shape& s, int64_t panel, bool turned, float* out) {
  const int64_t apart = 3 * s.in * kPanel;
  const auto put = [&](int64_t j, int64_t c, int half, const Vec (&taps)[3]) {
    float* to = out + (j * s.in + c) * kPanel + 8 * half;
    for (int p = 0; p < kProducts; ++p)
      store(to + p * apart, kTaps[p][0] * taps[0] + kTaps[p][1] * taps[1] + kTaps[p][2] * taps[2]);
  };
  for (int64_t j = 0; j < 3; ++j)
    for (int half = 0; half < 2; ++half) {
      const int64_t n = panel * kPanel + 8 * half;
      if (!turned) {
        for (int64_t c = 0; c < s.in; ++c) {
          Vec taps[3];
          for (int64_t r = 0; r < 3; ++r) taps[r] = load(kernel + ((r * 3 + j) * s.in + c) * s.out + n);
          put(j, c, half, taps);
        }
      } else {
        for (int64_t c = 0; c < s.in; c += 8) {
          Vec rows[8], columns[3][8];
          for (int64_t r = 0; r < 3; ++r) {
            const float* from = kernel + (((2 - r) * 3 + 2 - j) * s.out + n) * s.in + c;
            for (int i = 0; i < 8; ++i) rows[i] = load(from + i * s.in);
            transpose(rows, columns[r]);
          }
          for (int i = 0; i < 8; ++i) put(j, c + i, half, {columns[0][i], columns[1][i], columns[2][i]});
        }
      }
    }
}

// Four frames of sixteen channels out of products [6][rows][16], whose row i is bin i % F of tile first + i / F.
void transform_output(const float* products, int64_t rows, const Shape& s, int64_t first, int64_t panel, float* y) {
  const int64_t tiles = s.frames / kTile, frame = s.bins * s.out;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t tile = first + row / s.bins;
    float* to = y + (tile / tiles * s.frames + tile % tiles * kTile) * frame + row % s.bins * s.out + panel * kPanel;
    for (int half = 0; half < 2; ++half, to += 8) {
      Vec p[kProducts];
      for (int i = 0; i < kProducts; ++i) p[i] = load(products + (i * rows + row) * kPanel + 8 * half);
      Vec sum = p[1] + p[2], difference = p[1] - p[2], more = p[3] + p[4], less = p[3] - p[4];
      store(to, p[0] + sum + more);
      store(to + frame, difference + 2.0f * less);
      store(to + 2 * frame, sum + 4.0f * more);
      store(to + 3 * frame, difference + 8.0f * less + p[5]);
    }
  }
}

// Runs task(first, last) on groups of tiles, as many as keep six of their transforms in a second cache of 512 KiB, and as
// many groups for each thread.
template <typename Task>
void for_tiles(ffi::ThreadPool& pool, const Shape& s, Task task) {
  const int64_t fit = std::max<int64_t>(1, (64 << 10) / (kProducts * s.tile_size()));
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  const int64_t rounds = std::max<int64_t>(2, (s.tiles - 1) / (fit * threads) + 1);
  const int64_t groups = std::min(s.tiles, rounds * threads);
  parallel_for(pool, groups, [&](int64_t i) { task(i * s.tiles / groups, (i + 1) * s.tiles / groups); });
}

Shape shape_of(Floats& x, int64_t out) {
  const auto d = x.dimensions();
  return {d[1], d[2], d[3], out, d[0] * d[1] / kTile};
}

ffi::Error convolve(ffi::ThreadPool pool, Floats x, Floats kernel, Result y, bool turned) {
  const Shape s = shape_of(x, y->dimensions()[3]);
  const int64_t depth = 3 * s.in, panels = s.out / kPanel, panel_size = kProducts * depth * kPanel;
  Block kernels(panels * panel_size);
  float* transformed = kernels.start();
  parallel_for(pool, panels, [&](int64_t panel) {
    transform_kernel(kernel.typed_data(), s, panel, turned, transformed + panel * panel_size);
  });
  for_tiles(pool, s, [&](int64_t first, int64_t last) {
    const int64_t tiles = last - first, rows = tiles * s.bins, apart = tiles * s.tile_size();
    thread_local std::vector<float> kept;
    float* inputs = scratch(kept, kProducts * (apart + rows * kPanel));
    float* products = inputs + kProducts * apart;
    for (int64_t t = first; t < last; ++t)
      transform_input(x.typed_data(), s, t, inputs + (t - first) * s.tile_size(), apart);
    for (int64_t panel = 0; panel < panels; ++panel) {
      for (int p = 0; p < kProducts; ++p) {
        const auto row = [&](int64_t i) { return inputs + p * apart + i / s.bins * s.tile_size() + i % s.bins * s.in; };
        multiply_rows(row, 0, rows, transformed + panel * panel_size + p * depth * kPanel, depth,
                      products + p * rows * kPanel, kPanel);
      }
      transform_output(products, rows, s, first, panel, y->typed_data());
    }
  });
  return ffi::Error::Success();
}

// The gradient of the kernel, [3, 3, C, D].
ffi::Error kernel_gradient(ffi::ThreadPool pool, Floats x, Floats gradient, Result result) {
  const Shape s = shape_of(x, gradient.dimensions()[3]);
  const int64_t depth = 3 * s.in, panels = s.out / kPanel, rows = s.tiles * s.bins, apart = s.tiles * s.tile_size();
  Block arrays(kProducts * (apart + rows * s.out + depth * s.out));
  float* inputs = arrays.start();
  float* gradients = inputs + kProducts * apart;            // [6][panel][rows][16]
  float* products = gradients + kProducts * rows * s.out;  // [6][3 C][D]
  for_tiles(pool, s, [&](int64_t first, int64_t last) {
    const int64_t tiles = s.frames / kTile, frame = s.bins * s.out;
    for (int64_t t = first; t < last; ++t) {
      transform_input(x.typed_data(), s, t, inputs + t * s.tile_size(), apart);
      const float* from = gradient.typed_data() + (t / tiles * s.frames + t % tiles * kTile) * frame;
      for (int64_t f = 0; f < s.bins; ++f)
        for (int64_t n = 0; n < s.out; n += 8) {
          Vec g[kTile];
          for (int i = 0; i < kTile; ++i) g[i] = load(from + i * frame + f * s.out + n);
          Vec even = g[0] + g[2], odd = g[1] + g[3], far = g[0] + 4.0f * g[2], near = 2.0f * g[1] + 8.0f * g[3];
          float* to = gradients + (n / kPanel * rows + t * s.bins + f) * kPanel + n % kPanel;
          const Vec all[kProducts] = {g[0], even + odd, even - odd, far + near, far - near, g[3]};
          for (int p = 0; p < kProducts; ++p) store(to + p * rows * s.out, all[p]);
        }
    }
  });
  const int64_t block = std::max<int64_t>(1, 256 / s.bins);  // tiles whose part of a panel stays in the first cache
  parallel_for(pool, kProducts * panels, [&](int64_t i) {
    const int64_t p = i / panels, panel = i % panels;
    for (int64_t t = 0; t < s.tiles; t += block)
      for (int64_t j = 0; j < 3; ++j)
        for (int64_t c = 0; c < s.in; c += kRows) {
          const int64_t m = std::min<int64_t>(kRows, s.in - c);
          const float* from[kRows];
          for (int64_t r = 0; r < m; ++r) from[r] = inputs + p * apart + t * s.tile_size() + j * s.in + c + r;
          kMultiply[m](from, s.in, s.tile_size(), gradients + ((p * panels + panel) * rows + t * s.bins) * kPanel, s.bins,
                       std::min(block, s.tiles - t), products + (p * depth + j * s.in + c) * s.out + panel * kPanel,
                       s.out, t > 0);
        }
  });
  parallel_for(pool, 3 * s.in, [&](int64_t i) {  // i: tap along frequency and input channel
    for (int64_t n = 0; n < s.out; n += 8)
      for (int64_t r = 0; r < 3; ++r) {
        Vec sum = fill(0.0f);
        for (int p = 0; p < kProducts; ++p) sum += kTaps[p][r] * load(products + (p * depth + i) * s.out + n);
        store(result->typed_data() + (r * depth + i) * s.out + n, sum);
      }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(dualspec_convolve, convolve,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Attr<bool>("turned"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(dualspec_kernel_gradient, kernel_gradient,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Ret<Floats>());
