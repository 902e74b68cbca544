// Products of matrices in blocks of six rows and sixteen columns, the second operand in panels of sixteen columns.
#pragma once

#include <algorithm>

#include "vectors.h"

constexpr int kPanel = 16, kRows = 6;
constexpr int64_t kDepth = 400;  // rows of a panel that stay in a first cache of 32 KiB

// C [M, 16], rows c_apart from each other, is or with `add` gains the sum over u and k of a[m][u * far + k * step] times the
// row u * n_k + k of b [n_u n_k, 16].
template <int M>
void multiply(const float* const* a, int64_t step, int64_t far, const float* b, int64_t n_k, int64_t n_u, float* c,
              int64_t c_apart, bool add) {
  Vec sums[M][2];
  for (int m = 0; m < M; ++m)
    for (int half = 0; half < 2; ++half) sums[m][half] = add ? load(c + m * c_apart + 8 * half) : fill(0.0f);
  for (int64_t u = 0; u < n_u; ++u)
    for (int64_t k = 0; k < n_k; ++k, b += kPanel) {
      const int64_t offset = u * far + k * step;
      Vec left = load(b), right = load(b + 8);
      IN_REGISTER(left);
      IN_REGISTER(right);
      for (int m = 0; m < M; ++m) {
        Vec factor = fill(a[m][offset]);
        sums[m][0] += factor * left;
        sums[m][1] += factor * right;
      }
    }
  for (int m = 0; m < M; ++m)
    for (int half = 0; half < 2; ++half) store(c + m * c_apart + 8 * half, sums[m][half]);
}

using Multiply = decltype(&multiply<1>);
constexpr Multiply kMultiply[kRows + 1] = {nullptr,     multiply<1>, multiply<2>, multiply<3>,
                                           multiply<4>, multiply<5>, multiply<6>};

// Rows first ... last of C [*, 16] = A [*, depth] times a panel [depth, 16], in parts that keep to kDepth and blocks of nearly
// as many rows each; row(i) is where the i-th row of A starts.
template <typename Row>
void multiply_rows(Row row, int64_t first, int64_t last, const float* panel, int64_t depth, float* c, int64_t c_apart) {
  const int64_t parts = (depth - 1) / kDepth + 1, part = (depth - 1) / parts + 1;
  const int64_t rows = last - first, blocks = (rows - 1) / kRows + 1;
  for (int64_t k = 0; k < depth; k += part)
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t i = first + block * rows / blocks, m = first + (block + 1) * rows / blocks - i;
      const float* from[kRows];
      for (int64_t r = 0; r < m; ++r) from[r] = row(i + r) + k;
      kMultiply[m](from, 1, 0, panel + k * kPanel, std::min(part, depth - k), 1, c + (i - first) * c_apart, c_apart, k > 0);
    }
}
