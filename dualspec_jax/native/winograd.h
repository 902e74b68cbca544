// The steps of 3x3 convolutions [B, T, F, C] by Winograd's F(4, 3): four outputs of a filter of three taps from six products;
// along one or two bins F(2, 3), two outputs from four. Source: Lavin & Gray 2016 (arXiv:1509.09308).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "memory.h"
#include "products.h"

constexpr int kTile = 4, kTaps = 3, kSix = 6;

struct Shape {
  int64_t frames, bins, in, out;  // of one example
  int64_t tiles;                  // of four frames, of the batch

  int64_t positions() const { return frames * bins; }    // of one example
  int64_t tile_size() const { return (bins + 2) * in; }  // of a tile's transform, with zeros at both ends
  int64_t apart() const { return in * kPanel + kLine; }  // of a panel's kernels: they start in other sets of a cache
  int64_t frame(int64_t tile) const {                    // of the batch, a tile's first
    const int64_t tiles = frames / kTile;
    return tile / tiles * frames + tile % tiles * kTile;
  }
};

// N outputs, 4 or 2, from N + 2 products, each of a transformed input and a transformed tap.
template <int N>
INLINE void transform_inputs(const Wide (&d)[N + 2], float* out, int64_t apart) {
  if constexpr (N == 4) {
    store(out, 4.0f * d[0] - 5.0f * d[2] + d[4]);
    store(out + apart, d[3] + d[4] - 4.0f * (d[1] + d[2]));
    store(out + 2 * apart, d[4] - d[3] + 4.0f * (d[1] - d[2]));
    store(out + 3 * apart, d[4] - d[2] + 2.0f * (d[3] - d[1]));
    store(out + 4 * apart, d[4] - d[2] - 2.0f * (d[3] - d[1]));
    store(out + 5 * apart, 4.0f * d[1] - 5.0f * d[3] + d[5]);
  } else {
    store(out, d[0] - d[2]);
    store(out + apart, d[1] + d[2]);
    store(out + 2 * apart, d[2] - d[1]);
    store(out + 3 * apart, d[1] - d[3]);
  }
}

template <int N, typename V>
INLINE void transform_taps(const V (&taps)[kTaps], V (&out)[N + 2]) {
  const V even = taps[0] + taps[2];
  if constexpr (N == 4) {
    const V far = (1 / 24.0f) * taps[0] + (1 / 6.0f) * taps[2], near = (1 / 12.0f) * taps[1];
    out[0] = 0.25f * taps[0];
    out[1] = (-1 / 6.0f) * (even + taps[1]);
    out[2] = (-1 / 6.0f) * (even - taps[1]);
    out[3] = far + near;
    out[4] = far - near;
  } else {
    out[0] = taps[0];
    out[1] = 0.5f * (even + taps[1]);
    out[2] = 0.5f * (even - taps[1]);
  }
  out[N + 1] = taps[2];
}

template <int N>
INLINE void transform_products(const float* products, int64_t apart, float* out, int64_t out_apart) {
  Wide p[N + 2];
  for (int i = 0; i < N + 2; ++i) p[i] = load_wide(products + i * apart);
  const Wide sum = p[1] + p[2], difference = p[1] - p[2];
  if constexpr (N == 4) {
    const Wide more = p[3] + p[4], less = p[3] - p[4];
    store(out, p[0] + sum + more);
    store(out + out_apart, difference + 2.0f * less);
    store(out + 2 * out_apart, sum + 4.0f * more);
    store(out + 3 * out_apart, difference + 8.0f * less + p[5]);
  } else {
    store(out, p[0] + sum);
    store(out + out_apart, difference - p[3]);
  }
}

// The gradients of the products, from those of the outputs.
template <int N>
INLINE void transform_gradients(const Wide (&g)[N], float* out, int64_t apart) {
  const auto put = [&](const Wide(&all)[N + 2]) {
    for (int p = 0; p < N + 2; ++p) store(out + p * apart, all[p]);
  };
  if constexpr (N == 4) {
    const Wide even = g[0] + g[2], odd = g[1] + g[3], far = g[0] + 4.0f * g[2], near = 2.0f * g[1] + 8.0f * g[3];
    put({g[0], even + odd, even - odd, far + near, far - near, g[3]});
  } else {
    put({g[0], g[0] + g[1], g[0] - g[1], -g[1]});
  }
}

// The gradients of the taps, from those of the transformed ones.
template <int N>
INLINE void sum_to_taps(const Wide (&p)[N + 2], Wide (&out)[kTaps]) {
  const Wide sum = p[1] + p[2], difference = p[1] - p[2];
  if constexpr (N == 4) {
    const Wide more = p[3] + p[4], less = p[3] - p[4];
    out[0] = 0.25f * p[0] - (1 / 6.0f) * sum + (1 / 24.0f) * more;
    out[1] = (1 / 12.0f) * less - (1 / 6.0f) * difference;
    out[2] = (1 / 6.0f) * (more - sum) + p[5];
  } else {
    out[0] = p[0] + 0.5f * sum;
    out[1] = 0.5f * difference;
    out[2] = 0.5f * sum + p[3];
  }
}

