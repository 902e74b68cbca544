// What kernels need that multiply in bfloat16: rows of halves, in pairs where they are the second operand, and sums of their
// products in float32: by the matrix registers (AMX) of Intel's processors, or by vectors where there are none (AVX512_BF16: AMD
// from Zen 4 on).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "memory.h"

#if defined(__AVX512BF16__) && defined(__AMX_BF16__) && defined(__linux__)
#define HAS_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#else
#define HAS_AMX 0
#endif

#if defined(__AVX512BF16__)
#define HAS_HALVES 1
#include <immintrin.h>

using Half = uint16_t;
constexpr int64_t kTile = 16, kTileSize = 32 * kTile;  // rows, and halves, of a register of AMX
constexpr int64_t kBlock = 2 * kTile;                  // rows and columns of a block, four registers; halves of a row

#if HAS_AMX

// Asks the system for the matrix registers, once for all threads of the process; returns whether they may be used.
inline bool have_halves() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool have = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return have;
}

// All registers 16 rows of 64 bytes, while it lives.
struct Registers {
  Registers() {
    alignas(64) uint8_t config[64] = {1};  // palette
    for (int i = 0; i < 8; ++i) {
      config[16 + 2 * i] = 64;
      config[48 + i] = kTile;
    }
    _tile_loadconfig(config);
  }
  ~Registers() { _tile_release(); }
};

// C, 32 rows of 16 N columns that are `apart` from each other, is or with `add` gains the sum of the products of what `products`
// calls its argument with: (a, a_apart, b, b_apart), 32 rows of 32 halves and N tiles of pairs of rows [16][16 columns][2].
template <int N, typename Products>
void sum_up(bool add, float* c, int64_t apart, Products products) {
  if (add) {
    _tile_loadd(0, c, apart * sizeof(float));
    _tile_loadd(2, c + kTile * apart, apart * sizeof(float));
    if (N == 2) {
      _tile_loadd(1, c + kTile, apart * sizeof(float));
      _tile_loadd(3, c + kTile * apart + kTile, apart * sizeof(float));
    }
  } else {
    _tile_zero(0);
    _tile_zero(2);
    if (N == 2) {
      _tile_zero(1);
      _tile_zero(3);
    }
  }
  products([](const Half* a, int64_t a_apart, const Half* b, int64_t b_apart) {
    _tile_loadd(4, a, a_apart * sizeof(Half));
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, a + kTile * a_apart, a_apart * sizeof(Half));
    _tile_dpbf16ps(2, 5, 6);
    if (N == 2) {
      _tile_loadd(7, b + b_apart, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  });
  _tile_stored(0, c, apart * sizeof(float));
  _tile_stored(2, c + kTile * apart, apart * sizeof(float));
  if (N == 2) {
    _tile_stored(1, c + kTile, apart * sizeof(float));
    _tile_stored(3, c + kTile * apart + kTile, apart * sizeof(float));
  }
}

#else

inline bool have_halves() { return true; }

struct Registers {
  ~Registers() {}
};

template <int N, typename Products>
void sum_up(bool add, float* c, int64_t apart, Products products) {
  constexpr int kRows = 8;
  for (int64_t row = 0; row < kBlock; row += kRows) {
    __m512 sums[kRows][N];
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n)
        sums[m][n] = add ? _mm512_loadu_ps(c + (row + m) * apart + n * kTile) : _mm512_setzero_ps();
    products([&](const Half* a, int64_t a_apart, const Half* b, int64_t b_apart) __attribute__((always_inline)) {
      const Half* rows[kRows];
      for (int m = 0; m < kRows; ++m) rows[m] = a + (row + m) * a_apart;
      for (int64_t k = 0; k < kBlock; k += 2, b += kBlock) {
        __m512i right[N];
        for (int n = 0; n < N; ++n) right[n] = _mm512_loadu_si512(b + n * b_apart);
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) {
          int pair;
          __builtin_memcpy(&pair, rows[m] + k, sizeof(pair));
          const __m512i factor = _mm512_set1_epi32(pair);
#pragma GCC unroll 2
          for (int n = 0; n < N; ++n) sums[m][n] = _mm512_dpbf16_ps(sums[m][n], (__m512bh)factor, (__m512bh)right[n]);
        }
      }
    });
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) _mm512_storeu_ps(c + (row + m) * apart + n * kTile, sums[m][n]);
  }
}

#endif

inline int64_t up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

inline __m512i halves(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// Two rows of sixteen columns, column by column.
inline __m512i pairs(__m512 first, __m512 second) {
  alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), halves(first, second));
}

inline void transpose(__m512i (&x)[16]) {  // of 32 bits
  __m512i y[16];
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + j + 2]);
      x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + j + 2]);
    }
  }
  for (int i = 0; i < 4; ++i) {
    y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
    y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
    y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
    y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
    x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
  }
}

// A row of `channels` floats, with zeros up to a multiple of 32; of zeros only without a row.
inline void to_halves(const float* from, int64_t channels, Half* to) {
  for (int64_t c = 0; c < channels; c += kBlock) {
    const __m512 low = from ? _mm512_loadu_ps(from + c) : __m512{};
    const __m512 high = from && c + kTile < channels ? _mm512_loadu_ps(from + c + kTile) : __m512{};
    _mm512_storeu_si512(to + c, halves(low, high));
  }
}

// Halves of a thread's array, see `scratch`.
inline Half* scratch_halves(std::vector<float>& kept, int64_t n) { return reinterpret_cast<Half*>(scratch(kept, (n + 1) / 2)); }

inline void copy_row(const float* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i += kTile) _mm512_storeu_ps(to + i, _mm512_loadu_ps(from + i));
}

#else

inline bool have_halves() { return false; }

#endif

#define NEED_HALVES() \
  if (!have_halves()) return xla::ffi::Error::Internal("this processor or system does not multiply in bfloat16")
