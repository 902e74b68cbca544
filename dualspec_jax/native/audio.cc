// Two-ear rendering and both spectrograms, as `spatial.scene.render_sources` and `ops.analysis.clip_features` define them.

#include <algorithm>
#include <vector>

#include "fft.h"
#include "memory.h"
#include "threads.h"

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using Result = ffi::Result<Floats>;

namespace {

const Fft& fft() {
  static const Fft tables;
  return tables;
}

struct MelBands {
  const int32_t* first;   // [M], bin
  const int32_t* groups;  // [M], of eight bins
  const float* weights;   // eight for each group
  int64_t n;              // a multiple of 8
};

struct Analysis {
  int64_t n_samples, n_frames, n_bins, hop, average;
  float mel_floor, stft_floor;
  const float* window;  // half a Hann window: `split` doubles
  MelBands bands;

  Analysis(int64_t n_samples, Floats& window, Ints& first, Ints& groups, Floats& weights, Result& mel, Result& features,
           int64_t hop, int64_t average, float mel_floor, float stft_floor)
      : n_samples(n_samples), n_frames(features->dimensions()[1]), n_bins(features->dimensions()[2]), hop(hop),
        average(average), mel_floor(mel_floor), stft_floor(stft_floor), window(window.typed_data()),
        bands{first.typed_data(), groups.typed_data(), weights.typed_data(), mel->dimensions()[2]} {}

  // Frames [start, stop) of a clip of the batch: wave [N, 2].
  void run(int64_t clip, const float* wave, Floats& all_floors, int64_t start, int64_t stop, Result& all_mel,
           Result& all_features) const {
    const float* floors = all_floors.typed_data() + clip * 4 * n_bins;               // [4, F]
    float* mel = all_mel->typed_data() + clip * n_frames * bands.n * 2;              // [T, M, 2]
    float* features = all_features->typed_data() + clip * n_frames * n_bins * 4;     // [T, F, 4]
    const int64_t before = average / 2, after = average - 1 - before;
    const int64_t origin = (start - before) * hop - kPoints / 2, row = 4 * n_bins;
    const int64_t length = (stop + after - (start - before) - 1) * hop + kPoints;
    thread_local std::vector<float> kept;
    float* left = scratch(kept, 2 * length + average * row + 2 * (n_bins + 8) + 16 * bands.n);
    float* right = left + length;
    float* ring = right + length;
    float* magnitude = ring + average * row;  // of both ears, each with eight zeros behind
    float* sums = magnitude + 2 * (n_bins + 8);
    separate(wave, origin, length, left, right);
    std::fill(magnitude, magnitude + 2 * (n_bins + 8), 0.0f);
    for (int64_t s = start - before; s < stop + after; ++s) {
      float* powers = ring + (s - (start - before)) % average * row;
      if (s < 0 || s >= n_frames) {
        std::fill(powers, powers + row, 0.0f);
      } else {
        const int64_t i = s * hop - kPoints / 2 - origin;
        analyse_frame(left + i, right + i, powers, magnitude);
        if (s >= start && s < stop) filter_bands(magnitude, sums, mel + s * bands.n * 2);
      }
      if (s - after >= start) {  // the ring now holds all frames around this one; the oldest lies behind the newest
        const int64_t oldest = (s + 1 - (start - before)) % average;
        average_frames(ring, oldest, before, floors, features + (s - after) * row);
      }
    }
  }

 private:
  void separate(const float* wave, int64_t origin, int64_t length, float* left, float* right) const {
    const int64_t first = std::clamp<int64_t>(-origin, 0, length);
    const int64_t last = std::clamp<int64_t>(n_samples - origin, first, length);
    for (float* plane : {left, right}) {
      std::fill(plane, plane + first, 0.0f);
      std::fill(plane + last, plane + length, 0.0f);
    }
    const float* from = wave + 2 * origin;
    for (int64_t i = first; i < last; ++i) {
      left[i] = from[2 * i];
      right[i] = from[2 * i + 1];
    }
  }

