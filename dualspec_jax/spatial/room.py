"""Two-ear impulse responses of shoebox rooms: image sources by pyroomacoustics, each heard through the HRTF.

The direct sound is the HRTF's own response of the source's direction, at gain 1 and without delay, so that a scene in a
room has the same direct sound, ITD and ILD as the scene without one. Reflections follow it. Up to the mixing time they
are image sources; after it, where single reflections can no longer be told apart, noise from all directions decays as
the room's reverberation time says.
"""

import dataclasses
import warnings

import numpy as np

from dualspec_jax.spatial.hrtf import SPEED_OF_SOUND, Hrtf

ORDER = 8  # reflections of an image source
FIELD_DIRECTIONS = 96  # of the diffuse tail
WALL_GAP_M = 0.3  # from a source to a wall
HEAD_GAP_M = 0.9  # from the head's centre to a wall
SINC_HALF = 16  # taps on each side of a delayed impulse


@dataclasses.dataclass(frozen=True)
class RoomRanges:
    """Bound the rooms that are drawn.

    Attributes:
      size_m: smallest and largest (length, width, height).
      rt60_s: reverberation time.
      distance_m: from the head to a source; shorter where a wall is nearer.
      ear_height_m: of the head, and of all sources.
      max_taps: samples kept of a response.
    """

    size_m: tuple[tuple[float, float, float], tuple[float, float, float]] = ((3.0, 2.8, 2.4), (10.0, 8.0, 4.0))
    rt60_s: tuple[float, float] = (0.2, 0.6)
    distance_m: tuple[float, float] = (0.7, 3.0)
    ear_height_m: tuple[float, float] = (1.1, 1.7)
    max_taps: int = 8000

    def __post_init__(self):
        for name, low, high in (
            *((f"size_m[{i}]", self.size_m[0][i], self.size_m[1][i]) for i in range(3)),
            ("rt60_s", *self.rt60_s),
            ("distance_m", *self.distance_m),
            ("ear_height_m", *self.ear_height_m),
        ):
            if not 0 < low <= high:
                raise ValueError(f"rooms.{name} = ({low}, {high}): must be positive and rising")
        if min(self.size_m[0][:2]) < 2 * HEAD_GAP_M:
            raise ValueError(f"rooms.size_m = {self.size_m[0]}: length and width must be at least {2 * HEAD_GAP_M} m")
        if self.ear_height_m[1] > self.size_m[0][2] - WALL_GAP_M:
            raise ValueError(f"rooms.ear_height_m = {self.ear_height_m}: must stay {WALL_GAP_M} m below the ceiling")


@dataclasses.dataclass(frozen=True)
class Room:
    """Hold one room and the head in it.

    Attributes:
      size_m: length, width, height.
      rt60_s: reverberation time.
      absorption: energy absorption of the walls, 0 to 1 (Sabine).
      head_m: place of the head.
      yaw_deg: where the head looks, counter-clockwise from the room's x axis.
    """

    size_m: tuple[float, float, float]
    rt60_s: float
    absorption: float
    head_m: tuple[float, float, float]
    yaw_deg: float

    def to_json(self) -> dict:
        """Return the fields rounded to millimetres, milliseconds and tenths of a degree."""
        fields = dataclasses.asdict(self)
        return {
            name: [round(float(x), 3) for x in value] if isinstance(value, tuple) else round(float(value), 3)
            for name, value in fields.items()
        }


def draw_room(ranges: RoomRanges, rng: np.random.Generator) -> Room:
    """Draw a room, and a place and a heading for the head in it.

    The absorption is Sabine's for the reverberation time; where even walls that absorb nearly all leave it longer, it
    is 0.99 and the time is that of these walls.
    """
    size = np.array([rng.uniform(low, high) for low, high in zip(*ranges.size_m, strict=True)])
    rt60 = float(rng.uniform(*ranges.rt60_s))
    volume = float(np.prod(size))
    surface = 2 * float(size[0] * size[1] + size[1] * size[2] + size[0] * size[2])
    sabine = 24 * np.log(10) / SPEED_OF_SOUND * volume / surface
    absorption = min(0.99, sabine / rt60)
    head = [rng.uniform(HEAD_GAP_M, x - HEAD_GAP_M) for x in size[:2]] + [rng.uniform(*ranges.ear_height_m)]
    return Room(
        size_m=tuple(size.tolist()),
        rt60_s=float(sabine / absorption),
        absorption=float(absorption),
        head_m=tuple(map(float, head)),
        yaw_deg=float(rng.uniform(0, 360)),
    )


def draw_distance(room: Room, azimuth_deg: float, ranges: RoomRanges, rng: np.random.Generator) -> float:
    """Draw the distance of a source in a direction, in metres, so that it stays inside the room."""
    x, y = _unit(room.yaw_deg + azimuth_deg)
    free = [
        ((size - head if step > 0 else head) - WALL_GAP_M) / abs(step)
        for size, head, step in zip(room.size_m[:2], room.head_m[:2], (x, y), strict=True)
        if abs(step) > 1e-9
    ]
    return float(min(rng.uniform(*ranges.distance_m), min(free)))


