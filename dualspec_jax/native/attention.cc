// Softmax attention of arrays [B, N, H, D] to themselves, in blocks of queries whose weights stay in a second cache; in the
// gradient they are computed again, in blocks of queries and keys. Source: Dao et al. 2022 (arXiv:2205.14135).

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

constexpr int64_t kQueries = 24;                // of a block
constexpr int64_t kQueriesOfGradient = 96;      // over so many it sums at a time
constexpr int64_t kKeysOfGradient = 256;        // so that its arrays of them, too, stay in the cache
constexpr int64_t kChunk = kTogether * kPanel;  // keys whose weights, [queries][keys], lie together

struct Shape : Heads {
  using Heads::Heads;
  int64_t blocks() const { return (rows - 1) / kQueries + 1; }
  // Floats of a head's panels of sixteen rows or channels, and of one of them.
  int64_t by_rows_apart() const { return size * kPanel + kLine; }
  int64_t by_rows() const { return rows / kPanel * by_rows_apart(); }
  int64_t by_channels_apart() const { return rows * kPanel + kLine; }
  int64_t by_channels() const { return size / kPanel * by_channels_apart(); }
  int64_t chunks() const { return rows / kChunk; }
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

// Panels [size / 16][rows][16] of a head.
void pack_by_channels(const float* x, const Shape& s, float* out) {
  for (int64_t row = 0; row < s.rows; ++row)
    for (int64_t c = 0; c < s.size; c += kWide)
      store(out + c / kPanel * s.by_channels_apart() + row * kPanel + c % kPanel, load_wide(x + row * s.apart() + c));
}

// Weights of n queries and of chunks of keys, [chunks][queries][kChunk].
struct Weights {
  float* start;
  int64_t n, first, last;  // first ... last: the chunks

  float* chunk(int64_t i) const { return start + (i - first) * n * kChunk; }
  int64_t chunk_size() const { return n * kChunk; }

  // Calls task(query, vector of weights) on all.
  template <typename Task>
  void each(Task task) const {
    for (int64_t at = 0; at < (last - first) * chunk_size(); at += chunk_size())
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < kChunk; j += kWide) task(i, at + i * kChunk + j);
  }
};

// Products of rows x of a head with the keys that were packed by rows.
void multiply_by_rows(const float* x, const float* packed, const Shape& s, const Weights& w) {
  for (int64_t chunk = w.first; chunk < w.last; ++chunk)
    multiply_rows([&](int64_t i) { return x + i * s.apart(); }, 0, w.n, packed + chunk * kTogether * s.by_rows_apart(),
                  kTogether, s.by_rows_apart(), s.size, w.chunk(chunk), kChunk);
}

// Sets or adds to rows [n, size] of a head: products of the weights with the keys that were packed by channels.
void multiply_by_channels(const Weights& w, const float* packed, const Shape& s, bool add, float* out) {
  constexpr int64_t kPart = kDepth / kChunk;
  for_panels(s.size / kPanel, [&](int64_t panel, int64_t panels) {
    for (int64_t chunk = w.first; chunk < w.last; chunk += kPart)
      for_blocks(w.n, [&](int64_t row, int64_t m) {
        const float* from[kRows];
        for (int64_t i = 0; i < m; ++i) from[i] = w.chunk(chunk) + (row + i) * kChunk;
        const float* panel_part = packed + panel * s.by_channels_apart() + chunk * kChunk * kPanel;
        kMultiply[panels - 1][m](from, 1, w.chunk_size(), panel_part, s.by_channels_apart(), kChunk,
                                 std::min(kPart, w.last - chunk), out + row * s.apart() + panel * kPanel, s.apart(),
                                 add || chunk > w.first);
      });
  });
}

// Sets or adds to all rows of a head that are keys: products of the weights, transposed, with their queries, which start at
// `packed` and were packed by channels.
void multiply_transposed(const Weights& w, const float* packed, const Shape& s, bool add, float* out) {
  for (int64_t chunk = w.first; chunk < w.last; ++chunk)
    for_blocks(kChunk, [&](int64_t key, int64_t m) {
      const float* from[kRows];
      for (int64_t i = 0; i < m; ++i) from[i] = w.chunk(chunk) + key + i;
      for_panels(s.size / kPanel, [&](int64_t panel, int64_t panels) {
        kMultiply[panels - 1][m](from, kChunk, 0, packed + panel * s.by_channels_apart(), s.by_channels_apart(), w.n, 1,
                                 out + (chunk * kChunk + key) * s.apart() + panel * kPanel, s.apart(), add);
      });
    });
}

