// Products of matrices, either of them turned: C [M, N] = A [M, K] B [K, N]. A task packs what its part of C needs of A and B,
// depth by depth, in the order in which blocks take it. Source: Goto & van de Geijn 2008, Anatomy of high-performance matrix
// multiplication.
#pragma once

#include <algorithm>
#include <vector>

#include "memory.h"
#include "products.h"
#include "threads.h"

struct Matrix {
  const float* start;
  int64_t apart;  // rows, as they lie
  bool turned;    // whether these rows are its columns
};

// Strips of W columns of the n rows `from`, `apart` from each other: to[s * to_apart + k * W + j] = from[k * apart + s * W + j]
// for `count` columns. Row by row, since rows may be so far apart that few of them fit a cache at once. Writes up to seven
// numbers more into each strip.
template <int W>
void pack(const float* from, int64_t apart, int64_t n, int64_t count, float* to, int64_t to_apart) {
  for (int64_t k = 0; k < n; ++k, from += apart, to += W) {
    int64_t s = 0;
    for (; s * W + (W + 7) / 8 * 8 <= count; ++s)
      for (int64_t j = 0; j < W; j += 8) store(to + s * to_apart + j, load(from + s * W + j));
    for (; s * W < count; ++s) std::copy(from + s * W, from + std::min(count, (s + 1) * W), to + s * to_apart);
  }
}

// The same of a transposed matrix, to[s * to_apart + k * W + j] = from[(s * W + j) * apart + k].
template <int W>
void pack_transposed(const float* from, int64_t apart, int64_t n, int64_t count, float* to, int64_t to_apart) {
  for (; count > 0; from += W * apart, count -= W, to += to_apart) {
    const int64_t here = std::min<int64_t>(W, count);
    int64_t k = 0;
    for (; k + 8 <= n; k += 8)
      for (int64_t j = 0; j < here; j += 8) {
        Vec rows[8], columns[8];
        for (int64_t i = 0; i < 8; ++i) rows[i] = load(from + std::min(j + i, here - 1) * apart + k);
        transpose(rows, columns);
        for (int i = 0; i < 8; ++i) store(to + (k + i) * W + j, columns[i]);
      }
    for (; k < n; ++k)
      for (int64_t j = 0; j < here; ++j) to[k * W + j] = from[j * apart + k];
  }
}

// M and N in parts, a task each.
class Parts {
 public:
  // Of n, of a multiple of `unit` each, `most` at most.
  Parts(int64_t n, int64_t unit, int64_t most) : n_(n), unit_(unit), units_((n - 1) / unit + 1), most_(most / unit) {}
  int64_t count() const { return (units_ - 1) / most_ + 1; }
  int64_t start(int64_t i) const { return std::min(n_, i * units_ / count() * unit_); }
  int64_t size(int64_t i) const { return start(i + 1) - start(i); }
  void halve() { most_ /= 2; }
  int64_t most() const { return most_ * unit_; }

 private:
  int64_t n_, unit_, units_, most_;
};

// N is a multiple of kPanel.
inline xla::ffi::Future multiply_dense(xla::ffi::ThreadPool& pool, int64_t m, int64_t n, int64_t depth, Matrix a, Matrix b, float* c) {
  constexpr int64_t kMost = 256;                                      // of M and of N: what is packed stays in a second cache
  const int64_t tasks = 2 * std::max<int64_t>(1, pool.num_threads());  // so many that all threads end together
  Parts down(m, kRows, kMost), across(n, kPanel, kMost);
  const Parts deep(depth, 8, 256);
  while (down.count() * across.count() < tasks && std::max(down.most(), across.most()) > kMost / 4)
    (down.most() > across.most() ? down : across).halve();
  return start_parallel(pool, down.count() * across.count(), [=](int64_t task) {
    const int64_t i = task / across.count(), j = task % across.count();
    const int64_t row = down.start(i), rows = down.size(i), column = across.start(j), columns = across.size(j);
    const int64_t strips = (rows - 1) / kRows + 1, panels = columns / kPanel;
    thread_local std::vector<float> kept;
    for (int64_t part = 0; part < deep.count(); ++part) {
      const int64_t k = deep.start(part), d = deep.size(part);
      // A cache line more than a power of two apart.
      const int64_t strip_apart = (kRows * d + 7) / 16 * 16 + 2 * kLine, panel_apart = kPanel * d + kLine;
      float* left = scratch(kept, strips * strip_apart + panels * panel_apart);
      float* right = left + strips * strip_apart;
      if (a.turned)
        pack<kRows>(a.start + k * a.apart + row, a.apart, d, rows, left, strip_apart);
      else
        pack_transposed<kRows>(a.start + row * a.apart + k, a.apart, d, rows, left, strip_apart);
      if (b.turned)
        pack_transposed<kPanel>(b.start + column * b.apart + k, b.apart, d, columns, right, panel_apart);
      else
        pack<kPanel>(b.start + k * b.apart + column, b.apart, d, columns, right, panel_apart);
      for_panels(panels, [&](int64_t panel, int64_t together) {
        for (int64_t s = 0; s < strips; ++s) {
          const int64_t count = std::min<int64_t>(kRows, rows - s * kRows);
          const float* from[kRows];
          for (int64_t r = 0; r < count; ++r) from[r] = left + s * strip_apart + r;
          kMultiply[together - 1][count](from, kRows, 0, right + panel * panel_apart, panel_apart, d, 1,
                                         c + (row + s * kRows) * n + column + panel * kPanel, n, k > 0);
        }
      });
    }
  });
}
