// Attention as in `attention.cc`, operands of products rounded to bfloat16; logits, weights before they are multiplied, and sums
// are float32.

#include <algorithm>
#include <cmath>
#include <vector>

#include "handlers.h"
#include "heads.h"
#include "memory.h"
#include "halves.h"
#include "threads.h"
#include "vectors.h"

namespace ffi = xla::ffi;

namespace {

#if HAS_HALVES

constexpr int64_t kQueries = 128;  // of a block in the gradient, 32 in the result

struct Shape : Heads {
  using Heads::Heads;
  int64_t depth() const { return up_to(size, kBlock); }
  int64_t chunks() const { return rows / kBlock; }
  int64_t by_rows() const { return rows * depth(); }    // halves of a head in tiles for products with its rows
  int64_t by_channels() const { return rows * size; }   // or with its channels
};

// Tiles [rows / 16][size / 32] of pairs of channels [16][16 rows][2].
void pack_by_rows(const float* x, const Shape& s, Half* out) {
  for (int64_t row = 0; row < s.rows; row += kTile)
    for (int64_t c = 0; c < s.size; c += kBlock, out += kTileSize) {
      __m512i tile[16];
      for (int i = 0; i < 16; ++i) {
        const float* from = x + (row + i) * s.apart() + c;
        tile[i] = halves(_mm512_loadu_ps(from), c + kTile < s.size ? _mm512_loadu_ps(from + kTile) : __m512{});
      }
      transpose(tile);
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * kBlock, tile[i]);
    }
}

// Tiles [size / 16][n / 32] of pairs of rows [16][16 channels][2], of n rows.
void pack_by_channels(const float* x, int64_t n, const Shape& s, Half* out) {
  for (int64_t c = 0; c < s.size; c += kTile)
    for (int64_t row = 0; row < n; row += 2, out += kBlock) {
      const float* from = x + row * s.apart() + c;
      _mm512_storeu_si512(out, pairs(_mm512_loadu_ps(from), _mm512_loadu_ps(from + s.apart())));
    }
}

// Rows [n][depth] of a head.
void pack_rows(const float* x, int64_t n, const Shape& s, Half* out) {
  for (int64_t i = 0; i < n; ++i) to_halves(x + i * s.apart(), s.size, out + i * s.depth());
}

// A block [32, 32]: products of 32 rows with a chunk of rows that were packed by rows.
void multiply_rows(const Half* rows, const Half* packed, int64_t chunk, const Shape& s, float* out) {
  const int64_t panel = s.depth() * kTile;
  sum_up<2>(false, out, kBlock, [&](auto multiply) {
    for (int64_t k = 0; k < s.depth(); k += kBlock)
      multiply(rows + k, s.depth(), packed + 2 * chunk * panel + k * kTile, panel);
  });
}

// Rows [32, size] of a head gain or are the products of n chunks of weights, of 32 rows each and `apart` halves from each other,
// with n * 32 rows that were packed by channels.
template <int N>
void multiply_panels(const Half* weights, int64_t apart, int64_t n, const Half* packed, bool add, int64_t out_apart,
                     float* out) {
  sum_up<N>(add, out, out_apart, [&](auto multiply) {
    for (int64_t i = 0; i < n; ++i) multiply(weights + i * apart, kBlock, packed + i * kTileSize, n * kTileSize);
  });
}

void multiply_channels(const Half* weights, int64_t apart, int64_t n, const Half* packed, bool add, const Shape& s,
                       float* out) {
  for (int64_t c = 0; c < s.size; c += kBlock)
    (c + kTile < s.size ? multiply_panels<2> : multiply_panels<1>)(weights, apart, n, packed + c / kTile * n * kTileSize, add,
                                                                   s.apart(), out + c);
}

// The halves of a block of weights [32, 32], transposed.
void transpose_block(const float* weights, Half* out) {
  for (int64_t c = 0; c < kBlock; c += kTile) {
    __m512i tile[16];
    for (int i = 0; i < 16; ++i) {
      const float* from = weights + 2 * i * kBlock + c;
      tile[i] = pairs(_mm512_loadu_ps(from), _mm512_loadu_ps(from + kBlock));
    }
    transpose(tile);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + (c + i) * kBlock, tile[i]);
  }
}

