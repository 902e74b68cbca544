"""Interaural statistics of imagined scenes, for training a localiser without rendering audio.

What `ops.interaural.interaural_statistics` finds in a long clip depends on transfer functions and on the colour of the
sound only: so scenes are drawn as a source spectrum, a head, echoes, a diffuse field and the scatter of an estimate.
"""

import dataclasses
import functools
import itertools

import numpy as np

from dualspec_jax.spatial.hrtf import Hrtf, spherical_head

AZIMUTHS = 360  # of the table of transfer functions
HEAD_RADII_M = (0.078, 0.085, 0.09, 0.098)
EAR_ANGLES_DEG = (92.0, 102.0)
SCALES = (0.92, 1.0, 1.08)  # of the frequencies of a measured head: a larger or smaller one
MAX_ECHOES = 5


@dataclasses.dataclass(frozen=True)
class CueScenes:
    """Draw scenes: `scenes.draw(azimuth_deg, rng)` is float32 [F, 4]; see `ops.interaural`.

    Attributes:
      spectra: complex64 [heads, AZIMUTHS, F, 2].
      measured: bool [heads]: ears with pinnae; the others get imagined ones, for the direct sound.
      fields: (power [heads, F, 2], cross [heads, F]) of a diffuse field.
      sample_rate: Hz.
    """

    spectra: np.ndarray
    measured: np.ndarray
    fields: tuple[np.ndarray, np.ndarray]
    sample_rate: int

    def draw(self, azimuth_deg: float, rng: np.random.Generator) -> np.ndarray:
        """Return the interaural statistics of a random scene, its source at the degree nearest to the azimuth."""
        azimuth = round(azimuth_deg) % AZIMUTHS
        head = int(rng.integers(len(self.spectra)))
        table, n_bins = self.spectra[head], self.spectra.shape[2]
        freqs = np.arange(n_bins, dtype=np.float32) * np.float32(self.sample_rate / (2 * n_bins))
        ears = table[azimuth]
        if not self.measured[head]:
            ears = ears * _imagined_pinnae(azimuth, freqs, rng)
        diffuse = 0.0
        if rng.uniform() < 0.6:  # a room: echoes within a frame interfere, later ones add as a diffuse field
            count = int(rng.integers(1, MAX_ECHOES + 1))
            gains = np.float32(10 ** (-rng.uniform(4.0, 20.0) / 20.0) * rng.normal(size=(count, 1)))
            turn = np.float32(-2.0 * np.pi * rng.uniform(0.7e-3, 30e-3, size=(count, 1))) * freqs
            echoes = gains * np.cos(turn) + 1j * (gains * np.sin(turn))
            ears = ears + np.einsum("kf,kfe->fe", echoes, table[rng.integers(AZIMUTHS, size=count)])
            diffuse = 10 ** (-rng.uniform(-2.0, 20.0) / 10.0)
        ears = ears * _ripple(freqs, rng)
        field, field_cross = self.fields[0][head], self.fields[1][head]
        source = _colour(freqs, rng)
        noise = np.max(source) * 10 ** (-rng.uniform(4.0, 9.0))  # of the recording, not alike in the two ears
        power = source[:, None] * (np.abs(ears) ** 2 + diffuse * field) + noise
        cross = source * (ears[:, 0] * np.conj(ears[:, 1]) + diffuse * field_cross)
        # Scatter of the estimates from a clip of finite length: independent cells of the spectrogram are few.
        cells = 10 ** rng.uniform(0.7, 2.3)
        incoherence = np.maximum(1.0 - np.abs(cross) ** 2 / (power[:, 0] * power[:, 1] + 1e-30), 0.0)
        size = np.sqrt(incoherence / cells)
        scatter = (rng.normal(size=n_bins) + 1j * rng.normal(size=n_bins)) * np.sqrt(0.5)
        cross = cross + size * np.sqrt(power[:, 0] * power[:, 1]) * scatter
        power = power * np.exp(size[:, None] * rng.normal(size=(n_bins, 2)))
        bound = np.sqrt(power[:, 0] * power[:, 1])
        cross = cross * np.minimum(1.0, bound / (np.abs(cross) + 1e-30))
        return np.stack([power[:, 0], power[:, 1], cross.real, cross.imag], axis=-1).astype(np.float32)


