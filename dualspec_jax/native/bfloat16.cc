// Products and 3x3 convolutions of float32 arrays whose operands are rounded to bfloat16 and summed in float32. A product is a
// convolution with one tap. Positions of a convolution are numbered with a border of zeros around each example, so that what a
// tap sees is always as far away; what comes out for the border is dropped.

#include <cstdint>
#include <vector>

#include "handlers.h"
#include "memory.h"
#include "halves.h"
#include "threads.h"

namespace ffi = xla::ffi;

#if HAS_HALVES

namespace {

constexpr int64_t kGroup = 512;  // positions at a time: with their halves a second cache of 2 MiB is not full
constexpr int64_t kChunk = 512;  // positions of a sum that stay in a first cache

struct Grid {
  int64_t examples, frames, bins, border;

  int64_t width() const { return bins + 2 * border; }
  int64_t size() const { return (frames + 2 * border) * width(); }
  int64_t positions() const { return examples * size(); }
  int64_t taps() const { return border ? 9 : 1; }
  int64_t shift(int64_t tap) const { return border ? tap / 3 * width() + tap % 3 : 0; }
  int64_t reach() const { return shift(taps() - 1); }
  // The row of an array [examples, frames, bins] at a position, -1 at the border, where the array's first element is at
  // `origin` on both axes.
  int64_t row(int64_t position, int64_t origin) const {
    const int64_t t = position % size() / width() - origin, f = position % width() - origin;
    const bool inside = position < positions() && t >= 0 && t < frames && f >= 0 && f < bins;
    return inside ? (position / size() * frames + t) * bins + f : -1;
  }
};

Grid grid_of(Floats& x, bool has_taps) {
  const auto d = x.dimensions();
  if (has_taps) return {int64_t(d[0]), int64_t(d[1]), int64_t(d[2]), 1};
  return {1, 1, int64_t(x.element_count() / d.back()), 0};
}

// Sixteen outputs of the kernel [taps, in, out] in tiles [taps][in / 32], each of pairs of inputs [16][16][2]; turned: of
// the kernel [taps, out, in] of the gradient of the input, with the taps in reverse.
void pack_kernel(const float* kernel, int64_t taps, int64_t in, int64_t out, int64_t panel, bool turned, Half* to) {
  for (int64_t tap = 0; tap < taps; ++tap)
    for (int64_t k = 0; k < in; k += kBlock, to += kTileSize) {
      const int64_t depth = std::min(kBlock, in - k);
      __m512i rows[16] = {};
      if (turned) {
        for (int n = 0; n < 16; ++n) {
          const float* from = kernel + ((taps - 1 - tap) * out + panel * kTile + n) * in + k;
          rows[n] = halves(_mm512_loadu_ps(from), depth > kTile ? _mm512_loadu_ps(from + kTile) : __m512{});
        }
        transpose(rows);
      } else {
        for (int64_t i = 0; 2 * i < depth; ++i) {
          const float* from = kernel + (tap * in + k + 2 * i) * out + panel * kTile;
          rows[i] = pairs(_mm512_loadu_ps(from), _mm512_loadu_ps(from + out));
        }
      }
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * kBlock, rows[i]);
    }
}

// N panels of outputs of the positions first ... last, whose halves are x [*, depth] from `first` on.
template <int N>
void convolve_panels(const Grid& grid, const Half* x, int64_t depth, const Half* kernel, int64_t first, int64_t last,
                     int64_t out, float* y) {
  alignas(64) float sums[kBlock * kBlock];
  const int64_t panel_size = grid.taps() * depth * kTile;
  for (int64_t q = first; q < last; q += kBlock) {
    const bool at_once = !grid.border && q + kBlock <= last;
    sum_up<N>(false, at_once ? y + q * out : sums, at_once ? out : kBlock, [&](auto multiply) {
      const Half* b = kernel;
      for (int64_t tap = 0; tap < grid.taps(); ++tap) {
        const Half* a = x + (q - first + grid.shift(tap)) * depth;
        for (int64_t k = 0; k < depth; k += kBlock, b += kTileSize) multiply(a + k, depth, b, panel_size);
      }
    });
    if (at_once) continue;
    for (int64_t i = 0; i < std::min(kBlock, last - q); ++i) {
      const int64_t row = grid.row(q + i, 0);
      if (row >= 0) copy_row(sums + i * kBlock, N * kTile, y + row * out);
    }
  }
}

ffi::Error convolve(ffi::ThreadPool pool, Floats x, Floats kernel, Result y, bool turned) {
  NEED_HALVES();
  const Grid grid = grid_of(x, kernel.dimensions().size() == 4);
  const int64_t in = x.dimensions().back(), out = y->dimensions().back(), depth = up_to(in, kBlock);
  const int64_t panels = out / kTile, panel_size = grid.taps() * depth * kTile;
  Block kernels(panels * panel_size / 2);
  Half* packed = reinterpret_cast<Half*>(kernels.start());
  parallel_for(pool, panels, [&](int64_t panel) {
    pack_kernel(kernel.typed_data(), grid.taps(), in, out, panel, turned, packed + panel * panel_size);
  });
  const int64_t positions = grid.positions(), threads = std::max<int64_t>(1, pool.num_threads());
  const int64_t groups = (positions - 1) / kGroup + 1, pairs_of_panels = (panels + 1) / 2;
  // Where there are few groups, each is done in several sections of the outputs.
  const int64_t sections = std::min(pairs_of_panels, std::max<int64_t>(1, 2 * threads / groups));
  parallel_for(pool, groups * sections, [&](int64_t task) {
    const int64_t group = task / sections, section = task % sections;
    const int64_t first = group * kGroup, last = std::min(positions, first + kGroup);
    const int64_t needed = up_to(last - first, kBlock) + grid.reach();
    thread_local std::vector<float> kept;
    Half* rows = scratch_halves(kept, needed * depth);
    for (int64_t i = 0; i < needed; ++i) {
      const int64_t row = grid.row(first + i, grid.border);
      to_halves(row < 0 ? nullptr : x.typed_data() + row * in, in, rows + i * depth);
    }
    Registers registers;
    for (int64_t pair = section * pairs_of_panels / sections; pair < (section + 1) * pairs_of_panels / sections; ++pair) {
      const Half* b = packed + 2 * pair * panel_size;
      float* to = y->typed_data() + pair * kBlock;
      (2 * pair + 1 < panels ? convolve_panels<2> : convolve_panels<1>)(grid, rows, depth, b, first, last, out, to);
    }
  });
  return ffi::Error::Success();
}