ffi::Error attend(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Result y, Result log_sums) {
  NEED_HALVES();
  const Shape s(q);
  Block arrays(s.all * (s.by_rows() + s.by_channels()) / 2);
  Half* keys = reinterpret_cast<Half*>(arrays.start());
  Half* values = keys + s.all * s.by_rows();
  parallel_for(pool, s.all, [&](int64_t head) {
    pack_by_rows(k.typed_data() + s.start(head), s, keys + head * s.by_rows());
    pack_by_channels(v.typed_data() + s.start(head), s.rows, s, values + head * s.by_channels());
  });
  parallel_for(pool, s.all * s.chunks(), [&](int64_t task) {
    const int64_t head = task / s.chunks(), first = task % s.chunks() * kBlock, start = s.start(head) + first * s.apart();
    thread_local std::vector<float> kept, kept_halves;
    float* logits = scratch(kept, s.rows * kBlock);
    Half* weights = scratch_halves(kept_halves, s.rows * kBlock + kBlock * s.depth());  // chunks of [32 queries][32 keys]
    Half* queries = weights + s.rows * kBlock;
    pack_rows(q.typed_data() + start, kBlock, s, queries);
    Registers registers;
    for (int64_t chunk = 0; chunk < s.chunks(); ++chunk)
      multiply_rows(queries, keys + head * s.by_rows(), chunk, s, logits + chunk * kBlock * kBlock);
    float factors[kBlock];
    for (int64_t i = 0; i < kBlock; ++i) {
      const auto at = [&](int64_t chunk, int64_t half) {
        return load_wide(logits + (chunk * kBlock + i) * kBlock + half * kTile);
      };
      Wide largest = at(0, 0), total = {};
      for (int64_t chunk = 0; chunk < s.chunks(); ++chunk)
        for (int half = 0; half < 2; ++half) largest = max(at(chunk, half), largest);
      const float most = _mm512_reduce_max_ps((__m512)largest);
      for (int64_t chunk = 0; chunk < s.chunks(); ++chunk) {
        const auto weight = [&](int half) { return power_of_two((at(chunk, half) - most) * (s.scale() * kLog2E)); };
        const Wide low = weight(0), high = weight(1);
        total += low + high;
        _mm512_storeu_si512(weights + (chunk * kBlock + i) * kBlock, halves((__m512)low, (__m512)high));
      }
      factors[i] = 1.0f / sum(total);
      log_sums->typed_data()[head * s.rows + first + i] = most * s.scale() - std::log(factors[i]);
    }
    float* to = y->typed_data() + start;
    multiply_channels(weights, 2 * kTileSize, s.chunks(), values + head * s.by_channels(), false, s, to);
    for (int64_t i = 0; i < kBlock; ++i)
      for (int64_t c = 0; c < s.size; c += kTile)
        store(to + i * s.apart() + c, load_wide(to + i * s.apart() + c) * factors[i]);
  });
  return ffi::Error::Success();
}

