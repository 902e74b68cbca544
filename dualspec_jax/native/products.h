// Products of matrices in blocks of at most kRows rows and of one or two panels of sixteen columns, in which the second
// operand lies.
#pragma once

#include <algorithm>

#include "vectors.h"

#if defined(__AVX512F__)
constexpr int kTogether = 2;     // panels that a block has, where there are as many
constexpr int kRows = 8;         // and rows
constexpr int64_t kDepth = 256;  // rows of these panels that stay in a first cache of 48 KiB
#else
constexpr int kTogether = 1, kRows = 6;
constexpr int64_t kDepth = 400;  // of 32 KiB
#endif
constexpr int kPanel = 16;

// C [M, 16 N], rows c_apart from each other, is or with `add` gains the sum over u and k of a[m][u * far + k * step] times the
// rows u * n_k + k of N panels [n_u n_k, 16] that are b_apart from each other.
template <int M, int N>
void multiply(const float* const* a, int64_t step, int64_t far, const float* b, int64_t b_apart, int64_t n_k, int64_t n_u,
              float* c, int64_t c_apart, bool add) {
  constexpr int kVectors = N * kPanel / kWide;  // of a row of C
  const auto column = [](int i) { return i * kWide; };
  Wide sums[M][kVectors] = {};
  for (int64_t u = 0; u < n_u; ++u) {
    const float* from[M];
    for (int m = 0; m < M; ++m) from[m] = a[m] + u * far;
#pragma GCC unroll 4
    for (int64_t k = 0; k < n_k; ++k, b += kPanel) {
      Wide right[kVectors];
      for (int i = 0; i < kVectors; ++i) {
        right[i] = load_wide(b + column(i) / kPanel * b_apart + column(i) % kPanel);
        IN_REGISTER(right[i]);
      }
      for (int m = 0; m < M; ++m) {
        const Wide factor = from[m][k * step] - Wide{};
        for (int i = 0; i < kVectors; ++i) sums[m][i] += factor * right[i];
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int i = 0; i < kVectors; ++i) {
      float* to = c + m * c_apart + column(i);
      store(to, add ? sums[m][i] + load_wide(to) : sums[m][i]);
    }
}

using Multiply = decltype(&multiply<1, 1>);
template <int N>
constexpr Multiply kMultiplyBy[] = {nullptr,        multiply<1, N>, multiply<2, N>, multiply<3, N>, multiply<4, N>,
                                    multiply<5, N>, multiply<6, N>, multiply<7, N>, multiply<8, N>};
constexpr const Multiply* kMultiply[] = {kMultiplyBy<1>, kMultiplyBy<2>};

// Calls task(first, n) on as many panels, n at a time.
template <typename Task>
void for_panels(int64_t panels, Task task) {
  for (int64_t panel = 0; panel < panels; panel += kTogether) task(panel, std::min<int64_t>(kTogether, panels - panel));
}

// Calls task(first, m) on blocks of at most kRows of n rows, each of nearly as many.
template <typename Task>
void for_blocks(int64_t n, Task task) {
  const int64_t blocks = (n - 1) / kRows + 1;
  for (int64_t block = 0; block < blocks; ++block)
    task(block * n / blocks, (block + 1) * n / blocks - block * n / blocks);
}

// Rows first ... last of C [*, 16 n] = A [*, depth] times n panels [depth, 16], in parts that keep to kDepth and blocks of
// rows; row(i) is where the i-th row of A starts.
template <typename Row>
void multiply_rows(Row row, int64_t first, int64_t last, const float* panels, int64_t n, int64_t b_apart, int64_t depth,
                   float* c, int64_t c_apart) {
  const int64_t parts = (depth - 1) / kDepth + 1, part = (depth - 1) / parts + 1;
  for (int64_t k = 0; k < depth; k += part)
    for_blocks(last - first, [&](int64_t i, int64_t m) {
      const float* from[kRows];
      for (int64_t r = 0; r < m; ++r) from[r] = row(first + i + r) + k;
      kMultiply[n - 1][m](from, 1, 0, panels + k * kPanel, b_apart, std::min(part, depth - k), 1, c + i * c_apart, c_apart,
                          k > 0);
    });
}
