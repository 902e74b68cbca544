// The complex Fourier transform of 1 024 points as 32 x 32, eight transforms of 32 points side by side in vectors.
#pragma once

#include "vectors.h"

struct Complex8 {
  Vec re, im;
};
static INLINE Complex8 operator+(Complex8 a, Complex8 b) { return {a.re + b.re, a.im + b.im}; }
static INLINE Complex8 operator-(Complex8 a, Complex8 b) { return {a.re - b.re, a.im - b.im}; }
static INLINE Complex8 operator*(Complex8 a, Complex8 b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
static INLINE Complex8 times(Complex8 a, float re, float im) { return {a.re * re - a.im * im, a.re * im + a.im * re}; }
static INLINE Complex8 minus_i(Complex8 a) { return {a.im, -a.re}; }

static INLINE void transpose(const Complex8 (&in)[8], Complex8 (&out)[8]) {
  Vec rows[8], columns[8];
  for (int i = 0; i < 8; ++i) rows[i] = in[i].re;
  transpose(rows, columns);
  for (int i = 0; i < 8; ++i) out[i].re = columns[i];
  for (int i = 0; i < 8; ++i) rows[i] = in[i].im;
  transpose(rows, columns);
  for (int i = 0; i < 8; ++i) out[i].im = columns[i];
}

static INLINE void fft4(Complex8 (&x)[4]) {
  Complex8 a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3], d = minus_i(x[1] - x[3]);
  x[0] = a + c;
  x[1] = b + d;
  x[2] = a - c;
  x[3] = b - d;
}

static INLINE void fft8(Complex8 (&x)[8]) {
  Complex8 even[4] = {x[0], x[2], x[4], x[6]}, odd[4] = {x[1], x[3], x[5], x[7]};
  fft4(even);
  fft4(odd);
  constexpr float r = 0.70710678118654752f;
  odd[1] = {(odd[1].re + odd[1].im) * r, (odd[1].im - odd[1].re) * r};
  odd[2] = minus_i(odd[2]);
  odd[3] = {(odd[3].im - odd[3].re) * r, (odd[3].re + odd[3].im) * -r};
  for (int i = 0; i < 4; ++i) {
    x[i] = even[i] + odd[i];
    x[i + 4] = even[i] - odd[i];
  }
}

constexpr int kPoints = 1024, kSide = 32, kLength = kPoints + 16;

// Twice the transforms of x and y, both real, at k ... k + 7, of a transform of x + i y that repeats its first value.
static INLINE void split(const float* re, const float* im, int64_t k, Complex8& x, Complex8& y) {
  Complex8 z{load(re + k), load(im + k)};
  Complex8 mirrored{reverse(load(re + kPoints - 7 - k)), reverse(load(im + kPoints - 7 - k))};
  x = {z.re + mirrored.re, z.im - mirrored.im};
  y = {z.im + mirrored.im, mirrored.re - z.re};
}

struct Fft {
  alignas(64) float twiddle_re[kPoints], twiddle_im[kPoints];  // [k2][n1]: exp(-2 pi i n1 k2 / 1024)
  alignas(64) float side_re[kSide], side_im[kSide];            // [c][b]: exp(-2 pi i b c / 32)

  Fft() {
    const double turn = -2.0 * M_PI;
    for (int k = 0; k < kSide; ++k)
      for (int n = 0; n < kSide; ++n) {
        twiddle_re[kSide * k + n] = float(std::cos(turn * k * n / kPoints));
        twiddle_im[kSide * k + n] = float(std::sin(turn * k * n / kPoints));
      }
    for (int c = 0; c < 4; ++c)
      for (int b = 0; b < 8; ++b) {
        side_re[8 * c + b] = float(std::cos(turn * b * c / kSide));
        side_im[8 * c + b] = float(std::sin(turn * b * c / kSide));
      }
  }

  // get(n): the inputs n ... n + 7. Output in order, 1 025 floats each: the first value again at the end, for `split`.
  template <typename Get>
  INLINE void transform(Get get, float* re, float* im) const {
    alignas(64) float mid_re[kPoints], mid_im[kPoints];  // [k2][n1], input n1 + 32 n2
    Complex8 part[4][8];
    // Transforms over n2 = b + 8 a, for eight n1: of four points over a, then of eight over b.
    for (int n1 = 0; n1 < kSide; n1 += 8) {
      for (int b = 0; b < 8; ++b) {
        Complex8 x[4];
        for (int a = 0; a < 4; ++a) x[a] = get(n1 + kSide * (b + 8 * a));
        fft4(x);
        part[0][b] = x[0];
        for (int c = 1; c < 4; ++c) part[c][b] = times(x[c], side_re[8 * c + b], side_im[8 * c + b]);
      }
      for (int c = 0; c < 4; ++c) {
        fft8(part[c]);
        for (int d = 0; d < 8; ++d) {
          const int i = kSide * (c + 4 * d) + n1;
          Complex8 x = part[c][d] * Complex8{load(twiddle_re + i), load(twiddle_im + i)};
          store(mid_re + i, x.re);
          store(mid_im + i, x.im);
        }
      }
    }
    // The same over n1 = b + 8 a, for eight k2: eight b side by side, then transposed.
    for (int k2 = 0; k2 < kSide; k2 += 8) {
      for (int row = 0; row < 8; ++row) {
        Complex8 x[4];
        for (int a = 0; a < 4; ++a) {
          const int i = kSide * (k2 + row) + 8 * a;
          x[a] = {load(mid_re + i), load(mid_im + i)};
        }
        fft4(x);
        part[0][row] = x[0];
        for (int c = 1; c < 4; ++c) part[c][row] = x[c] * Complex8{load(side_re + 8 * c), load(side_im + 8 * c)};
      }
      for (int c = 0; c < 4; ++c) {
        Complex8 x[8];
        transpose(part[c], x);
        fft8(x);
        for (int d = 0; d < 8; ++d) {
          store(re + kSide * (c + 4 * d) + k2, x[d].re);
          store(im + kSide * (c + 4 * d) + k2, x[d].im);
        }
      }
    }
    re[kPoints] = re[0];
    im[kPoints] = im[0];
  }
};
