"""Head-related impulse responses (HRIRs): read them from a file or compute them for a rigid sphere, at any azimuth.

Azimuth is in degrees, 0 = front, counter-clockwise, 90 = left; ear 0 = left, ear 1 = right.
"""

import dataclasses
import functools
import math
import os
import warnings
from pathlib import Path

import numpy as np
import scipy.signal
import scipy.special

MAX_TAPS = 256  # 16 ms at 16 kHz: a head and its pinnae ring for less than 5 ms
MAX_ELEVATION_DEG = 2.5  # directions this close to ear height count as horizontal
MAX_GAP_DEG = 60.0  # between horizontal neighbours; over this an interpolated direction is a guess
SPEED_OF_SOUND = 343.0  # m/s


@dataclasses.dataclass(frozen=True)
class Hrtf:
    """Hold the HRIRs of one head.

    Attributes:
      hrir: float32 [D, 2, taps].
      azimuth_deg: float64 [D], in [0, 360).
      elevation_deg: float64 [D], 0 = ear height, positive = up.
      sample_rate: Hz.
      name: where the set comes from.
      licence: the licence that the file states.
    """

    hrir: np.ndarray
    azimuth_deg: np.ndarray
    elevation_deg: np.ndarray
    sample_rate: int
    name: str
    licence: str

    def __post_init__(self):
        if self.hrir.ndim != 3 or self.hrir.shape[1] != 2:
            raise ValueError(f"hrir has shape {self.hrir.shape} in {self.name}: it must be [directions, 2 ears, taps]")
        if not len(self.hrir) == len(self.azimuth_deg) == len(self.elevation_deg):
            raise ValueError(
                f"{self.name}: {len(self.hrir)} responses, {len(self.azimuth_deg)} azimuths and "
                f"{len(self.elevation_deg)} elevations; the three must be as many"
            )
        if not np.all(np.isfinite(self.hrir)):
            raise ValueError(f"{self.name}: hrir holds values that are not finite")

    def at(self, azimuth_deg) -> np.ndarray:
        """Return the HRIR of a horizontal direction, float32 [2, taps]; an array of B azimuths gives [B, 2, taps].

        A measured direction returns the measured response itself. In between, each ear's two neighbours are shifted in
        time onto each other by a fraction of their own delay, mixed, and brought to the level interpolated in dB:
        arrival times and levels both move steadily, and no comb filter arises as in a plain crossfade.

        Raises:
          ValueError: if an azimuth is not finite.
        """
        bank = self._bank
        azimuth = np.mod(np.atleast_1d(np.asarray(azimuth_deg, np.float64)), 360.0)
        if not np.all(np.isfinite(azimuth)):
            raise ValueError(f"azimuth_deg = {azimuth_deg!r}: must be finite")
        position = np.interp(azimuth, bank.azimuth_deg, np.arange(len(bank.azimuth_deg), dtype=np.float64))
        low = np.minimum(position.astype(np.int64), len(bank.spectra) - 1)
        w = (position - low)[:, None, None]
        high = (low + 1) % len(bank.spectra)
        turn = -2j * np.pi * np.fft.rfftfreq(bank.n_fft)
        delay = bank.delay[low][:, :, None]  # samples by which `high` arrives after `low`
        mix = (1 - w) * bank.spectra[low] * np.exp(turn * w * delay)
        mix += w * bank.spectra[high] * np.exp(turn * (w - 1) * delay)
        hrir = np.fft.irfft(mix, bank.n_fft)[..., : self.hrir.shape[-1]]
        energy = np.sum(hrir**2, -1, keepdims=True)
        wanted = bank.energy[low][:, :, None] ** (1 - w) * bank.energy[high][:, :, None] ** w
        hrir *= np.sqrt(wanted / np.maximum(energy, 1e-30))
        hrir = np.where(w == 0, bank.hrir[low], hrir).astype(np.float32)
        return hrir if np.ndim(azimuth_deg) else hrir[0]

    def spectrum(self, azimuth_deg, n_fft: int = 1024, n_bins: int = 512) -> np.ndarray:
        """Return the transfer function of a horizontal direction, complex64 [F, 2]; B azimuths give [B, F, 2]."""
        spectrum = np.fft.rfft(self.at(azimuth_deg), n_fft)[..., :n_bins]
        return np.swapaxes(spectrum, -1, -2).astype(np.complex64)

    @functools.cached_property
    def _bank(self) -> "_Bank":
        return _make_bank(self)