ffi::Error attention_gradient(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Floats y, Floats log_sums, Floats gradient,
                              Result of_q, Result of_k, Result of_v) {
  NEED_HALVES();
  const Shape s(q);
  parallel_for(pool, s.all, [&](int64_t head) {
    const int64_t start = s.start(head);
    thread_local std::vector<float> kept;
    Half* keys = scratch_halves(kept, 2 * s.by_rows() + s.by_channels() + 2 * kQueries * (s.depth() + s.size + kBlock) +
                                          kQueries * s.rows);
    Half* values = keys + s.by_rows();
    Half* keys_by_channels = values + s.by_rows();
    Half* queries = keys_by_channels + s.by_channels();
    Half* gradients = queries + kQueries * s.depth();
    Half* queries_by_channels = gradients + kQueries * s.depth();
    Half* gradients_by_channels = queries_by_channels + kQueries * s.size;
    Half* weights = gradients_by_channels + kQueries * s.size;  // of a chunk of keys, [blocks of queries][32 keys][32 queries]
    Half* of_logits = weights + kQueries * kBlock;
    Half* of_all_logits = of_logits + kQueries * kBlock;  // [blocks of queries][chunks][32 queries][32 keys]
    pack_by_rows(k.typed_data() + start, s, keys);
    pack_by_rows(v.typed_data() + start, s, values);
    pack_by_channels(k.typed_data() + start, s.rows, s, keys_by_channels);
    Registers registers;
    for (int64_t first = 0; first < s.rows; first += kQueries) {
      const int64_t n = std::min(kQueries, s.rows - first), blocks = n / kBlock, here = start + first * s.apart();
      const float* of_y = gradient.typed_data() + here;
      pack_rows(q.typed_data() + here, n, s, queries);
      pack_rows(of_y, n, s, gradients);
      pack_by_channels(q.typed_data() + here, n, s, queries_by_channels);
      pack_by_channels(of_y, n, s, gradients_by_channels);
      float means[kQueries];
      for (int64_t i = 0; i < n; ++i) {
        Wide along = {};
        for (int64_t c = 0; c < s.size; c += kTile)
          along += load_wide(of_y + i * s.apart() + c) * load_wide(y.typed_data() + here + i * s.apart() + c);
        means[i] = sum(along);
      }
      const float* log_sum = log_sums.typed_data() + head * s.rows + first;
      for (int64_t chunk = 0; chunk < s.chunks(); ++chunk) {
        for (int64_t block = 0; block < blocks; ++block) {
          alignas(64) float of_block[2][kBlock * kBlock];  // logits, then weights; their gradients, then those of the logits
          multiply_rows(queries + block * kBlock * s.depth(), keys, chunk, s, of_block[0]);
          multiply_rows(gradients + block * kBlock * s.depth(), values, chunk, s, of_block[1]);
          for (int64_t i = 0; i < kBlock; ++i) {
            Wide rows[2];
            for (int half = 0; half < 2; ++half) {
              float* weight = of_block[0] + i * kBlock + half * kTile;
              float* of_logit = of_block[1] + i * kBlock + half * kTile;
              const int64_t query = block * kBlock + i;
              const Wide found = power_of_two(load_wide(weight) * (s.scale() * kLog2E) - log_sum[query] * kLog2E);
              rows[half] = found * (load_wide(of_logit) - means[query]) * s.scale();
              store(weight, found);
              store(of_logit, rows[half]);
            }
            Half* to = of_all_logits + ((block * s.chunks() + chunk) * kBlock + i) * kBlock;
            _mm512_storeu_si512(to, halves((__m512)rows[0], (__m512)rows[1]));
          }
          transpose_block(of_block[0], weights + block * kBlock * kBlock);
          transpose_block(of_block[1], of_logits + block * kBlock * kBlock);
        }
        const int64_t key = start + chunk * kBlock * s.apart();
        const bool add = first > 0;
        multiply_channels(weights, 2 * kTileSize, blocks, gradients_by_channels, add, s, of_v->typed_data() + key);
        multiply_channels(of_logits, 2 * kTileSize, blocks, queries_by_channels, add, s, of_k->typed_data() + key);
      }
      for (int64_t block = 0; block < blocks; ++block)
        multiply_channels(of_all_logits + block * s.rows * kBlock, 2 * kTileSize, s.chunks(), keys_by_channels, false, s,
                          of_q->typed_data() + here + block * kBlock * s.apart());
    }
  });
  return ffi::Error::Success();
}

#else

ffi::Error attend(ffi::ThreadPool, Floats, Floats, Floats, Result, Result) {
  NEED_HALVES();
  return ffi::Error::Success();
}

ffi::Error attention_gradient(ffi::ThreadPool, Floats, Floats, Floats, Floats, Floats, Floats, Result, Result, Result) {
  NEED_HALVES();
  return ffi::Error::Success();
}

#endif

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(dualspec_attend_bfloat16, attend, for_attention());
XLA_FFI_DEFINE_HANDLER_SYMBOL(dualspec_attention_gradient_bfloat16, attention_gradient, for_attention_gradient());