  // powers: for each eight bins |L|^2, |R|^2 and both parts of L R*.
  void analyse_frame(const float* left, const float* right, float* powers, float* magnitude) const {
    alignas(64) float re[kLength], im[kLength];
    fft().transform(
        [&](int n) {
          Vec w = load(window + n);
          return Complex8{load(left + n) * w, load(right + n) * w};
        },
        re, im);
    for (int64_t k = 0; k < n_bins; k += 8) {
      Complex8 l, r;
      split(re, im, k, l, r);
      Vec power_l = l.re * l.re + l.im * l.im, power_r = r.re * r.re + r.im * r.im;
      float* out = powers + 4 * k;
      store(out, power_l);
      store(out + 8, power_r);
      store(out + 16, l.re * r.re + l.im * r.im);
      store(out + 24, l.im * r.re - l.re * r.im);
      store(magnitude + k, root(power_l));
      store(magnitude + n_bins + 8 + k, root(power_r));
    }
  }

  static Vec root(Vec power) {
    power += 1e-16f;
    return power * inverse_sqrt(power);
  }

  void filter_bands(const float* magnitude, float* sums, float* mel) const {
    const float* weights = bands.weights;
    for (int64_t m = 0; m < bands.n; ++m) {
      const float* left = magnitude + bands.first[m];
      const float* right = left + n_bins + 8;
      Vec l = fill(0.0f), r = fill(0.0f);
      for (int32_t g = 0; g < bands.groups[m]; ++g, weights += 8) {
        Vec w = load(weights);
        l += w * load(left + 8 * g);
        r += w * load(right + 8 * g);
      }
      store(sums + 8 * m, l);
      store(sums + 8 * (bands.n + m), r);
    }
    for (int64_t m = 0; m < bands.n; m += 8) {
      Vec l = log_of_sums(sums + 8 * m), r = log_of_sums(sums + 8 * (bands.n + m));
      store(mel + 2 * m, SHUFFLE(l, r, 0, 8, 1, 9, 2, 10, 3, 11));
      store(mel + 2 * m + 8, SHUFFLE(l, r, 4, 12, 5, 13, 6, 14, 7, 15));
    }
  }

  Vec log_of_sums(const float* sums) const {
    Vec rows[8], columns[8];
    for (int i = 0; i < 8; ++i) rows[i] = load(sums + 8 * i);
    transpose(rows, columns);
    for (int i = 1; i < 8; ++i) columns[0] += columns[i];
    return scaled_log(max(columns[0], fill(mel_floor)), 1.0f);
  }

