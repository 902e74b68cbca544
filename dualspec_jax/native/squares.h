// 3x3 convolutions [B, T, F, C] in parts of 32 outputs, and the gradients of their kernels: a part's kernel is transformed where
// it is needed, so that the kernel comes from far once, whereas all of it transformed has up to four times its size. A square
// is four frames of N bins, 4 or 2; it has 6 (N + 2) products.
#pragma once

#include <algorithm>
#include <vector>

#include "memory.h"
#include "products.h"
#include "threads.h"
#include "winograd.h"

template <int N>
class Squares {
 public:
  explicit Squares(const Shape& s) : Squares(s, s.tiles) {}

  void convolve(xla::ffi::ThreadPool& pool, const float* x, const float* kernel, bool turned, float* y) const {
    const int64_t panels = s_.out / kPanel, pairs = (panels - 1) / kTogether + 1, groups = (n_ - 1) / kAtOnce + 1;
    Block windows(kProducts * apart(s_.in));
    for_tiles(pool, s_.tiles, [&](int64_t tile) { transform_windows(x, tile, tile, windows.start()); });
    parallel_for(pool, groups * pairs, [&](int64_t task) {
      const int64_t group = task / pairs, first = group * n_ / groups, last = (group + 1) * n_ / groups;
      const int64_t panel = task % pairs * kTogether, n = std::min<int64_t>(kTogether, panels - panel);
      convolve_part(windows.start(), kernel, turned, first, last, panel, n, y);
    });
  }

  // The gradient of the kernel, [9, C, D]: the sum of those of groups of tiles, whose arrays a third cache has room for.
  void correlate(xla::ffi::ThreadPool& pool, const float* x, const float* gradient, float* result) const {
    const int64_t panels = s_.out / kPanel, pairs = (panels - 1) / kTogether + 1;
    const int64_t in_panels = s_.in / kPanel, enough = (2 * pool.num_threads() - 1) / pairs + 1;  // parts of the inputs
    const int64_t parts = std::max((s_.in - 1) / kInputs + 1, std::min(in_panels, enough));
    const int64_t groups = (kProducts * n_ * (s_.in + s_.out) - 1) / kRoom + 1, most = (s_.tiles - 1) / groups + 1;
    const Squares group(s_, most);
    const int64_t in_size = kProducts * group.apart(s_.in), size = in_size + kProducts * group.apart(s_.out);
    Block arrays(size + (groups > 1 ? kProducts * s_.in * s_.out : 0));
    for (int64_t start = 0; start < s_.tiles; start += most) {
      const int64_t n_tiles = std::min(most, s_.tiles - start);
      for_tiles(pool, n_tiles, [&](int64_t tile) {
        group.transform_windows(x, start + tile, tile, arrays.start());
        group.transform_gradient(gradient, start + tile, tile, arrays.start() + in_size);
      });
      parallel_for(pool, parts * pairs, [&](int64_t task) {
        const int64_t part = task % parts, first = part * in_panels / parts, last = (part + 1) * in_panels / parts;
        const int64_t panel = task / parts * kTogether, n = std::min<int64_t>(kTogether, panels - panel);
        thread_local std::vector<float> kept;  // in a second cache, where nothing is added later
        float* sums = groups > 1 ? arrays.start() + size + kProducts * kPanel * (panel * s_.in + first * n * kPanel)
                                 : scratch(kept, kProducts * (last - first) * kPanel * n * kPanel);
        group.correlate_part(arrays.start(), arrays.start() + in_size, n_tiles * of_tile_, first, last, panel, n, start > 0,
                             sums);
        if (start + n_tiles == s_.tiles) sum_part(sums, first, last, panel, n, result);
      });
    }
  }

 private:
  // With arrays for as many tiles.
  Squares(const Shape& s, int64_t tiles) : s_(s), of_tile_((s.bins - 1) / N + 1), n_(tiles * of_tile_) {}

