// 3x3 convolutions [B, T, F, C] over few positions, tap by tap: what Winograd's do to a large kernel takes longer there.
#pragma once

#include <algorithm>
#include <vector>

#include "memory.h"
#include "products.h"
#include "threads.h"
#include "winograd.h"

constexpr int64_t kPositions = 512;  // at a time

inline int64_t positions_of(const Shape& s) { return s.tiles * kTile * s.bins; }

// The row of an array [B, T, F] that a tap sees from a position, -1 outside.
inline int64_t seen(const Shape& s, int64_t position, int64_t tap) {
  const int64_t frame = position / s.bins, t = frame % s.frames + tap / kTaps - 1, f = position % s.bins + tap % kTaps - 1;
  if (t < 0 || t >= s.frames || f < 0 || f >= s.bins) return -1;
  return position + (tap / kTaps - 1) * s.bins + tap % kTaps - 1;
}

// n panels of outputs of `depth` inputs, from `first` on, of a tap: [n][depth][16].
inline void pack_tap(const float* kernel, const Shape& s, int64_t tap, int64_t first, int64_t depth, int64_t panel, int64_t n,
                     bool turned, float* out) {
  for (int64_t p = 0; p < n; ++p, out += depth * kPanel) {
    const int64_t column = (panel + p) * kPanel;
    if (!turned) {
      const float* from = kernel + (tap * s.in + first) * s.out + column;
      for (int64_t c = 0; c < depth; ++c)
        for (int64_t i = 0; i < kPanel; i += kWide) store(out + c * kPanel + i, load_wide(from + c * s.out + i));
      continue;
    }
    const float* from = kernel + ((kTaps * kTaps - 1 - tap) * s.out + column) * s.in + first;
    for (int64_t c = 0; c < depth; c += 8)
      for (int64_t half = 0; half < kPanel; half += 8) {
        Vec rows[8], columns[8];
        for (int i = 0; i < 8; ++i) rows[i] = load(from + (half + i) * s.in + c);
        transpose(rows, columns);
        for (int i = 0; i < 8; ++i) store(out + (c + i) * kPanel + half, columns[i]);
      }
  }
}

inline void convolve_directly(xla::ffi::ThreadPool& pool, const Shape& s, const float* x, const float* kernel, bool turned,
                              float* y) {
  const std::vector<float> zeros(s.in);
  const int64_t positions = positions_of(s), groups = (positions - 1) / kPositions + 1, panels = s.out / kPanel;
  const int64_t pairs = (panels - 1) / kTogether + 1, parts = (s.in - 1) / kDepth + 1;
  parallel_for(pool, groups * pairs, [&](int64_t task) {
    const int64_t first = task / pairs * positions / groups, last = (task / pairs + 1) * positions / groups;
    const int64_t panel = task % pairs * kTogether, n = std::min<int64_t>(kTogether, panels - panel);
    thread_local std::vector<float> kept;
    float* packed = scratch(kept, kTogether * kDepth * kPanel);
    for (int64_t tap = 0; tap < kTaps * kTaps; ++tap)
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t from = part * s.in / parts / 8 * 8, to = part + 1 == parts ? s.in : (part + 1) * s.in / parts / 8 * 8;
        pack_tap(kernel, s, tap, from, to - from, panel, n, turned, packed);
        for_blocks(last - first, [&](int64_t i, int64_t m) {
          const float* rows[kRows];
          for (int64_t r = 0; r < m; ++r) {
            const int64_t row = seen(s, first + i + r, tap);
            rows[r] = (row < 0 ? zeros.data() : x + row * s.in) + from;
          }
          kMultiply[n - 1][m](rows, 1, 0, packed, (to - from) * kPanel, to - from, 1, y + (first + i) * s.out + panel * kPanel,
                              s.out, tap > 0 || part > 0);
        });
      }
  });
}

// The gradient of the kernel, [9, C, D].
inline void correlate_directly(xla::ffi::ThreadPool& pool, const Shape& s, const float* x, const float* gradient,
                               float* result) {
  constexpr int64_t kChannels = 64;  // inputs at a time
  const int64_t positions = positions_of(s), panels = s.out / kPanel, groups = (s.in - 1) / kChannels + 1;
  const int64_t apart = positions * kPanel + kLine;
  Block gradients(panels * apart);
  float* packed = gradients.start();
  parallel_for(pool, panels, [&](int64_t panel) {
    for (int64_t i = 0; i < positions; ++i)
      for (int64_t n = 0; n < kPanel; n += kWide)
        store(packed + panel * apart + i * kPanel + n, load_wide(gradient + i * s.out + panel * kPanel + n));
  });
  parallel_for(pool, kTaps * kTaps * groups, [&](int64_t task) {
    const int64_t tap = task / groups, first = task % groups * kChannels, n_in = std::min(kChannels, s.in - first);
    thread_local std::vector<float> kept;
    float* inputs = scratch(kept, kDepth * kChannels);
    for (int64_t start = 0; start < positions; start += kDepth) {
      const int64_t depth = std::min(kDepth, positions - start);
      for (int64_t i = 0; i < depth; ++i) {
        const int64_t row = seen(s, start + i, tap);
        for (int64_t c = 0; c < n_in; c += kWide)
          store(inputs + i * kChannels + c, row < 0 ? Wide{} : load_wide(x + row * s.in + first + c));
      }
      for_panels(panels, [&](int64_t panel, int64_t n) {
        for_blocks(n_in, [&](int64_t c, int64_t m) {
          const float* rows[kRows];
          for (int64_t r = 0; r < m; ++r) rows[r] = inputs + c + r;
          kMultiply[n - 1][m](rows, kChannels, 0, packed + panel * apart + start * kPanel, apart, depth, 1,
                              result + (tap * s.in + first + c) * s.out + panel * kPanel, s.out, start > 0);
        });
      });
    }
  });
}
