"""Place given sounds around a head: `python -m dualspec_jax.spatialize in.wav --direction "3 o'clock"`.

Several files with a direction each become one scene. The result keeps the files' sample rate, the highest of them.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dualspec_jax.flag_types import guarded, warn
from dualspec_jax.sample import SUFFIXES
from dualspec_jax.spatial.direction import parse_direction, validate_azimuth
from dualspec_jax.wav import FORMATS, peak_gain, suffix_of, write_atomically, write_audio

MIN_RATE, MAX_RATE = 8000, 96000  # Hz
_TAIL_SEED = 0  # of the noise in a room's late reverberation


@dataclass(frozen=True)
class Source:
    """A sound and its place.

    Attributes:
      mono: float32 [N].
      azimuth_deg: in [0, 360).
      gain_db: how much louder it is made.
    """

    mono: np.ndarray
    sample_rate: int
    azimuth_deg: float
    gain_db: float = 0.0


@dataclass(frozen=True)
class RoomSpec:
    """A shoebox room with the head in its middle, looking along its length.

    Attributes:
      size_m: length, width, height.
      rt60_s: reverberation time.
      distance_m: of all sources from the head.
    """

    size_m: tuple[float, float, float]
    rt60_s: float = 0.4
    distance_m: float = 1.5

    def __post_init__(self):
        if len(self.size_m) != 3 or not all(2.0 <= x <= 50.0 for x in self.size_m):
            raise ValueError(f"room = {self.size_m}: must be length, width and height in [2, 50] m")
        if not 0.05 <= self.rt60_s <= 5.0:
            raise ValueError(f"rt60 = {self.rt60_s}: must be in [0.05, 5] s")
        furthest = min(self.size_m[:2]) / 2 - 0.1
        if not 0.2 <= self.distance_m <= furthest:
            raise ValueError(f"distance = {self.distance_m}: must be in [0.2, {furthest:g}] m, inside the room")


def parse_place(text: str) -> float:
    """Return the azimuth of a number of degrees or of words such as "3 o'clock" or "behind me".

    Raises:
      ValueError: no number, and no direction in the words, or a contradictory one.
    """
    if re.fullmatch(r"\s*[-+]?[\d.]+\s*", text):
        return validate_azimuth(text)
    direction = parse_direction(text) or parse_direction(f"at {text}")
    if direction is None:
        raise ValueError(f"direction = {text!r}: names no direction, such as 3 o'clock, behind me or 37.5")
    return direction.azimuth_deg


def read_sound(path: Path) -> tuple[np.ndarray, int]:
    """Return (mono float32 [N], sample rate) of an audio file; several channels are averaged, with a warning.

    Raises:
      ValueError: naming the file, if it cannot be read, is empty, not finite, or of a rate out of range.
    """
    import soundfile

    try:
        audio, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as e:
        raise ValueError(f"input = {str(path)!r}: cannot be read ({e})") from e
    if not len(audio) or not np.all(np.isfinite(audio)):
        raise ValueError(f"input = {str(path)!r}: must hold samples, all of them finite")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(f"input = {str(path)!r}: sample rate {rate} must be in [{MIN_RATE}, {MAX_RATE}] Hz")
    if audio.shape[1] > 1:
        warn(f"{path}: its {audio.shape[1]} channels are averaged")
    return audio.mean(axis=1), rate


def spatialize(
    sources: Sequence[Source], hrtf: str | Path | None = None, room: RoomSpec | None = None
) -> tuple[np.ndarray, int]:
    """Render sources around one head; return (float32 [N, 2], sample rate), N being the longest with its reverberation.

    Args:
      hrtf: SOFA or npz file; None takes `$DUALSPEC_DATA/hrtf/*.sofa`, else a spherical head.
      room: None is the open air. The direct sound has the same level with and without a room.

    Raises:
      ValueError: no sources, an unreadable HRTF, or pyroomacoustics (the extra `rooms`) is missing for a room.
    """
    import scipy.signal

    from dualspec_jax.spatial.hrtf import default_hrtf, resample

    if not sources:
        raise ValueError("sources: must be at least one")
    rate = max(source.sample_rate for source in sources)
    head = default_hrtf(hrtf, rate)
    rendered = []
    for source in sources:
        length = -(-len(source.mono) * rate // source.sample_rate)  # without the resampling filter's tail
        mono = resample(source.mono, source.sample_rate, rate)[:length] * 10.0 ** (source.gain_db / 20.0)
        ears = head.at(source.azimuth_deg) if room is None else _room_response(room, source.azimuth_deg, head)
        rendered.append(scipy.signal.oaconvolve(mono[None], ears, axes=-1).T)
    scene = np.zeros((max(map(len, rendered)), 2), np.float32)
    for waveform in rendered:
        scene[: len(waveform)] += waveform
    return scene * np.float32(peak_gain(scene)), rate


def _room_response(spec: RoomSpec, azimuth_deg: float, head) -> np.ndarray:
    """Return the impulse response at both ears [2, taps], until it has decayed by 60 dB."""
    try:
        import pyroomacoustics  # noqa: F401 - says now what the renderer would say later
    except ImportError as e:
        raise ValueError("room: needs pyroomacoustics; pip install 'dualspec_jax[rooms]'") from e
    from dualspec_jax.spatial.hrtf import SPEED_OF_SOUND
    from dualspec_jax.spatial.room import Room, render_room

    length, width, height = spec.size_m
    surface = 2.0 * (length * width + width * height + length * height)
    sabine = 24.0 * np.log(10.0) / SPEED_OF_SOUND * length * width * height / surface
    absorption = min(0.99, sabine / spec.rt60_s)
    centre = (length / 2, width / 2, min(1.5, height / 2))
    room = Room(spec.size_m, sabine / absorption, absorption, centre, 0.0)
    rng = np.random.default_rng(_TAIL_SEED)
    return render_room(room, azimuth_deg, spec.distance_m, head, rng, int(room.rt60_s * head.sample_rate) + 1024)


def parse_room(text: str) -> tuple[float, ...]:
    """Read "LxWxH" in metres."""
    try:
        return tuple(float(part) for part in text.lower().split("x"))
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r}: length, width and height in metres, as in 5x4x2.8") from e


def make_parser() -> argparse.ArgumentParser:
    summary = __doc__.split("\n\n")
    p = argparse.ArgumentParser(prog="python -m dualspec_jax.spatialize", description=summary[0], epilog=summary[1])
    p.add_argument("inputs", nargs="+", type=Path, metavar="FILE", help="mono audio files of any length, 8 to 96 kHz")
    p.add_argument("--direction", action="append", required=True, help='one a file: degrees or words, "3 o\'clock"')
    p.add_argument("--gain", action="append", type=float, metavar="DB", help="one a file, dB (default 0)")
    p.add_argument("--hrtf", type=Path, help="SOFA or npz file (default: $DUALSPEC_DATA/hrtf/*.sofa, else a sphere)")
    p.add_argument("--room", type=parse_room, metavar="LxWxH", help="shoebox room, m (default: open air)")
    p.add_argument("--rt60", type=float, default=0.4, help="reverberation time of the room, s (default %(default)s)")
    p.add_argument("--distance", type=float, default=1.5, help="of the sources in the room, m (default %(default)s)")
    p.add_argument("--out", type=Path, help="audio file (default: <first file>_spatial.wav, in this folder)")
    p.add_argument("--format", choices=FORMATS, help="default: by the suffix of --out, 16 bits")
    p.add_argument("--overwrite", action="store_true", help="replace existing files")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = make_parser().parse_args(argv)
    return guarded(_run, args)


def _run(args: argparse.Namespace) -> int:
    gains = args.gain or [0.0] * len(args.inputs)
    for name, values in (("direction", args.direction), ("gain", gains)):
        if len(values) != len(args.inputs):
            raise ValueError(f"{name}: {len(values)} given for {len(args.inputs)} files; must be one for each")
    azimuths = [parse_place(text) for text in args.direction]
    room = None if args.room is None else RoomSpec(args.room, args.rt60, args.distance)
    out = args.out or Path(f"{args.inputs[0].stem}_spatial{suffix_of(args.format)}")
    format = args.format or ("flac" if out.suffix.lower() == ".flac" else "wav")
    if out.suffix.lower() not in SUFFIXES or out.suffix.lower() != suffix_of(format):
        raise ValueError(f"out = {str(out)!r}: must be a file name with suffix {suffix_of(format)}")
    record = out.with_suffix(".json")
    for path in (out, record):
        if path.exists() and not args.overwrite:
            raise ValueError(f"out = {str(path)!r}: exists already; --overwrite replaces it")
    sources = [
        Source(*read_sound(path), azimuth, gain)
        for path, azimuth, gain in zip(args.inputs, azimuths, gains, strict=True)
    ]
    waveform, rate = spatialize(sources, args.hrtf, room)

    from dualspec_jax import metrics

    content = {
        "sources": [
            {"file": str(path), "direction": text, "azimuth_deg": azimuth, "gain_db": gain}
            for path, text, azimuth, gain in zip(args.inputs, args.direction, azimuths, gains, strict=True)
        ],
        "hrtf": None if args.hrtf is None else str(args.hrtf),
        "room": None if room is None else {"size_m": room.size_m, "rt60_s": room.rt60_s, "distance_m": room.distance_m},
        "sample_rate": rate,
        "measured": {
            "itd_us": _rounded(metrics.itd_us(waveform, rate)),
            "ild_db": _rounded(metrics.ild_db(waveform, rate)),
            "peak": _rounded(float(np.abs(waveform).max()), 4),
        },
    }
    write_audio(out, waveform, rate, format)
    write_atomically(record, lambda f: f.write((json.dumps(content, indent=1) + "\n").encode()))
    print(out, record, sep="\n")
    return 0


def _rounded(value: float, digits: int = 1) -> float | None:
    return round(value, digits) if np.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())