  static constexpr int kAcross = N + 2, kProducts = kSix * kAcross;
  static constexpr int64_t kInputs = 64;     // at a time: the transformed kernels of a part stay in a second cache
  static constexpr int64_t kAtOnce = 64;     // squares, whose products stay there, too
  static constexpr int64_t kSummed = 128;    // squares that a first cache has room for
  static constexpr int64_t kRoom = 2 << 20;  // floats of the arrays of a group of tiles, which stay in a third cache

  // Floats from one product's array [channels / 16][squares][16] to the next, and to a panel of it.
  int64_t apart(int64_t channels) const { return channels * n_ + kLine; }
  int64_t at(int64_t panel) const { return panel * n_ * kPanel; }

  template <typename Task>
  static void for_tiles(xla::ffi::ThreadPool& pool, int64_t n, Task task) {
    const int64_t parts = std::min<int64_t>(n, 4 * std::max<int64_t>(1, pool.num_threads()));
    parallel_for(pool, parts, [&](int64_t i) {
      for (int64_t tile = i * n / parts; tile < (i + 1) * n / parts; ++tile) task(tile);
    });
  }

  void transform_windows(const float* x, int64_t tile, int64_t to_tile, float* out) const {
    const int64_t size = (of_tile_ * N + 2) * s_.in;
    thread_local std::vector<float> kept;
    float* inputs = scratch(kept, kSix * size);
    transform_tile(x, s_, tile, size, inputs, size);
    for (int p = 0; p < kSix; ++p)
      for (int64_t j = 0; j < of_tile_; ++j) {
        const float* from = inputs + p * size + j * N * s_.in;
        float* to = out + p * kAcross * apart(s_.in) + (to_tile * of_tile_ + j) * kPanel;
        for (int64_t c = 0; c < s_.in; c += kWide) {
          Wide d[kAcross];
          for (int i = 0; i < kAcross; ++i) d[i] = load_wide(from + i * s_.in + c);
          transform_inputs<N>(d, to + at(c / kPanel) + c % kPanel, apart(s_.in));
        }
      }
  }

  void transform_gradient(const float* gradient, int64_t tile, int64_t to_tile, float* out) const {
    const int64_t frame = s_.bins * s_.out;
    const float* from = gradient + s_.frame(tile) * frame;
    for (int64_t j = 0; j < of_tile_; ++j)
      for (int64_t n = 0; n < s_.out; n += kWide) {
        alignas(64) float by_time[kSix][N][kWide];
        for (int64_t f = 0; f < N; ++f) {
          const int64_t bin = j * N + f;
          Wide g[kTile];
          for (int i = 0; i < kTile; ++i) g[i] = bin < s_.bins ? load_wide(from + i * frame + bin * s_.out + n) : Wide{};
          transform_gradients<kTile>(g, by_time[0][f], N * kWide);
        }
        float* to = out + at(n / kPanel) + (to_tile * of_tile_ + j) * kPanel + n % kPanel;
        for (int p = 0; p < kSix; ++p) {
          Wide g[N];
          for (int f = 0; f < N; ++f) g[f] = load_wide(by_time[p][f]);
          transform_gradients<N>(g, to + p * kAcross * apart(s_.out), apart(s_.out));
        }
      }
  }