// The six transformed inputs of a tile, `apart` from each other, each `all` floats: [F, C] between rows of zeros.
inline void transform_tile(const float* x, const Shape& s, int64_t tile, int64_t all, float* out, int64_t apart) {
  const int64_t start = tile % (s.frames / kTile) * kTile - 1, size = s.bins * s.in;
  const float* frames[kSix];
  thread_local std::vector<float> zeros;
  if (int64_t(zeros.size()) < size) zeros.resize(size);
  for (int i = 0; i < kSix; ++i) {
    const bool inside = start + i >= 0 && start + i < s.frames;
    frames[i] = inside ? x + (s.frame(tile) - 1 + i) * size : zeros.data();
  }
  for (int p = 0; p < kSix; ++p) {
    std::fill(out + p * apart, out + p * apart + s.in, 0.0f);
    std::fill(out + p * apart + size + s.in, out + p * apart + all, 0.0f);
  }
  for (int64_t i = 0; i < size; i += kWide) {
    Wide d[kSix];
    for (int j = 0; j < kSix; ++j) d[j] = load_wide(frames[j] + i);
    transform_inputs<kTile>(d, out + s.in + i, apart);
  }
}

// Inputs first ... last of a panel of sixteen outputs of the transformed kernel [3, 3, C, D], [6][N + 2][C][16], products `apart`
// from each other; turned: of the kernel of the gradient of the input, with both axes turned around and inputs and outputs
// exchanged.
template <int N>
void transform_kernel(const float* kernel, const Shape& s, int64_t panel, bool turned, int64_t first, int64_t last, float* out,
                      int64_t apart) {
  const auto put = [&](int64_t c, int half, const auto& taps) {  // [frequency][time]
    using V = std::remove_const_t<std::remove_reference_t<decltype(taps[0][0])>>;
    float* to = out + (c - first) * kPanel + half;
    V by_time[kTaps][kSix];
    for (int j = 0; j < kTaps; ++j) transform_taps<kTile>(taps[j], by_time[j]);
    for (int p = 0; p < kSix; ++p) {
      V all[N + 2];
      transform_taps<N, V>({by_time[0][p], by_time[1][p], by_time[2][p]}, all);
      for (int q = 0; q < N + 2; ++q) store(to + (p * (N + 2) + q) * apart, all[q]);
    }
  };
  if (!turned) {
    for (int64_t c = first; c < last; ++c) {
      Wide taps[kPanel / kWide][kTaps][kTaps];  // nine lines of the cache, perhaps all in one set: each is read once
      for (int j = 0; j < kTaps; ++j)
        for (int r = 0; r < kTaps; ++r) {
          const float* from = kernel + ((r * kTaps + j) * s.in + c) * s.out + panel * kPanel;
          for (int part = 0; part * kWide < kPanel; ++part) taps[part][j][r] = load_wide(from + part * kWide);
        }
      for (int part = 0; part * kWide < kPanel; ++part) put(c, part * kWide, taps[part]);
    }
  } else {
    for (int64_t c = first; c < last; c += 8)
      for (int half = 0; half < kPanel; half += 8) {
        Vec columns[kTaps * kTaps][8];
        for (int i = 0; i < kTaps * kTaps; ++i) {
          const float* from = kernel + ((kTaps * kTaps - 1 - i) * s.out + panel * kPanel + half) * s.in + c;
          Vec rows[8];
          for (int k = 0; k < 8; ++k) rows[k] = load(from + k * s.in);
          transpose(rows, columns[i]);
        }
        for (int k = 0; k < 8; ++k) {
          Vec taps[kTaps][kTaps];
          for (int j = 0; j < kTaps; ++j)
            for (int r = 0; r < kTaps; ++r) taps[j][r] = columns[r * kTaps + j][k];
          put(c + k, half, taps);
        }
      }
  }
}

// Four frames out of products [6][rows][D], whose row i is bin i % F of tile first + i / F.
inline void transform_output(const float* products, int64_t rows, const Shape& s, int64_t first, float* y) {
  const int64_t frame = s.bins * s.out;
  for (int64_t row = 0; row < rows; ++row) {
    float* to = y + s.frame(first + row / s.bins) * frame + row % s.bins * s.out;
    for (int64_t n = 0; n < s.out; n += kWide) transform_products<kTile>(products + row * s.out + n, rows * s.out, to + n, frame);
  }
}