def make_cue_scenes(
    measured: Hrtf | None = None, *, sample_rate: int = 16000, n_fft: int = 1024, n_bins: int = 512
) -> CueScenes:
    """Return scenes of spherical heads of several sizes and, if given, of a measured head at three scales.

    With a measured head, half of the table is that head, so that scenes draw both kinds as often.
    """
    circle = np.arange(float(AZIMUTHS))
    spectra = list(_sphere_spectra(sample_rate, n_fft, n_bins))
    is_measured = [False] * len(spectra)
    if measured is not None:
        plain = measured.spectrum(circle, n_fft, n_bins)
        scaled = [_scale_frequencies(plain, scale) for scale in SCALES]
        copies = [plain, *scaled] * (len(spectra) // (len(SCALES) + 1))
        spectra += copies
        is_measured += [True] * len(copies)
    table = np.stack(spectra)
    every = table[:, ::15]
    fields = np.mean(np.abs(every) ** 2, axis=1), np.mean(every[..., 0] * np.conj(every[..., 1]), axis=1)
    return CueScenes(table, np.array(is_measured), fields, sample_rate)


@functools.lru_cache(maxsize=2)
def _sphere_spectra(sample_rate: int, n_fft: int, n_bins: int) -> np.ndarray:
    """Return complex64 [heads, AZIMUTHS, F, 2] of spheres of all sizes and ear angles; it takes two seconds."""
    circle = np.arange(float(AZIMUTHS))
    sizes = itertools.product(HEAD_RADII_M, EAR_ANGLES_DEG)
    heads = [spherical_head(sample_rate, radius_m=radius, ear_deg=ear) for radius, ear in sizes]
    return np.stack([head.spectrum(circle, n_fft, n_bins) for head in heads])


def _scale_frequencies(spectra: np.ndarray, scale: float) -> np.ndarray:
    """Return H(scale * f) of complex [A, F, 2]: of a head larger by that factor."""
    place = np.minimum(np.arange(spectra.shape[1]) * scale, spectra.shape[1] - 1)
    low = np.minimum(place.astype(int), spectra.shape[1] - 2)
    share = (place - low)[:, None].astype(np.float32)
    level = np.log(np.abs(spectra) + 1e-6)
    phase = np.unwrap(np.angle(spectra), axis=1)
    mix = lambda x: (1.0 - share) * x[:, low] + share * x[:, low + 1]
    return np.exp(mix(level) + 1j * mix(phase)).astype(np.complex64)


def _imagined_pinnae(azimuth: float, freqs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return gains [F, 2] of a random pair of equal pinnae: an echo that moves with the angle, a duller rear."""
    angle = np.deg2rad(azimuth - np.array([1.0, -1.0]) * rng.uniform(30.0, 60.0))  # off each ear's axis
    facing = np.cos(angle)  # 1 where the pinna opens to
    delay = rng.uniform(50e-6, 120e-6) * (1.0 + rng.uniform(0.2, 0.6) * facing)
    f = freqs[:, None]
    turn, strength = -2.0 * np.pi * f * delay.astype(np.float32), rng.uniform(0.1, 0.6)
    echo = 1.0 + strength * (np.cos(turn) + 1j * np.sin(turn))
    shadow_db = rng.uniform(2.0, 12.0) * np.minimum(f / 6000.0, 1.0) * 0.5 * (1.0 - facing)
    return echo * 10 ** (-shadow_db / 20.0)


def _ripple(freqs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return smooth gains [F, 2] that differ a little between the ears: errors of level and phase of any real ear."""
    x = freqs / freqs[-1]
    order = np.arange(5)
    curves = np.cos(np.pi * order * x[:, None])
    level = curves @ (rng.normal(size=(5, 2)) * 0.05)
    phase = curves[:, 1:] @ (rng.normal(size=(4, 2)) * 0.06)
    return np.exp(level + 1j * phase)


def _colour(freqs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the power spectrum of a random sound [F]: a slope, bumps, sometimes a band only, sometimes harmonics."""
    octaves = np.log2(np.maximum(freqs, 50.0) / 1000.0)
    level_db = -rng.uniform(0.0, 8.0) * octaves
    knots = rng.normal(size=12) * rng.uniform(2.0, 12.0)
    level_db = level_db + np.interp(octaves, np.linspace(octaves[0], octaves[-1], 12), knots)
    level_db = level_db + 4.0 * rng.normal(size=len(freqs))
    if rng.uniform() < 0.3:
        middle, width = rng.uniform(-2.0, 2.5), rng.uniform(0.7, 2.0)
        level_db = level_db - 12.0 * np.maximum(np.abs(octaves - middle) - width, 0.0)
    if rng.uniform() < 0.3:
        pitch = 2.0 ** rng.uniform(6.5, 10.5)
        level_db = level_db - rng.uniform(5.0, 25.0) * (0.5 - 0.5 * np.cos(2 * np.pi * freqs / pitch))
    return 10 ** (level_db / 10.0)