// Up to 32 inputs and N panels of outputs of a kernel's gradient: of inputs x [32][*], `apart` halves from each other, and
// gradients in tiles [N][depth / 32].
template <int N>
void correlate_block(const Grid& grid, const Half* x, int64_t apart, const Half* gradients, int64_t depth, float* sums) {
  for (int64_t first = 0; first < depth; first += kChunk)
    for (int64_t tap = 0; tap < grid.taps(); ++tap)
      sum_up<N>(first > 0, sums + tap * kBlock * kBlock, kBlock, [&](auto multiply) {
        for (int64_t q = first; q < std::min(depth, first + kChunk); q += kBlock)
          multiply(x + q + grid.shift(tap), apart, gradients + q * kTile, depth * kTile);
      });
}

// The gradient of the kernel, [taps, in, out].
ffi::Error kernel_gradient(ffi::ThreadPool pool, Floats x, Floats gradient, Result result) {
  NEED_HALVES();
  const Grid grid = grid_of(x, result->dimensions().size() == 4);
  const int64_t in = x.dimensions().back(), out = gradient.dimensions().back(), panels = out / kTile;
  const int64_t depth = up_to(grid.positions(), kBlock), blocks = (in + kBlock - 1) / kBlock;
  const int64_t apart = up_to(depth + grid.reach(), 2 * kBlock) + kBlock;  // an odd number of the cache's lines
  Block arrays((blocks * kBlock * apart + out * depth) / 2);
  Half* inputs = reinterpret_cast<Half*>(arrays.start());
  Half* gradients = inputs + blocks * kBlock * apart;
  parallel_for(pool, apart / kBlock, [&](int64_t i) {
    static const float zeros[kTile] = {};
    int64_t rows[kBlock];
    for (int64_t r = 0; r < kBlock; ++r) rows[r] = grid.row(i * kBlock + r, grid.border);
    for (int64_t c = 0; c < blocks * kBlock; c += kTile) {
      const auto at = [&](int64_t r) {
        return _mm512_loadu_ps(rows[r] < 0 || c >= in ? zeros : x.typed_data() + rows[r] * in + c);
      };
      __m512i tile[16];
      for (int64_t r = 0; r < 16; ++r) tile[r] = pairs(at(2 * r), at(2 * r + 1));
      transpose(tile);
      for (int64_t n = 0; n < 16; ++n) _mm512_storeu_si512(inputs + (c + n) * apart + i * kBlock, tile[n]);
    }
    if (i * kBlock >= depth) return;
    for (int64_t r = 0; r < kBlock; ++r) rows[r] = grid.row(i * kBlock + r, 0);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const auto at = [&](int64_t r) {
        return _mm512_loadu_ps(rows[r] < 0 ? zeros : gradient.typed_data() + rows[r] * out + panel * kTile);
      };
      Half* to = gradients + panel * depth * kTile + i * kTileSize;
      for (int64_t r = 0; r < 16; ++r) _mm512_storeu_si512(to + r * kBlock, pairs(at(2 * r), at(2 * r + 1)));
    }
  });
  const int64_t pairs_of_panels = (panels + 1) / 2;
  parallel_for(pool, blocks * pairs_of_panels, [&](int64_t task) {
    const int64_t block = task % blocks, pair = task / blocks, n = std::min<int64_t>(2, panels - 2 * pair);
    alignas(64) float sums[9 * kBlock * kBlock];
    Registers registers;
    (n == 2 ? correlate_block<2> : correlate_block<1>)(grid, inputs + block * kBlock * apart, apart,
                                                       gradients + 2 * pair * depth * kTile, depth, sums);
    for (int64_t tap = 0; tap < grid.taps(); ++tap)
      for (int64_t i = 0; i < std::min(kBlock, in - block * kBlock); ++i)
        copy_row(sums + (tap * kBlock + i) * kBlock, n * kTile,
                 result->typed_data() + (tap * in + block * kBlock + i) * out + pair * kBlock);
  });
  return ffi::Error::Success();
}

}  // namespace

#else

namespace {

ffi::Error convolve(ffi::ThreadPool, Floats, Floats, Result, bool) {
  NEED_HALVES();
  return ffi::Error::Success();
}

ffi::Error kernel_gradient(ffi::ThreadPool, Floats, Floats, Result) {
  NEED_HALVES();
  return ffi::Error::Success();
}

}  // namespace

#endif

extern "C" bool dualspec_has_bfloat16() { return have_halves(); }
extern "C" bool dualspec_has_matrix_registers() { return HAS_AMX && have_halves(); }

XLA_FFI_DEFINE_HANDLER_SYMBOL(dualspec_convolve_bfloat16, convolve, for_convolution());
XLA_FFI_DEFINE_HANDLER_SYMBOL(dualspec_kernel_gradient_bfloat16, kernel_gradient, for_kernel_gradient());
