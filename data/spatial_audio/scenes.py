"""Plan the scenes of a split, and compute them in batches: audio, caption and both spectrograms."""

import concurrent.futures
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from data.sources import Recording, count_labels
from data.spatial_audio.recipe import Recipe
from dualspec_jax.ops.coding import encode_stft_features
from dualspec_jax.spatial.captions import make_scene_caption, mirror_caption
from dualspec_jax.spatial.direction import circular_difference, wrap_azimuth
from dualspec_jax.spatial.hrtf import Hrtf
from dualspec_jax.spatial.render import make_renderer
from dualspec_jax.spatial.room import draw_distance, draw_room, render_room
from dualspec_jax.spatial.scene import fit_event, vary
from dualspec_jax.spatial.sounds import sample_event

SPLITS = ("train", "valid")
MIN_APART_DEG = 30.0  # between the sources of a scene
GOLDEN = (5**0.5 - 1) / 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """Say for each scene which recording sounds from where.

    Attributes:
      recording: int64 [n], index into the split's recordings.
      azimuth_deg: float32 [n], in [0, 360), steps of 0.1.
    """

    recording: np.ndarray
    azimuth_deg: np.ndarray


def plan_scenes(
    recordings: Sequence[Recording], n_scenes: int, split: str, seed: int, step_deg: float | None = None
) -> Plan:
    """Share n_scenes out among the labels by count ** 0.5, within a label evenly among recordings, in random order.

    Azimuths follow a golden-ratio sequence along the scenes sorted by label and recording: every label, and every
    recording with many scenes, gets directions all around.

    Args:
      step_deg: directions are multiples of this; None = of 0.1.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    labels = count_labels(recordings)
    weight = np.sqrt(np.array(list(labels.values()), np.float64))
    share = n_scenes * weight / weight.sum()
    count = np.floor(share).astype(int)
    count[np.argsort(count - share, kind="stable")[: n_scenes - count.sum()]] += 1  # largest remainders
    recording = []
    for label, n in zip(labels, count, strict=True):
        members = rng.permutation([i for i, r in enumerate(recordings) if r.label == label])
        recording.append(np.sort(np.resize(members, n)))
    recording = np.concatenate(recording)
    turn = (rng.uniform() + GOLDEN * np.arange(n_scenes)) % 1.0
    azimuth = np.floor(turn * 360.0 / step_deg) * step_deg if step_deg else np.round(turn * 360.0, 1) % 360.0
    order = rng.permutation(n_scenes)
    return Plan(recording=recording[order], azimuth_deg=azimuth[order].astype(np.float32))


@dataclasses.dataclass(frozen=True)
class Material:
    """Hold what the scenes of a split are made of.

    Attributes:
      recordings, clips: of the split; `clips[i]` is the audio of `recordings[i]`, float32 [n].
      heads: HRTFs to draw from.
      labels: all labels; `label_index` counts in this list.
      plan: of the whole split.
      split: `train` or `valid`; scenes of `train` vary in speed and level.
      seed: of the data set.
      recipe: how scenes are made.
    """

    recordings: Sequence[Recording]
    clips: Sequence[np.ndarray]
    heads: Sequence[Hrtf]
    labels: Sequence[str]
    plan: Plan
    split: str
    seed: int
    recipe: Recipe = Recipe()


@dataclasses.dataclass
class Scene:
    """One scene before it is rendered.

    Attributes:
      mono: float32 [S, N], each source's signal; rows of zeros where there are fewer.
      hrir: float32 [S, 2, K], each source's response at both ears.
      response: complex64 [F, 2], the direct sound of the first source at both ears.
      record: the fields that need no rendering.
    """

    mono: np.ndarray
    hrir: np.ndarray
    response: np.ndarray
    record: dict


def make_scene(material: Material, index: int, audio) -> Scene:
    """Make one scene; it depends on the material and its index alone.

    The first source and its caption come from one random generator, all that recipes add from a second one.

    Args:
      audio: `config.audio`.
    """
    recipe, train = material.recipe, material.split == "train"
    split_index = SPLITS.index(material.split)
    rng = np.random.default_rng([material.seed, split_index, index])
    more = np.random.default_rng([material.seed, split_index, index, 1])
    n = audio.n_samples
    chosen = [(int(material.plan.recording[index]), float(material.plan.azimuth_deg[index]))]
    for _ in range(int(more.integers(recipe.max_sources))):
        chosen += _another_source(material, chosen, more)
    head = material.heads[int(more.integers(len(material.heads)))]
    in_room = more.uniform() < recipe.room_share
    room = draw_room(recipe.rooms, more) if in_room else None
    mirrored = more.uniform() < recipe.mirror_share

    taps = recipe.rooms.max_taps if recipe.room_share else max(h.hrir.shape[-1] for h in material.heads)
    mono = np.zeros((recipe.max_sources, n), np.float32)
    hrir = np.zeros((recipe.max_sources, 2, taps), np.float32)
    sources = []
    for s, (i, azimuth) in enumerate(chosen):
        onset = 0 if s == 0 else int(more.uniform(0, recipe.onset_s) * audio.sample_rate)
        clip = material.clips[i]
        draw = rng if s == 0 else more
        mono[s, onset:] = fit_event(vary(clip, draw) if train else clip, n - onset, draw, recipe.level)
        gain_db = draw.uniform(-6.0, 0.0) if train and s == 0 else 0.0
        gain_db = more.uniform(*recipe.gain_db) if s else gain_db
        if gain_db:
            mono[s] *= np.float32(10 ** (gain_db / 20))
        distance = None
        if room is None:
            direct = head.at(azimuth)
            hrir[s, :, : direct.shape[-1]] = direct
        else:
            distance = draw_distance(room, azimuth, recipe.rooms, more)
            hrir[s] = render_room(room, azimuth, distance, head, more, taps)
        recording = material.recordings[i]
        sources.append(
            {
                "label": recording.label,
                "event": sample_event(recording.label, draw),
                "azimuth_deg": round(azimuth, 1),
                "distance_m": distance and round(distance, 3),
                "onset_s": round(onset / audio.sample_rate, 3),
                "gain_db": round(float(gain_db), 2),
                "licence": recording.licence,
                "source_file": recording.file,
                "source_group": recording.source_group,
            }
        )
    response = head.spectrum(chosen[0][1], audio.n_fft)
    in_time = sorted(sources, key=lambda source: source["onset_s"])
    caption = make_scene_caption([(x["event"], x["azimuth_deg"]) for x in in_time], rng)
    if mirrored:
        hrir, response, caption = hrir[:, ::-1], response[:, ::-1], mirror_caption(caption)
        for source in sources:
            source["azimuth_deg"] = round(wrap_azimuth(-source["azimuth_deg"]), 1)
    first = sources[0]
    every = lambda field: "; ".join(dict.fromkeys(source[field] for source in sources))
    record = {
        "caption": caption,
        "azimuth_deg": np.float32(first["azimuth_deg"]),
        "label": first["label"],
        "label_index": material.labels.index(first["label"]),
        "licence": every("licence"),
        "source_file": every("source_file"),
        "source_group": every("source_group"),
    }
    if recipe.scene_json:
        scene = {"head": head.name, "room": room and room.to_json(), "mirrored": bool(mirrored), "sources": sources}
        record["scene_json"] = json.dumps(scene, ensure_ascii=False)
    return Scene(mono, hrir, response, record)


def _another_source(material: Material, chosen: list[tuple[int, float]], rng) -> list[tuple[int, float]]:
    """Draw a recording of another label and a direction away from the others; nothing where there is none."""
    labels = {material.recordings[i].label for i, _ in chosen}
    for _ in range(50):
        i = int(material.plan.recording[rng.integers(len(material.plan.recording))])
        step = material.recipe.azimuth_step_deg
        azimuth = float(rng.integers(round(360 / step)) * step) if step else float(rng.integers(3600) / 10)
        apart = min(abs(circular_difference(azimuth, other)) for _, other in chosen)
        if material.recordings[i].label not in labels and apart >= MIN_APART_DEG:
            return [(i, azimuth)]
    return []


def generate_scenes(material: Material, scenes: range, audio, batch_size: int = 16) -> Iterator[dict]:
    """Yield the records of consecutive scenes; record i depends on the material and i alone.

    Args:
      scenes: which of the plan's scenes to make.
      audio: `config.audio`.
    """
    features = _make_features(audio.to_json())

    def prepare(first: int) -> list[dict]:
        made = [make_scene(material, i, audio) for i in range(first, min(first + batch_size, scenes.stop))]
        missing = batch_size - len(made)  # a last batch is filled up: one compilation
        stack = lambda field: np.stack(
            [getattr(x, field) for x in made] + [np.zeros_like(getattr(made[0], field))] * missing
        )  # noqa: E501
        wave, mel, spatial = jax.device_get(features(stack("mono"), stack("hrir"), stack("response")))
        code = encode_stft_features(spatial)
        return [x.record | {"audio": wave[i], "mel": mel[i], "stft": code[i]} for i, x in enumerate(made)]

    with concurrent.futures.ThreadPoolExecutor(1) as pool:  # one batch is computed while another is written
        starts = iter(scenes[::batch_size])
        pending = [pool.submit(prepare, first) for first in itertools.islice(starts, 2)]
        while pending:
            records = pending.pop(0).result()
            pending += [pool.submit(prepare, first) for first in itertools.islice(starts, 1)]
            yield from records


@functools.cache
def _make_features(audio_json: str):
    """Return the renderer with its results as they are stored: int16 audio, float16 mel, float32 STFT features."""
    render = make_renderer(audio_json)

    @jax.jit
    def features(mono, hrir, response):
        wave, mel, spatial = render(mono, hrir, response)
        return jnp.round(wave * 32767).astype(jnp.int16), mel.astype(jnp.float16), spatial

    return features