@dataclasses.dataclass(frozen=True)
class _Bank:
    """Hold the P horizontal directions by rising azimuth, and what interpolation needs of them.

    Attributes:
      azimuth_deg: [P + 1], the first again at its azimuth + 360; starts at or below 0.
      hrir, spectra: [P, 2, taps] and its Fourier transform, zero-padded to n_fft.
      delay: [P, 2] samples from each direction to the next.
      energy: [P, 2].
    """

    azimuth_deg: np.ndarray
    hrir: np.ndarray
    spectra: np.ndarray
    delay: np.ndarray
    energy: np.ndarray
    n_fft: int


def _make_bank(hrtf: Hrtf) -> _Bank:
    by_height = np.argsort(np.abs(hrtf.elevation_deg), kind="stable")
    by_height = by_height[np.abs(hrtf.elevation_deg[by_height]) <= MAX_ELEVATION_DEG]
    if not len(by_height):
        raise ValueError(
            f"{hrtf.name} has no horizontal directions: no elevation lies within {MAX_ELEVATION_DEG} degrees of 0"
        )
    azimuth, first = np.unique(np.round(np.mod(hrtf.azimuth_deg[by_height], 360.0), 3) % 360.0, return_index=True)
    hrir = hrtf.hrir[by_height[first]]
    gap = np.diff(np.append(azimuth, azimuth[0] + 360.0)).max()
    if gap > MAX_GAP_DEG:
        raise ValueError(
            f"{hrtf.name}: {len(azimuth)} horizontal directions leave a gap of {gap:.0f} degrees; "
            f"at most {MAX_GAP_DEG:.0f} can be interpolated"
        )
    n_fft = 2 ** math.ceil(math.log2(2 * hrir.shape[-1]))  # room for shifts without wrapping
    spectra = np.fft.rfft(hrir.astype(np.float64), n_fft)
    if azimuth[0] > 0:  # the table must start at or below 0 for `np.interp`
        azimuth = np.append(azimuth[-1] - 360.0, azimuth)
        order = np.r_[len(hrir) - 1, 0 : len(hrir) - 1]
        hrir, spectra = hrir[order], spectra[order]
    else:
        azimuth = np.append(azimuth, 360.0)
    return _Bank(
        azimuth_deg=azimuth,
        hrir=hrir,
        spectra=spectra,
        delay=_delays(spectra, np.roll(spectra, -1, axis=0), n_fft, hrtf.sample_rate),
        energy=np.sum(hrir.astype(np.float64) ** 2, -1),
        n_fft=n_fft,
    )


def _delays(first: np.ndarray, second: np.ndarray, n_fft: int, sample_rate: int, oversample: int = 64) -> np.ndarray:
    """Return how many samples `second` arrives after `first` [..., bins]: the peak of their cross-correlation.

    Only the band below about 1.5 kHz counts: in the head's shadow the higher bands have peaks of several paths.
    (KEMAR thinned to 10 degrees, then interpolated: error -30 dB so, -21 dB with all bands or with a plain crossfade.)
    The peak is read from a table `oversample` times finer than the samples, then refined by a parabola.
    """
    low_pass = 1 / (1 + (np.fft.rfftfreq(n_fft, 1 / sample_rate) / 1500.0) ** 4)
    correlation = np.fft.irfft(second * np.conj(first) * low_pass, n_fft * oversample)
    peak = np.argmax(correlation, -1)[..., None]
    near = np.take_along_axis(correlation, (peak + np.array([-1, 0, 1])) % (n_fft * oversample), -1)
    bend = near[..., 0] - 2 * near[..., 1] + near[..., 2]
    offset = np.where(bend < 0, 0.5 * (near[..., 0] - near[..., 2]) / np.where(bend < 0, bend, 1.0), 0.0)
    delay = (peak[..., 0] + offset) / oversample
    return np.where(delay > n_fft / 2, delay - n_fft, delay)


