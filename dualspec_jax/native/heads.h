// Arrays [B, N, H, D] of attention.
#pragma once

#include <cmath>
#include <cstdint>

#include "xla/ffi/api/ffi.h"

struct Heads {
  int64_t rows, heads, size, all;  // all: heads of the batch

  explicit Heads(xla::ffi::Buffer<xla::ffi::F32>& x)
      : rows(x.dimensions()[1]),
        heads(x.dimensions()[2]),
        size(x.dimensions()[3]),
        all(x.dimensions()[0] * x.dimensions()[2]) {}
  int64_t apart() const { return heads * size; }  // rows of a head
  int64_t start(int64_t head) const { return head / heads * rows * apart() + head % heads * size; }
  float scale() const { return 1.0f / std::sqrt(float(size)); }
};
