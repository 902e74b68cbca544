// Vec: eight floats at once, by the vector types of GCC (from 12 on) and Clang: AVX, NEON and others alike. Wide: sixteen,
// where the processor has such registers.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__AVX__)
#include <immintrin.h>
#endif

typedef float Vec __attribute__((vector_size(32)));
typedef int32_t IntVec __attribute__((vector_size(32)));
typedef float LooseVec __attribute__((vector_size(32), aligned(4), may_alias));
#if defined(__AVX512F__)
typedef float Wide __attribute__((vector_size(64)));
#else
typedef Vec Wide;
#endif
typedef float LooseWide __attribute__((vector_size(sizeof(Wide)), aligned(4), may_alias));
constexpr int kWide = sizeof(Wide) / sizeof(float);
#define INLINE inline __attribute__((always_inline))


// Keeps the compiler from loading x anew wherever it is used.
#if defined(__AVX__)
#define IN_REGISTER(x) asm("" : "+x"(x))
#else
#define IN_REGISTER(x)
#endif

static INLINE Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
template <typename V>
INLINE void store(float* p, V x) {
  __builtin_memcpy(p, &x, sizeof(x));
}
static INLINE Wide load_wide(const float* p) { return *reinterpret_cast<const LooseWide*>(p); }
template <typename V>
INLINE V max(V a, V b) {
  return a > b ? a : b;
}
static INLINE Vec fill(float x) { return Vec{x, x, x, x, x, x, x, x}; }

#define SHUFFLE __builtin_shufflevector
static INLINE Vec reverse(Vec a) { return SHUFFLE(a, a, 7, 6, 5, 4, 3, 2, 1, 0); }

static INLINE void transpose(const Vec (&in)[8], Vec (&out)[8]) {
  Vec pairs[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = SHUFFLE(in[i], in[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pairs[i + 1] = SHUFFLE(in[i], in[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      fours[i + 2 * j] = SHUFFLE(pairs[i + j], pairs[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      fours[i + 2 * j + 1] = SHUFFLE(pairs[i + j], pairs[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < 4; ++i) {
    out[i] = SHUFFLE(fours[i], fours[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    out[i + 4] = SHUFFLE(fours[i], fours[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// 1 / sqrt(x) for positive normal numbers; relative error below 3e-7.
static INLINE Vec inverse_sqrt(Vec x) {
#if defined(__AVX__)
  Vec y = reinterpret_cast<Vec>(_mm256_rsqrt_ps(reinterpret_cast<__m256>(x)));
  return y * (1.5f - 0.5f * x * y * y);
#else
  Vec y;
  for (int i = 0; i < 8; ++i) y[i] = 1.0f / std::sqrt(x[i]);
  return y;
#endif
}

// scale times the natural logarithm of positive normal numbers, to scale * 3e-7 near 1 and to rounding elsewhere: the
// exponent, and f times a polynomial of f = mantissa - 1, mantissa in [0.7, 1.4), fitted for the smallest largest error.
static INLINE Vec scaled_log(Vec x, float scale) {
  constexpr int32_t kSqrtHalf = 0x3f3504f3;
  constexpr float kTerms[] = {1.182736605e-01f, -1.890195310e-01f, 2.060469538e-01f, -2.488134205e-01f,
                              3.330329657e-01f, -5.000196695e-01f, 1.000003219e+00f};
  IntVec bits = reinterpret_cast<IntVec>(x), exponent = (bits - kSqrtHalf) >> 23;
  Vec f = reinterpret_cast<Vec>(bits - (exponent << 23)) - 1.0f;
  Vec p = fill(scale * kTerms[0]);
  for (int i = 1; i < 7; ++i) p = p * f + scale * kTerms[i];
  return p * f + __builtin_convertvector(exponent, Vec) * (scale * 0.69314718f);
}

constexpr float kLog2E = 1.44269504f;

// 2^x for x up to 0; relative error below 2e-7, and not 0 but 1e-38 for the smallest. The nearest integer goes to the
// exponent, what is left into a polynomial, fitted for the smallest largest relative error.
static INLINE Wide power_of_two(Wide x) {
  typedef int32_t Integers __attribute__((vector_size(sizeof(Wide))));
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: what is added to it becomes an integer
  x = max(x, Wide{} - 125.0f);
  const Wide shifted = x + kRound, r = x - (shifted - kRound);
  Wide p = r * 1.326472719e-3f + 9.67151264e-3f;
  p = p * r + 5.550733743e-2f;
  p = p * r + 2.402224209e-1f;
  p = p * r + 6.931469776e-1f;
  p = p * r + 1.0f;
  const Integers bits = reinterpret_cast<Integers>(shifted) - 0x4b400000;
  return reinterpret_cast<Wide>(reinterpret_cast<Integers>(p) + (bits << 23));
}

// The part of a normal distribution below x, error below 2e-7; `bell` becomes exp(-x^2 / 2). A tail is bell times a polynomial of
// t = 1 / (1 + 0.305 |x|), fitted for the smallest largest relative error.
static INLINE Wide below(Wide x, Wide& bell) {
  constexpr float kTerms[] = {3.669943660e-02f, -1.529893428e-01f, 1.857187003e-01f, -3.797848523e-02f, 1.210225523e-01f, 1.034206003e-01f, 1.224668622e-01f, 1.216397285e-01f};
  const Wide size = max(x, -x), t = 1.0f / (1.0f + 0.305f * size);
  bell = power_of_two(size * size * (-0.5f * kLog2E));
  Wide p = Wide{} + kTerms[0];
  for (int i = 1; i < 8; ++i) p = p * t + kTerms[i];
  const Wide tail = p * t * bell;
  return x > 0.0f ? 1.0f - tail : tail;
}

static INLINE float sum(Wide x) {
  float total = 0.0f;
  for (int i = 0; i < kWide; ++i) total += x[i];
  return total;
}