def load_hrtf(path, sample_rate: int = 16000) -> Hrtf:
    """Read an HRTF file and bring it to `sample_rate`.

    The responses are resampled, their common leading silence is cut, they are shortened to at most `MAX_TAPS` with a
    short fade, and scaled so that the mean energy of the two ears in front is 1.

    Args:
      path: a .sofa file of convention SimpleFreeFieldHRIR, or an .npz file with `hrir` [D, 2, taps], `azimuth_deg` and
        `elevation_deg` [D], `sample_rate` and `licence`.
      sample_rate: Hz.

    Raises:
      ValueError: naming the file and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"HRTF file {path} does not exist")
    if path.suffix == ".sofa":
        hrtf = _read_sofa(path)
    elif path.suffix == ".npz":
        hrtf = _read_npz(path)
    else:
        raise ValueError(f"HRTF file {path} ends in {path.suffix!r}: it must be .sofa or .npz")
    return _prepare(hrtf, sample_rate)


def default_hrtf(path=None, sample_rate: int = 16000) -> Hrtf:
    """Return the HRTF at `path`, else the first `$DUALSPEC_DATA/hrtf/*.sofa`, else the spherical head."""
    if path:
        return load_hrtf(path, sample_rate)
    root = os.environ.get("DUALSPEC_DATA")
    found = sorted(Path(root, "hrtf").glob("*.sofa")) if root else []
    return load_hrtf(found[0], sample_rate) if found else spherical_head(sample_rate)


def spherical_head(sample_rate: int = 16000, radius_m: float = 0.0875, ear_deg: float = 100.0) -> Hrtf:
    """Compute the horizontal HRIRs of a rigid sphere for distant sources, every 5 degrees.

    The pressure on the sphere at an angle theta from the source, over that at its centre in free field, with mu = k a:
        H = 1 / mu^2 * sum_m i^(m+1) (2 m + 1) P_m(-cos theta) / h_m'(mu)   (time factor exp(-i w t)).

    Args:
      sample_rate: Hz.
      radius_m: of the sphere.
      ear_deg: azimuth of the left ear; the right ear mirrors it. 100 lies a little behind the side, as real ears do.

    Source: Duda & Martens 1998, "Range dependence of the response of a spherical head model", for infinite range.
    """
    fine_rate, n_fft = 4 * sample_rate, 2048  # computed at 4 times the rate, so that the band edge is filtered smoothly
    frequency = np.fft.rfftfreq(n_fft, 1 / fine_rate)[1:]
    mu = 2 * np.pi * frequency * radius_m / SPEED_OF_SOUND
    order = np.arange(int(mu[-1]) + 40)
    with np.errstate(all="ignore"):  # high orders overflow at low mu; their terms vanish
        slope = scipy.special.spherical_jn(order[:, None], mu, derivative=True)
        slope = slope + 1j * scipy.special.spherical_yn(order[:, None], mu, derivative=True)
        terms = 1j ** ((order[:, None] + 1) % 4) * (2 * order[:, None] + 1) / (mu**2 * slope)
    terms = np.where(np.isfinite(terms), terms, 0.0)
    azimuth = np.arange(0.0, 360.0, 5.0)
    angle = np.deg2rad(azimuth[:, None] - np.array([ear_deg, -ear_deg]))
    legendre = scipy.special.eval_legendre(order, -np.cos(angle)[..., None])
    response = np.conj(legendre @ terms)  # to the time factor exp(+i w t)
    response = np.concatenate([np.ones_like(response[..., :1]), response], -1)
    lead = 0.002 * fine_rate  # samples before the centre's arrival, so that nothing wraps
    response = response * np.exp(-2j * np.pi * np.fft.rfftfreq(n_fft) * lead)
    hrtf = Hrtf(
        hrir=np.fft.irfft(response, n_fft),
        azimuth_deg=azimuth,
        elevation_deg=np.zeros_like(azimuth),
        sample_rate=fine_rate,
        name="rigid sphere",
        licence="computed",
    )
    return _prepare(hrtf, sample_rate)


def _read_sofa(path: Path) -> Hrtf:
    import sofar  # with netCDF4 it takes a second to import: only where a SOFA file is read

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes on older versions of the convention
            sofa = sofar.read_sofa(str(path), verify=False, verbose=False)
    except Exception as error:  # netCDF4, sofar and OS errors of many kinds
        raise ValueError(f"{path} is not a readable SOFA file: {error}") from error
    convention = getattr(sofa, "GLOBAL_SOFAConventions", "none")
    hrir, source = getattr(sofa, "Data_IR", None), getattr(sofa, "SourcePosition", None)
    if hrir is None or source is None or np.ndim(hrir) != 3 or np.shape(hrir)[1] != 2:
        raise ValueError(f"{path} has SOFA convention {convention}: it must be SimpleFreeFieldHRIR with two ears")
    hrir = np.asarray(hrir, np.float64)
    source = np.broadcast_to(np.atleast_2d(np.asarray(source, np.float64)), (len(hrir), 3))
    if str(getattr(sofa, "SourcePosition_Type", "spherical")).lower().startswith("cartesian"):
        x, y, z = source.T
        azimuth, elevation = np.rad2deg(np.arctan2(y, x)), np.rad2deg(np.arctan2(z, np.hypot(x, y)))
    else:
        azimuth, elevation = source[:, 0], source[:, 1]
    hrir = _apply_delay(hrir, getattr(sofa, "Data_Delay", 0.0))
    if _right_ear_first(sofa):
        hrir = hrir[:, ::-1]
    return Hrtf(
        hrir=hrir,
        azimuth_deg=np.mod(azimuth, 360.0),
        elevation_deg=np.asarray(elevation, np.float64),
        sample_rate=round(float(np.ravel(sofa.Data_SamplingRate)[0])),
        name=path.name,
        licence=str(getattr(sofa, "GLOBAL_License", "") or "not stated"),
    )


def _apply_delay(hrir: np.ndarray, delay) -> np.ndarray:
    """Shift each response by the broadband delay, in samples, that SOFA stores beside it."""
    delay = np.atleast_2d(np.asarray(delay, np.float64))
    if not np.any(delay):
        return hrir
    delay = np.broadcast_to(delay, hrir.shape[:2])
    n = hrir.shape[-1] + math.ceil(delay.max()) + 32
    turn = np.exp(-2j * np.pi * np.fft.rfftfreq(2 * n) * delay[..., None])
    return np.fft.irfft(np.fft.rfft(hrir, 2 * n) * turn, 2 * n)[..., :n]


def _right_ear_first(sofa) -> bool:
    """Tell from the receivers' positions whether the first ear is the right one (its y is negative)."""
    receivers = np.asarray(getattr(sofa, "ReceiverPosition", np.zeros((2, 3))), np.float64)
    receivers = receivers.reshape(receivers.shape[0], receivers.shape[1], -1)[..., 0]
    if receivers.shape[0] != 2:
        return False
    if str(getattr(sofa, "ReceiverPosition_Type", "cartesian")).lower().startswith("spherical"):
        side = np.sin(np.deg2rad(receivers[:, 0]))
    else:
        side = receivers[:, 1]
    return bool(side[0] < -1e-6 and side[1] > 1e-6)


