// Softmax attention of arrays [B, N, H, D] to themselves, in blocks of queries whose weights stay in a second cache; in the
// gradient they are computed again. Source: Dao et al. 2022 (arXiv:2205.14135), without blocks of keys.

#include <algorithm>
#include <cmath>
#include <vector>

#include "handlers.h"
#include "heads.h"
#include "memory.h"
#include "products.h"
#include "threads.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t kQueries = 24;                  // of a block
constexpr int64_t kChunk = kTogether * kPanel;    // keys whose weights, [queries][keys], lie together
constexpr int64_t kChunkSize = kQueries * kChunk;

struct Shape : Heads {
  using Heads::Heads;
  int64_t blocks() const { return (rows - 1) / kQueries + 1; }
  // Floats of a head's panels of sixteen rows or channels, and of one of them.
  int64_t by_rows_apart() const { return size * kPanel + kLine; }
  int64_t by_rows() const { return rows / kPanel * by_rows_apart(); }
  int64_t by_channels_apart() const { return rows * kPanel + kLine; }
  int64_t by_channels() const { return size / kPanel * by_channels_apart(); }
  int64_t chunks() const { return rows / kChunk; }
  int64_t weights() const { return chunks() * kChunkSize; }
};

// Panels [rows / 16][size][16] of a head: its rows are their columns.
void pack_by_rows(const float* x, const Shape& s, float* out) {
  for (int64_t row = 0; row < s.rows; row += 8)
    for (int64_t c = 0; c < s.size; c += 8) {
      Vec from[8], columns[8];
      for (int i = 0; i < 8; ++i) from[i] = load(x + (row + i) * s.apart() + c);
      transpose(from, columns);
      float* to = out + row / kPanel * s.by_rows_apart() + row % kPanel;
      for (int i = 0; i < 8; ++i) store(to + (c + i) * kPanel, columns[i]);
    }
}

// Panels [size / 16][n, at most rows][16] of n rows of a head.
void pack_by_channels(const float* x, int64_t n, const Shape& s, float* out) {
  for (int64_t row = 0; row < n; ++row)
    for (int64_t c = 0; c < s.size; c += kWide)
      store(out + c / kPanel * s.by_channels_apart() + row * kPanel + c % kPanel, load_wide(x + row * s.apart() + c));
}

// Weights of n queries: products of rows x of a head with all rows that were packed by rows.
void multiply_by_rows(const float* x, int64_t n, const float* packed, const Shape& s, float* weights) {
  for (int64_t chunk = 0; chunk < s.chunks(); ++chunk)
    multiply_rows([&](int64_t i) { return x + i * s.apart(); }, 0, n, packed + chunk * kTogether * s.by_rows_apart(),
                  kTogether, s.by_rows_apart(), s.size, weights + chunk * kChunkSize, kChunk);
}

// Rows [n, size] of a head: products of the weights of n queries with all rows that were packed by channels.
void multiply_by_channels(const float* weights, int64_t n, const float* packed, const Shape& s, float* out) {
  constexpr int64_t kPart = kDepth / kChunk;
  for_panels(s.size / kPanel, [&](int64_t panel, int64_t panels) {
    for (int64_t chunk = 0; chunk < s.chunks(); chunk += kPart)
      for_blocks(n, [&](int64_t row, int64_t m) {
        const float* from[kRows];
        for (int64_t i = 0; i < m; ++i) from[i] = weights + chunk * kChunkSize + (row + i) * kChunk;
        const float* panel_part = packed + panel * s.by_channels_apart() + chunk * kChunk * kPanel;
        kMultiply[panels - 1][m](from, 1, kChunkSize, panel_part, s.by_channels_apart(), kChunk,
                                 std::min(kPart, s.chunks() - chunk), out + row * s.apart() + panel * kPanel, s.apart(),
                                 chunk > 0);
      });
  });
}

// Sets or adds to all rows of a head the products of the weights of n queries, transposed, with n rows that were packed by
// channels.
void multiply_transposed(const float* weights, int64_t n, const float* packed, const Shape& s, bool add, float* out) {
  for (int64_t chunk = 0; chunk < s.chunks(); ++chunk)
    for_blocks(kChunk, [&](int64_t key, int64_t m) {
      const float* from[kRows];
      for (int64_t i = 0; i < m; ++i) from[i] = weights + chunk * kChunkSize + key + i;
      for_panels(s.size / kPanel, [&](int64_t panel, int64_t panels) {
        kMultiply[panels - 1][m](from, kChunk, 0, packed + panel * s.by_channels_apart(), s.by_channels_apart(), n, 1,
                                 out + (chunk * kChunk + key) * s.apart() + panel * kPanel, s.apart(), add);
      });
    });
}

// Calls task(query, vector of weights) on the weights of n queries.
template <typename Task>
void for_weights(float* weights, int64_t n, const Shape& s, Task task) {
  for (int64_t chunk = 0; chunk < s.chunks(); ++chunk)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < kChunk; j += kWide) task(i, chunk * kChunkSize + i * kChunk + j);
}