  void average_frames(const float* ring, int64_t oldest, int64_t before, const float* floors, float* features) const {
    const int64_t row = 4 * n_bins;
    const float* middle = ring + (oldest + before) % average * row;
    const float tiny = 1e-4f * stft_floor * stft_floor, share = 1.0f / average;
    const float *floor_l = floors, *floor_r = floors + n_bins, *floor_re = floors + 2 * n_bins,
                *floor_im = floors + 3 * n_bins;
    for (int64_t k = 0; k < n_bins; k += 8) {
      Vec sum[4] = {fill(0.0f), fill(0.0f), fill(0.0f), fill(0.0f)};
      for (int64_t j = 0; j < average; ++j) {
        const float* frame = ring + (oldest + j < average ? oldest + j : oldest + j - average) * row + 4 * k;
        for (int c = 0; c < 4; ++c) sum[c] += load(frame + 8 * c);
      }
      Vec add_l = load(floor_l + k), add_r = load(floor_r + k);
      Vec norm = inverse_sqrt((sum[0] * share + add_l) * (sum[1] * share + add_r) + 1e-20f);
      Vec re = (sum[2] * share + load(floor_re + k)) * norm, im = (sum[3] * share + load(floor_im + k)) * norm;
      Vec l = scaled_log(load(middle + 4 * k) + (add_l + tiny), 0.5f);
      Vec r = scaled_log(load(middle + 4 * k + 8) + (add_r + tiny), 0.5f);
      // Four planes to four channels: pairs, then fours, then the halves of a vector.
      Vec low_levels = SHUFFLE(l, r, 0, 8, 1, 9, 4, 12, 5, 13), high_levels = SHUFFLE(l, r, 2, 10, 3, 11, 6, 14, 7, 15);
      Vec low_gamma = SHUFFLE(re, im, 0, 8, 1, 9, 4, 12, 5, 13), high_gamma = SHUFFLE(re, im, 2, 10, 3, 11, 6, 14, 7, 15);
      Vec bins[4] = {SHUFFLE(low_levels, low_gamma, 0, 1, 8, 9, 4, 5, 12, 13),
                     SHUFFLE(low_levels, low_gamma, 2, 3, 10, 11, 6, 7, 14, 15),
                     SHUFFLE(high_levels, high_gamma, 0, 1, 8, 9, 4, 5, 12, 13),
                     SHUFFLE(high_levels, high_gamma, 2, 3, 10, 11, 6, 7, 14, 15)};
      float* out = features + 4 * k;
      for (int i = 0; i < 2; ++i) {
        store(out + 8 * i, SHUFFLE(bins[2 * i], bins[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11));
        store(out + 16 + 8 * i, SHUFFLE(bins[2 * i], bins[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15));
      }
    }
  }
};

ffi::Error analyse(ffi::ThreadPool pool, Floats wave, Floats floors, Floats window, Ints first, Ints groups,
                   Floats weights, Result mel, Result features, int64_t hop, int64_t average, float mel_floor,
                   float stft_floor) {
  const int64_t clips = wave.dimensions()[0], n = wave.dimensions()[1];
  const Analysis analysis(n, window, first, groups, weights, mel, features, hop, average, mel_floor, stft_floor);
  const int64_t n_frames = analysis.n_frames;
  // Fewer clips than threads: parts of clips, which compute a few frames at their edges twice.
  const int64_t parts = std::clamp<int64_t>((pool.num_threads() + clips - 1) / clips, 1, 1 + n_frames / 64);
  const int64_t part_frames = (n_frames + parts - 1) / parts;
  parallel_for(pool, clips * parts, [&](int64_t i) {
    const int64_t clip = i / parts, start = i % parts * part_frames;
    if (start < n_frames)
      analysis.run(clip, wave.typed_data() + clip * n * 2, floors, start, std::min(n_frames, start + part_frames), mel,
                   features);
  });
  return ffi::Error::Success();
}

// Writes l[0], r[0], l[1], r[1], ..., n of each, and returns the largest magnitude.
float interleave(const float* left, const float* right, int64_t n, float* out) {
  Vec loudest = fill(0.0f);
  float largest = 0.0f;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    Vec l = load(left + i), r = load(right + i);
    loudest = max(loudest, max(max(l, -l), max(r, -r)));
    store(out + 2 * i, SHUFFLE(l, r, 0, 8, 1, 9, 2, 10, 3, 11));
    store(out + 2 * i + 8, SHUFFLE(l, r, 4, 12, 5, 13, 6, 14, 7, 15));
  }
  for (; i < n; ++i) {
    out[2 * i] = left[i];
    out[2 * i + 1] = right[i];
    largest = std::max({largest, std::abs(left[i]), std::abs(right[i])});
  }
  for (int lane = 0; lane < 8; ++lane) largest = std::max(largest, loudest[lane]);
  return largest;
}

// One clip: mono [S, N], hrir [S, 2, K], wave [N, 2]. Overlap-save in blocks of 1 024 samples, two blocks in one transform.
// The left ear is the real and the right the imaginary part of one filter: one transform back gives both.
void render_clip(const float* mono, const float* hrir, int64_t sources, int64_t n, int64_t taps, float peak, float* wave) {
  const int64_t step = (kPoints - (taps - 1)) / 16 * 16, lead = kPoints - step;  // whole lines of the cache
  const int64_t pairs = (n + 2 * step - 1) / (2 * step), padded = 2 * pairs * step + lead;
  thread_local std::vector<float> kept;
  float* filters = scratch(kept, sources * (2 * kLength + padded));
  float* signals = filters + sources * 2 * kLength;
  alignas(64) float re[kLength], im[kLength];
  for (int64_t s = 0; s < sources; ++s) {
    std::fill(re, re + kPoints, 0.0f);
    std::fill(im, im + kPoints, 0.0f);
    for (int64_t k = 0; k < taps; ++k) {
      re[k] = hrir[(2 * s) * taps + k] / (2 * kPoints);
      im[k] = hrir[(2 * s + 1) * taps + k] / (2 * kPoints);
    }
    float* filter = filters + s * 2 * kLength;
    fft().transform([&](int i) { return Complex8{load(re + i), load(im + i)}; }, filter, filter + kLength);
    float* signal = signals + s * padded;
    std::fill(signal, signal + lead, 0.0f);
    std::copy(mono + s * n, mono + (s + 1) * n, signal + lead);
    std::fill(signal + lead + n, signal + padded, 0.0f);
  }
  float largest = 1e-9f;
  for (int64_t p = 0; p < pairs; ++p) {
    alignas(64) float sums[2][2][kPoints] = {};  // of both blocks, real and imaginary
    for (int64_t s = 0; s < sources; ++s) {
      const float* first = signals + s * padded + 2 * p * step;
      const float* filter = filters + s * 2 * kLength;
      fft().transform([&](int i) { return Complex8{load(first + i), load(first + step + i)}; }, re, im);
      for (int i = 0; i < kPoints; i += 8) {
        Complex8 blocks[2], h{load(filter + i), load(filter + kLength + i)};
        split(re, im, i, blocks[0], blocks[1]);
        for (int b = 0; b < 2; ++b) {
          Complex8 x = blocks[b] * h;
          store(sums[b][0] + i, load(sums[b][0] + i) + x.re);
          store(sums[b][1] + i, load(sums[b][1] + i) + x.im);
        }
      }
    }
    for (int b = 0; b < 2; ++b) {
      // Back: the transform of what has its parts exchanged, parts exchanged.
      fft().transform([&](int i) { return Complex8{load(sums[b][1] + i), load(sums[b][0] + i)}; }, im, re);
      const int64_t start = (2 * p + b) * step;
      largest = std::max(largest, interleave(re + lead, im + lead, std::min(step, n - start), wave + 2 * start));
    }
  }
  if (largest > peak)
    for (int64_t i = 0; i < 2 * n; ++i) wave[i] *= peak / largest;
}

ffi::Error render(ffi::ThreadPool pool, Floats mono, Floats hrir, Floats floors, Floats window, Ints first, Ints groups,
                  Floats weights, Result wave, Result mel, Result features, float peak, int64_t hop, int64_t average,
                  float mel_floor, float stft_floor) {
  const auto in = mono.dimensions();
  const int64_t sources = in[1], n = in[2], taps = hrir.dimensions()[3];
  const Analysis analysis(n, window, first, groups, weights, mel, features, hop, average, mel_floor, stft_floor);
  parallel_for(pool, in[0], [&](int64_t i) {
    float* out = wave->typed_data() + i * n * 2;
    render_clip(mono.typed_data() + i * sources * n, hrir.typed_data() + i * sources * 2 * taps, sources, n, taps, peak,
                out);
    analysis.run(i, out, floors, 0, analysis.n_frames, mel, features);
  });
  return ffi::Error::Success();
}

}  // namespace

#define ANALYSIS_ARGUMENTS Arg<Floats>().Arg<Floats>().Arg<Ints>().Arg<Ints>().Arg<Floats>()
#define ANALYSIS_ATTRIBUTES \
  Attr<int64_t>("hop").Attr<int64_t>("average").Attr<float>("mel_floor").Attr<float>("stft_floor")

XLA_FFI_DEFINE_HANDLER_SYMBOL(dualspec_analyse, analyse,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .ANALYSIS_ARGUMENTS.Ret<Floats>()
                                  .Ret<Floats>()
                                  .ANALYSIS_ATTRIBUTES);

XLA_FFI_DEFINE_HANDLER_SYMBOL(dualspec_render, render,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .ANALYSIS_ARGUMENTS.Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<float>("peak")
                                  .ANALYSIS_ATTRIBUTES);