def _read_npz(path: Path) -> Hrtf:
    try:
        arrays = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable npz file: {error}") from error
    missing = [k for k in ("hrir", "azimuth_deg", "elevation_deg", "sample_rate") if k not in arrays]
    if missing:
        raise ValueError(f"{path} lacks the array {missing[0]!r}")
    return Hrtf(
        hrir=np.asarray(arrays["hrir"], np.float64),
        azimuth_deg=np.mod(np.asarray(arrays["azimuth_deg"], np.float64), 360.0),
        elevation_deg=np.asarray(arrays["elevation_deg"], np.float64),
        sample_rate=int(arrays["sample_rate"]),
        name=path.name,
        licence=str(arrays["licence"]) if "licence" in arrays else "not stated",
    )


def _prepare(hrtf: Hrtf, sample_rate: int) -> Hrtf:
    """Resample, cut the common leading silence, shorten with a fade, and scale (see `load_hrtf`)."""
    hrir = resample(np.asarray(hrtf.hrir, np.float64), hrtf.sample_rate, sample_rate)
    peak = np.max(np.abs(hrir), axis=-1, keepdims=True)
    if not np.all(peak > 0):
        raise ValueError(f"{hrtf.name}: the response of direction {int(np.argmin(peak.min((1, 2))))} is all zero")
    onset = np.argmax(np.abs(hrir) > 0.05 * peak, axis=-1).min()
    hrir = hrir[..., max(0, onset - 8) :][..., :MAX_TAPS]  # 8 samples keep the resampling filter's rise
    fade = min(16, hrir.shape[-1])
    hrir[..., -fade:] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(1, fade + 1) / (fade + 1))
    front = np.argmin(1 - np.cos(np.deg2rad(hrtf.azimuth_deg)) * np.cos(np.deg2rad(hrtf.elevation_deg)))
    hrir *= np.sqrt(2.0 / np.sum(hrir[front] ** 2))
    prepared = dataclasses.replace(hrtf, hrir=hrir.astype(np.float32), sample_rate=sample_rate)
    _ = prepared._bank  # a set without horizontal directions fails here, where its file is named
    return prepared


def resample(x: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Change the sample rate along the last axis, without delay; pass band to 93 % of the lower Nyquist frequency."""
    if rate == new_rate:
        return x.copy()
    divisor = math.gcd(rate, new_rate)
    up, down = new_rate // divisor, rate // divisor
    widest = max(up, down)
    n_taps, beta = scipy.signal.kaiserord(100.0, 0.08 / widest)
    window = scipy.signal.firwin(n_taps | 1, 0.97 / widest, window=("kaiser", beta))
    x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, math.ceil(32 * widest / up))])  # room for the filter's tail
    return scipy.signal.resample_poly(x, up, down, axis=-1, window=window)