// The result, and for each row of a head the logarithm of the sum of the exponentials of its logits.
ffi::Error attend(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Result y, Result log_sums) {
  const Shape s(q);
  Block arrays(s.all * (s.by_rows() + s.by_channels()));
  float* keys = arrays.start();
  float* values = keys + s.all * s.by_rows();
  parallel_for(pool, s.all, [&](int64_t head) {
    pack_by_rows(k.typed_data() + s.start(head), s, keys + head * s.by_rows());
    pack_by_channels(v.typed_data() + s.start(head), s, values + head * s.by_channels());
  });
  parallel_for(pool, s.all * s.blocks(), [&](int64_t task) {
    const int64_t head = task / s.blocks(), first = task % s.blocks() * kQueries, n = std::min(kQueries, s.rows - first);
    const int64_t start = s.start(head) + first * s.apart();
    thread_local std::vector<float> kept;
    float* weights = scratch(kept, kQueries * s.rows);
    const Weights all{weights, n, 0, s.chunks()};
    multiply_by_rows(q.typed_data() + start, keys + head * s.by_rows(), s, all);
    const float scale = s.scale() * kLog2E;
    Wide largest[kQueries], totals[kQueries] = {};
    float most[kQueries], sums[kQueries];
    for (Wide& x : largest) x = Wide{} - INFINITY;
    all.each([&](int64_t i, int64_t at) { largest[i] = max(load_wide(weights + at), largest[i]); });
    for (int64_t i = 0; i < n; ++i) {
      most[i] = largest[i][0];
      for (int j = 1; j < kWide; ++j) most[i] = std::max(most[i], largest[i][j]);
    }
    all.each([&](int64_t i, int64_t at) {
      const Wide weight = power_of_two((load_wide(weights + at) - most[i]) * scale);
      totals[i] += weight;
      store(weights + at, weight);
    });
    for (int64_t i = 0; i < n; ++i) {
      sums[i] = sum(totals[i]);
      log_sums->typed_data()[head * s.rows + first + i] = most[i] * s.scale() + std::log(sums[i]);
    }
    multiply_by_channels(all, values + head * s.by_channels(), s, false, y->typed_data() + start);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t c = 0; c < s.size; c += kWide) {
        float* at = y->typed_data() + start + i * s.apart() + c;
        store(at, load_wide(at) * (1.0f / sums[i]));
      }
  });
  return ffi::Error::Success();
}

ffi::Future attention_gradient(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Floats y, Floats log_sums, Floats gradient,
                               Result of_q, Result of_k, Result of_v) {
  const Shape s(q);
  const float *all_q = q.typed_data(), *all_k = k.typed_data(), *all_v = v.typed_data(), *all_y = y.typed_data();
  const float *all_log_sums = log_sums.typed_data(), *of_all_y = gradient.typed_data();
  float *of_all_q = of_q->typed_data(), *of_all_k = of_k->typed_data(), *of_all_v = of_v->typed_data();
  return start_parallel(pool, s.all, [=](int64_t head) {
    const int64_t start = s.start(head), chunks = std::min(kKeysOfGradient / kChunk, s.chunks());
    thread_local std::vector<float> kept;
    float* keys = scratch(kept, 2 * s.by_rows() + 3 * s.by_channels() + 2 * kQueriesOfGradient * chunks * kChunk + 2 * s.rows);
    float* values = keys + s.by_rows();
    float* keys_by_channels = values + s.by_rows();
    float* queries = keys_by_channels + s.by_channels();
    float* gradients = queries + s.by_channels();
    float* weights = gradients + s.by_channels();
    float* of_logits = weights + kQueriesOfGradient * chunks * kChunk;
    float* means = of_logits + kQueriesOfGradient * chunks * kChunk;
    float* from = means + s.rows;
    const float* of_y = of_all_y + start;
    pack_by_rows(all_k + start, s, keys);
    pack_by_rows(all_v + start, s, values);
    pack_by_channels(all_k + start, s, keys_by_channels);
    pack_by_channels(all_q + start, s, queries);
    pack_by_channels(of_y, s, gradients);
    for (int64_t i = 0; i < s.rows; ++i) {
      Wide along = {};
      for (int64_t c = i * s.apart(); c < i * s.apart() + s.size; c += kWide)
        along += load_wide(of_y + c) * load_wide(all_y + start + c);
      means[i] = sum(along);
      from[i] = all_log_sums[head * s.rows + i] * kLog2E;
    }
    for (int64_t chunk = 0; chunk < s.chunks(); chunk += chunks)
      for (int64_t first = 0; first < s.rows; first += kQueriesOfGradient) {
        const int64_t n = std::min(kQueriesOfGradient, s.rows - first), here = first * s.apart();
        const int64_t last = std::min(chunk + chunks, s.chunks());
        const Weights weights_here{weights, n, chunk, last}, of_logits_here{of_logits, n, chunk, last};
        multiply_by_rows(all_q + start + here, keys, s, weights_here);
        multiply_by_rows(of_y + here, values, s, of_logits_here);
        weights_here.each([&](int64_t i, int64_t at) {
          const Wide weight = power_of_two(load_wide(weights + at) * (s.scale() * kLog2E) - from[first + i]);
          store(weights + at, weight);
          store(of_logits + at, weight * (load_wide(of_logits + at) - means[first + i]) * s.scale());
        });
        multiply_transposed(weights_here, gradients + first * kPanel, s, first > 0, of_all_v + start);
        multiply_transposed(of_logits_here, queries + first * kPanel, s, first > 0, of_all_k + start);
        multiply_by_channels(of_logits_here, keys_by_channels, s, chunk > 0, of_all_q + start + here);
      }
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(dualspec_attend, attend, for_attention());
XLA_FFI_DEFINE_HANDLER_SYMBOL(dualspec_attention_gradient, attention_gradient, for_attention_gradient());