def render_room(
    room: Room, azimuth_deg: float, distance_m: float, hrtf: Hrtf, rng: np.random.Generator, max_taps: int
) -> np.ndarray:
    """Return the impulse response of a horizontal source at both ears, float32 [2, max_taps].

    Args:
      distance_m: the direct sound has gain 1 at any distance; the reflections grow with it.
      rng: draws the noise of the tail.

    Raises:
      ValueError: the source lies outside the room.
    """
    x, y = _unit(room.yaw_deg + azimuth_deg)
    head = np.array(room.head_m)
    source = head + distance_m * np.array([x, y, 0.0])
    if not np.all((source > 0) & (source < room.size_m)):
        raise ValueError(f"distance_m = {distance_m}: the source lies outside the room of {room.size_m} m")
    images, gains = _image_sources(room, source)
    offset = images - head
    distance = np.linalg.norm(offset, axis=1)
    reflected = distance > distance_m + 1e-6
    offset, distance, gains = offset[reflected], distance[reflected], gains[reflected]
    mixing = (ORDER + 1) * min(room.size_m) / SPEED_OF_SOUND  # s; until then no image source is missing
    rate, start = hrtf.sample_rate, distance_m / SPEED_OF_SOUND
    delay = (distance / SPEED_OF_SOUND - start) * rate  # samples after the direct sound
    early = (distance / SPEED_OF_SOUND < mixing) & (delay < max_taps - 2)
    azimuth = np.rad2deg(np.arctan2(offset[:, 1], offset[:, 0])) - room.yaw_deg
    elevation = np.rad2deg(np.arcsin(offset[:, 2] / distance))
    ears = _nearest(hrtf, azimuth, elevation)
    pulses, used = _place_pulses(ears[early], delay[early], distance_m * gains[early] / distance[early], max_taps)
    tail, directions = _tail(room, hrtf, (mixing - start) * rate, start, distance_m, max_taps, rng)
    n_fft = 2 ** int(np.ceil(np.log2(max_taps + hrtf.hrir.shape[-1])))
    spectrum = np.zeros((2, n_fft // 2 + 1), np.complex128)
    for signals, where in ((pulses, used), (tail, directions)):
        for i in range(0, len(signals), 64):  # in parts: all directions at once would be large
            part = np.fft.rfft(signals[i : i + 64], n_fft)
            ears_part = np.fft.rfft(hrtf.hrir[where[i : i + 64]], n_fft)
            spectrum += np.einsum("df,def->ef", part, ears_part)
    response = np.fft.irfft(spectrum, n_fft)[:, :max_taps]
    direct = hrtf.at(azimuth_deg)
    response[:, : direct.shape[-1]] += direct[:, :max_taps]
    return response.astype(np.float32)


def _unit(angle_deg: float) -> tuple[float, float]:
    return float(np.cos(np.deg2rad(angle_deg))), float(np.sin(np.deg2rad(angle_deg)))


def _image_sources(room: Room, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places [n, 3] and pressure gains [n] (walls only, not distance) of all image sources."""
    import pyroomacoustics  # the extra `rooms`

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        box = pyroomacoustics.ShoeBox(
            room.size_m, fs=16000, materials=pyroomacoustics.Material(room.absorption), max_order=ORDER
        )
        box.add_source(source)
        box.add_microphone(np.array(room.head_m)[:, None])
        box.image_source_model()
    images = box.sources[0]
    return images.images.T.astype(np.float64), images.damping[0].astype(np.float64)


def _nearest(hrtf: Hrtf, azimuth_deg: np.ndarray, elevation_deg: np.ndarray) -> np.ndarray:
    """Return the index of the measured direction nearest to each of n directions, int [n]."""
    return np.argmax(_vectors(azimuth_deg, elevation_deg) @ _vectors(hrtf.azimuth_deg, hrtf.elevation_deg).T, axis=1)


def _vectors(azimuth_deg, elevation_deg) -> np.ndarray:
    a, e = np.deg2rad(azimuth_deg), np.deg2rad(elevation_deg)
    return np.stack([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)], axis=-1)


def _place_pulses(ears: np.ndarray, delay: np.ndarray, gain: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum delayed impulses [n] for each direction: windowed sinc functions around delays in samples.

    Returns:
      The signals [D, n] of the D directions that occur, and these directions.
    """
    used, row = np.unique(ears, return_inverse=True)
    whole = np.floor(delay).astype(np.int64)
    taps = np.arange(-SINC_HALF + 1, SINC_HALF + 1)
    x = taps - (delay - whole)[:, None]
    pulse = gain[:, None] * np.sinc(x) * np.cos(0.5 * np.pi * x / (SINC_HALF + 1)) ** 2
    place = whole[:, None] + taps
    inside = (place >= 0) & (place < n)
    signals = np.zeros((len(used), n))
    np.add.at(signals, (np.broadcast_to(row[:, None], place.shape)[inside], place[inside]), pulse[inside])
    return signals, used


def _tail(room: Room, hrtf: Hrtf, first: float, start_s: float, distance_m: float, n: int, rng):
    """Return decaying noise [D, n] from D directions all around, from sample `first` on, and the directions.

    A room of volume V sends 4 pi c / V times as much energy a second as the direct sound at 1 m, less what the walls
    take: exp(-13.8 t / rt60), t counted from the moment the source sounds.
    """
    z = rng.uniform(-1, 1, FIELD_DIRECTIONS)
    where = _nearest(hrtf, rng.uniform(0, 360, FIELD_DIRECTIONS), np.rad2deg(np.arcsin(z)))
    noise = rng.standard_normal((FIELD_DIRECTIONS, n))
    t = np.arange(n) / hrtf.sample_rate + start_s
    per_sample = 4 * np.pi * SPEED_OF_SOUND / (np.prod(room.size_m) * hrtf.sample_rate) * distance_m**2
    envelope = np.sqrt(per_sample * np.exp(-6 * np.log(10) * t / room.rt60_s) / FIELD_DIRECTIONS)
    return noise * np.where(np.arange(n) >= first, envelope, 0.0), where