  // n panels of outputs of squares first ... last.
  void convolve_part(const float* windows, const float* kernel, bool turned, int64_t first, int64_t last, int64_t panel,
                     int64_t n, float* y) const {
    const int64_t width = n * kPanel, size = (last - first) * width;
    constexpr int64_t kKernelApart = kInputs * kPanel + kLine, kKernels = kTogether * kKernelApart;
    thread_local std::vector<float> kept;
    float* kernels = scratch(kept, kProducts * (kKernels + size));
    float* products = kernels + kProducts * kKernels;
    for (int64_t c = 0; c < s_.in; c += kInputs) {
      const int64_t depth = std::min(kInputs, s_.in - c);
      for (int64_t i = 0; i < n; ++i)
        transform_kernel<N>(kernel, s_, panel + i, turned, c, c + depth, kernels + i * kKernelApart, kKernels);
      for (int64_t product = 0; product < kProducts; ++product)
        for_blocks(last - first, [&](int64_t row, int64_t m) {
          const float* from[kRows];
          for (int64_t r = 0; r < m; ++r)
            from[r] = windows + product * apart(s_.in) + at(c / kPanel) + (first + row + r) * kPanel;
          kMultiply[n - 1][m](from, 1, at(1), kernels + product * kKernels, kKernelApart, kPanel, depth / kPanel,
                              products + product * size + row * width, width, c > 0);
        });
    }
    const int64_t frame = s_.bins * s_.out;
    for (int64_t square = first; square < last; ++square)
      for (int64_t i = 0; i < width; i += kWide) {
        alignas(64) float across[N][kSix][kWide];
        for (int p = 0; p < kSix; ++p)
          transform_products<N>(products + p * kAcross * size + (square - first) * width + i, size, across[0][p], kSix * kWide);
        const int64_t bin = square % of_tile_ * N;
        float* to = y + s_.frame(square / of_tile_) * frame + bin * s_.out + panel * kPanel + i;
        for (int64_t f = 0; f < std::min<int64_t>(N, s_.bins - bin); ++f)
          transform_products<kTile>(across[f][0], kWide, to + f * s_.out, frame);
      }
  }

  // Sets or adds to the gradient of the transformed kernel's panels first ... last of inputs and n of outputs, [36][C][16 n], the
  // sum over squares.
  void correlate_part(const float* windows, const float* of_products, int64_t squares, int64_t first, int64_t last,
                      int64_t panel, int64_t n, bool add, float* sums) const {
    const int64_t width = n * kPanel, size = (last - first) * kPanel * width;
    for (int64_t product = 0; product < kProducts; ++product)
      for (int64_t square = 0; square < squares; square += kSummed)
        for (int64_t p = first; p < last; ++p)
          for_blocks(kPanel, [&](int64_t row, int64_t m) {
            const float* from[kRows];
            for (int64_t r = 0; r < m; ++r)
              from[r] = windows + product * apart(s_.in) + at(p) + square * kPanel + row + r;
            kMultiply[n - 1][m](from, kPanel, 0, of_products + product * apart(s_.out) + at(panel) + square * kPanel, at(1),
                                std::min(kSummed, squares - square), 1,
                                sums + product * size + ((p - first) * kPanel + row) * width, width, add || square > 0);
          });
  }

  // The gradient of the kernel from that of the transformed one.
  void sum_part(const float* sums, int64_t first, int64_t last, int64_t panel, int64_t n, float* result) const {
    const int64_t width = n * kPanel, size = (last - first) * kPanel * width;
    for (int64_t c = 0; c < (last - first) * kPanel; ++c)
      for (int64_t i = 0; i < width; i += kWide) {
        Wide by_time[kTaps][kAcross];
        for (int q = 0; q < kAcross; ++q) {
          Wide of_column[kSix], taps[kTaps];
          for (int p = 0; p < kSix; ++p) of_column[p] = load_wide(sums + (p * kAcross + q) * size + c * width + i);
          sum_to_taps<kTile>(of_column, taps);
          for (int r = 0; r < kTaps; ++r) by_time[r][q] = taps[r];
        }
        float* to = result + (first * kPanel + c) * s_.out + panel * kPanel + i;
        for (int r = 0; r < kTaps; ++r) {
          Wide taps[kTaps];
          sum_to_taps<N>(by_time[r], taps);
          for (int j = 0; j < kTaps; ++j) store(to + (r * kTaps + j) * s_.in * s_.out, taps[j]);
        }
      }
  }

  const Shape s_;
  const int64_t of_tile_, n_;  // squares
};

// Calls task on the squares of a shape.
template <typename Task>
void by_squares(const Shape& s, Task task) {
  if (s.bins > 2) task(Squares<4>(s));
  else task(Squares<2>(s));
}