// The result, and for each row of a head the logarithm of the sum of the exponentials of its logits.
ffi::Error attend(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Result y, Result log_sums) {
  const Shape s(q);
  Block arrays(s.all * (s.by_rows() + s.by_channels()));
  float* keys = arrays.start();
  float* values = keys + s.all * s.by_rows();
  parallel_for(pool, s.all, [&](int64_t head) {
    pack_by_rows(k.typed_data() + s.start(head), s, keys + head * s.by_rows());
    pack_by_channels(v.typed_data() + s.start(head), s.rows, s, values + head * s.by_channels());
  });
  parallel_for(pool, s.all * s.blocks(), [&](int64_t task) {
    const int64_t head = task / s.blocks(), first = task % s.blocks() * kQueries, n = std::min(kQueries, s.rows - first);
    const int64_t start = s.start(head) + first * s.apart();
    thread_local std::vector<float> kept;
    float* weights = scratch(kept, s.weights());
    multiply_by_rows(q.typed_data() + start, n, keys + head * s.by_rows(), s, weights);
    Wide largest[kQueries], totals[kQueries] = {};
    float most[kQueries], sums[kQueries];
    for (Wide& x : largest) x = Wide{} - INFINITY;
    for_weights(weights, n, s, [&](int64_t i, int64_t at) {
      const Wide logits = load_wide(weights + at);
      largest[i] = logits > largest[i] ? logits : largest[i];
    });
    for (int64_t i = 0; i < n; ++i) {
      most[i] = largest[i][0];
      for (int j = 1; j < kWide; ++j) most[i] = std::max(most[i], largest[i][j]);
    }
    for_weights(weights, n, s, [&](int64_t i, int64_t at) {
      const Wide weight = exponential((load_wide(weights + at) - most[i]) * s.scale());
      totals[i] += weight;
      store(weights + at, weight);
    });
    for (int64_t i = 0; i < n; ++i) {
      sums[i] = sum(totals[i]);
      log_sums->typed_data()[head * s.rows + first + i] = most[i] * s.scale() + std::log(sums[i]);
    }
    multiply_by_channels(weights, n, values + head * s.by_channels(), s, y->typed_data() + start);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t c = 0; c < s.size; c += kWide) {
        float* at = y->typed_data() + start + i * s.apart() + c;
        store(at, load_wide(at) * (1.0f / sums[i]));
      }
  });
  return ffi::Error::Success();
}

ffi::Error attention_gradient(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Floats y, Floats log_sums, Floats gradient,
                              Result of_q, Result of_k, Result of_v) {
  const Shape s(q);
  parallel_for(pool, s.all, [&](int64_t head) {
    const int64_t start = s.start(head);
    thread_local std::vector<float> kept;
    float* keys = scratch(kept, 2 * s.by_rows() + 3 * s.by_channels() + 2 * s.weights());
    float* values = keys + s.by_rows();
    float* keys_by_channels = values + s.by_rows();
    float* queries = keys_by_channels + s.by_channels();
    float* gradients = queries + s.by_channels();
    float* weights = gradients + s.by_channels();
    float* of_logits = weights + s.weights();
    pack_by_rows(k.typed_data() + start, s, keys);
    pack_by_rows(v.typed_data() + start, s, values);
    pack_by_channels(k.typed_data() + start, s.rows, s, keys_by_channels);
    for (int64_t first = 0; first < s.rows; first += kQueries) {
      const int64_t n = std::min(kQueries, s.rows - first), here = start + first * s.apart();
      const float* of_y = gradient.typed_data() + here;
      multiply_by_rows(q.typed_data() + here, n, keys, s, weights);
      multiply_by_rows(of_y, n, values, s, of_logits);
      float means[kQueries], from[kQueries];
      for (int64_t i = 0; i < n; ++i) {
        Wide along = {};
        for (int64_t c = 0; c < s.size; c += kWide)
          along += load_wide(of_y + i * s.apart() + c) * load_wide(y.typed_data() + here + i * s.apart() + c);
        means[i] = sum(along);
        from[i] = log_sums.typed_data()[head * s.rows + first + i];
      }
      for_weights(weights, n, s, [&](int64_t i, int64_t at) {
        const Wide weight = exponential(load_wide(weights + at) * s.scale() - from[i]);
        store(weights + at, weight);
        store(of_logits + at, weight * (load_wide(of_logits + at) - means[i]) * s.scale());
      });
      pack_by_channels(of_y, n, s, gradients);
      pack_by_channels(q.typed_data() + here, n, s, queries);
      multiply_transposed(weights, n, gradients, s, first > 0, of_v->typed_data() + start);
      multiply_transposed(of_logits, n, queries, s, first > 0, of_k->typed_data() + start);
      multiply_by_channels(of_logits, n, keys_by_channels, s, of_q->typed_data() + here);
    }
  });
  return ffi::Error::Success();
}

}  // namespace

extern "C" bool dualspec_has_wide_vectors() { return kWide == 16; }

XLA_FFI_DEFINE_HANDLER_SYMBOL(dualspec_attend, attend, for_attention());
XLA_FFI_DEFINE_HANDLER_SYMBOL(dualspec_attention_gradient, attention_gradient, for_attention_gradient());
