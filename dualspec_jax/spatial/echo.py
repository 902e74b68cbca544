"""Two-ear responses of imagined rooms, for testing localisers: first echoes by image sources, then a diffuse tail."""

import numpy as np
import scipy.signal

from dualspec_jax.spatial.hrtf import SPEED_OF_SOUND, Hrtf

ORDER = 3  # images of the walls at most this many times
TAIL_DIRECTIONS = 16


def room_response(
    hrtf: Hrtf,
    azimuth_deg: float,
    rng: np.random.Generator,
    *,
    size_m: tuple[float, float] = (6.0, 5.0),
    distance_m: float = 1.5,
    absorption: float = 0.4,
    rt60_s: float = 0.4,
) -> np.ndarray:
    """Return the response of both ears in a rectangular room, float32 [2, taps], the direct sound as in `hrtf.at`.

    The listener stands at a random place and heading, at least 1 m from the walls and with the source inside the room.
    Floor and ceiling add to the tail only, as heads here have no elevation. The tail starts with the last first-order
    echo, comes from all around, decays by 60 dB in rt60_s and starts at the level of the echoes before it.

    Args:
      azimuth_deg: of the source.
      absorption: share of the energy that a wall takes, in (0, 1).

    Raises:
      ValueError: absorption out of range, or a room that does not hold the source.

    Source: Allen and Berkley 1979, J. Acoust. Soc. Am. 65 (4), for the images.
    """
    if not 0.0 < absorption < 1.0:
        raise ValueError(f"absorption = {absorption}: must be in (0, 1)")
    if min(size_m) < 2.0 + distance_m:
        raise ValueError(f"size_m = {size_m}: each side must be at least 2 m more than distance_m = {distance_m}")
    size = np.array(size_m)
    while True:
        heading = rng.uniform(0.0, 2.0 * np.pi)
        listener = rng.uniform(1.0, size - 1.0)
        angle = heading + np.deg2rad(azimuth_deg)
        source = listener + distance_m * np.array([np.cos(angle), np.sin(angle)])
        if np.all(source > 0.3) and np.all(source < size - 0.3):
            break
    rate, reflect = hrtf.sample_rate, np.sqrt(1.0 - absorption)
    azimuths, delays, gains = [], [], []
    for i in range(-ORDER, ORDER + 1):
        for j in range(-ORDER + abs(i), ORDER - abs(i) + 1):
            image = np.array([_image(source[0], size[0], i), _image(source[1], size[1], j)])
            offset = image - listener
            distance = float(np.hypot(*offset))
            azimuths.append(np.rad2deg(np.arctan2(offset[1], offset[0]) - heading) % 360.0)
            delays.append((distance - distance_m) / SPEED_OF_SOUND * rate)
            gains.append(reflect ** (abs(i) + abs(j)) * distance_m / distance)
    direct = int(np.argmin(delays))
    azimuths[direct], delays[direct] = azimuth_deg, 0.0
    heads = hrtf.at(np.array(azimuths))
    taps = heads.shape[-1]
    length = int(rt60_s * rate) + taps
    response = np.zeros((2, length + int(max(delays)) + 2))
    for head, delay, gain in zip(heads, delays, gains, strict=True):
        start = round(delay)
        response[:, start : start + taps] += gain * head
    response = response[:, :length]

    start = int(np.sort(delays)[4])  # the direct sound and four walls come first
    decay = 10 ** (-3.0 * np.arange(length - start) / (rt60_s * rate))
    tail = np.zeros((2, length))
    for head in hrtf.at(np.arange(TAIL_DIRECTIONS) * 360.0 / TAIL_DIRECTIONS):
        noise = rng.standard_normal(length - start) * decay
        tail[:, start:] += scipy.signal.fftconvolve(noise[None], head, axes=-1)[:, : length - start]
    # Energy of the tail as in a diffuse field: that of the walls' echoes, per time, at the moment it starts.
    echoes = sum(g**2 for g, d in zip(gains, delays, strict=True) if 0 < d <= 2 * start) / max(start, 1)
    tail *= np.sqrt(echoes / TAIL_DIRECTIONS)
    return (response + tail).astype(np.float32)


def _image(place: float, size: float, order: int) -> float:
    """Return the coordinate of a place mirrored `order` times along an axis from 0 to size."""
    return order * size + (place if order % 2 == 0 else size - place)


def render_in_room(mono: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolve a mono clip [N] with a response [2, taps], cut to N samples: float32 [N, 2]."""
    return scipy.signal.fftconvolve(mono[None], response, axes=-1)[:, : len(mono)].T.astype(np.float32)
