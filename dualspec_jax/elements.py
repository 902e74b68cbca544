"""The elements of each task's batches: what is read or drawn, and what becomes of it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dualspec_jax.latents import load_latents
from dualspec_jax.ops.coding import decode_stft_features
from dualspec_jax.scene_source import SceneSource, balanced_order, dataset_labels, known_labels
from dualspec_jax.spatial.captions import make_caption, make_scene_caption
from dualspec_jax.spatial.cue_scenes import make_cue_scenes
from dualspec_jax.spatial.direction import parse_direction
from dualspec_jax.spatial.hrtf import load_hrtf
from dualspec_jax.spatial.sounds import heldout_wordings, labels, sample_event

CAPTIONS_PER_EPOCH = 1 << 20  # length of an "epoch" of the endless caption source
VALID_CAPTIONS = 2048
CUE_SCENES_PER_EPOCH = 1 << 20
VALID_CUE_SCENES = 1024
CACHED_CLIPS = 20_000  # pooled log-mels kept in memory, 32 kB each


@dataclasses.dataclass(frozen=True)
class Elements:
    """Describe the elements of a task before batching.

    Attributes:
      order: indices of one pass, in any order; training shuffles them, anew in each pass.
      make: (index, rng) -> one element, a dict of arrays without the batch axis.
      finish: batch -> batch, on the device; None where `make` gives the final form.
    """

    order: Sequence[int]
    make: Callable[[int, np.random.Generator], dict[str, np.ndarray]]
    finish: Callable[[dict[str, np.ndarray]], dict[str, Any]] | None = None


def _scene_elements(config, fields, *, split, seed, dataset, data_dir, train, make) -> Elements:
    source = SceneSource(data_dir, dataset, split, fields)
    order = _train_order(config, source, seed) if train else np.arange(len(source))
    return Elements(order, functools.partial(make, source))


def _train_order(config, source, seed) -> np.ndarray:
    """Return the indices of one pass over a source that has `labels` and `label_index`.

    Factors of known sounds that the data set lacks have no effect: one config serves many data sets.
    """
    data, names = config.data, list(source.labels)
    for label, _ in data.label_factors:
        if label not in names and label not in labels():
            raise ValueError(f"data.label_factors: {label!r} is neither a label of the data set nor of sounds.json")
    factors = {names.index(label): factor for label, factor in data.label_factors if label in names}
    return balanced_order(source.label_index, data.label_balance, seed, data.label_cap, factors)


def _crop_elements(config, *, task, split, seed, dataset, data_dir, train, **_) -> Elements:
    field, crop, mirror = _field_of(task), config.data.crop_frames, config.feeding.mirror

    def make(source, index, rng):
        coded = source.read_coded(index)[field]
        if train:
            start = rng.integers(len(coded) - crop + 1)
            coded = coded[start : start + crop]
        features = decode_stft_features(coded) if field == "stft" else coded.astype(np.float32)
        if train and mirror and rng.uniform() < mirror:
            features = swap_ears(features)
        return {field: features}

    return _scene_elements(
        config, (field,), split=split, seed=seed, dataset=dataset, data_dir=data_dir, train=train, make=make
    )


def _wave_elements(config, *, split, seed, dataset, data_dir, train, **_) -> Elements:
    """Cut one ear of a scene; in training at a random level, for what is generated is louder or fainter too."""
    n, hop = config.data.crop_frames * config.audio.hop_length, config.audio.hop_length

    def make(source, index, rng):
        audio = source.read_coded(index)["audio"]
        start, ear, gain = (len(audio) - n) // hop // 2 * hop, index % 2, 1.0
        if train:
            start, ear = rng.integers((len(audio) - n) // hop + 1) * hop, rng.integers(2)
            gain = 10.0 ** rng.uniform(-0.6, 0.2)
        return {"wave": np.float32(gain / 32768.0) * audio[start : start + n, ear].astype(np.float32)}

    return _scene_elements(
        config, ("audio",), split=split, seed=seed, dataset=dataset, data_dir=data_dir, train=train, make=make
    )


def _field_of(task: str) -> str:
    """Return the features that a task of a VAE reads: mel or stft."""
    return task.partition("_")[0]


def swap_ears(features: np.ndarray) -> np.ndarray:
    """Return mel [..., 2] or STFT features [..., 4] of the mirrored scene: gamma becomes its complex conjugate."""
    if features.shape[-1] == 2:
        return features[..., ::-1]
    return features[..., [1, 0, 2, 3]] * np.array([1, 1, 1, -1], features.dtype)


def pool_ears(mel: np.ndarray, pool: int) -> np.ndarray:
    """Return the log-mel [..., T // pool, M] of the ears together, mean over `pool` frames, of both [..., T, M, 2]."""
    power = np.exp(2.0 * np.asarray(mel, np.float32)).sum(axis=-1)
    frames = power.shape[-2] // pool
    power = power[..., : frames * pool, :].reshape(*power.shape[:-2], frames, pool, power.shape[-1]).mean(axis=-2)
    return 0.5 * np.log(power)


def _content_elements(config, *, task, split, seed, dataset, data_dir, train, **_) -> Elements:
    """Pool both ears' log-mel; the label is of those the classifier's outputs stand for, or the text encoder's."""
    labels_of = dataset_labels if task == "classifier" else known_labels
    every, pool = labels_of(config, data_dir), config[task].pool
    seen: dict[int, dict[str, np.ndarray]] = {}  # decoding costs more than the network

    def read(source, index):
        record = source.read_coded(index)
        label = np.int32(every.index(source.labels[record["label_index"]]))
        return {"mel": pool_ears(record["mel"], pool).astype(np.float16), "label": label}

    def make(source, index, rng):
        element = seen.get(index) or read(source, index)
        if len(seen) < CACHED_CLIPS:
            seen[index] = element
        return element | {"mel": element["mel"].astype(np.float32)}

    return _scene_elements(
        config, ("mel",), split=split, seed=seed, dataset=dataset, data_dir=data_dir, train=train, make=make
    )


def _rendered_elements(config, *, task, split, seed, tokenizer, train, encode, **_) -> Elements:
    """Place clips of the bank in drawn directions; the host cuts and loops, the device renders and analyses."""
    import jax  # here: worker processes that only read need none of it

    from dualspec_jax.clip_bank import ClipBank
    from dualspec_jax.spatial.hrtf import default_hrtf
    from dualspec_jax.spatial.render import HrirBank, make_bank_renderer

    bank = ClipBank(config.feeding.clip_bank, split)
    audio, crop, mirror = config.audio, config.data.crop_frames, config.feeding.mirror
    heads = HrirBank(default_hrtf(config.feeding.head or None, audio.sample_rate), audio.n_fft, audio.n_bins)
    render = make_bank_renderer(heads, audio)
    field = _field_of(task)
    order = _train_order(config, bank, seed) if train else np.arange(len(bank))

    def make(index, rng):
        rng = rng if train else np.random.default_rng([seed, index])  # validation: the same scene in every pass
        azimuth = float(rng.integers(3600) / 10)
        element = {"mono": bank.place(index, audio.n_samples, rng), "azimuth_deg": np.float32(azimuth)}
        if task == "classifier":
            element["label"] = np.int32(bank.label_index[index])
        elif task == "diffusion":
            element |= _caption_tokens(config, tokenizer, [(bank.labels[bank.label_index[index]], azimuth)], rng)
        elif train:
            element["start"] = np.int32(rng.integers(audio.n_frames - crop + 1))
            element["mirrored"] = np.bool_(rng.uniform() < mirror)
        return element

    @jax.jit
    def cut(features, start, mirrored):
        pick = lambda x, i: jax.lax.dynamic_slice_in_dim(x, i, crop, 0)
        part = jax.vmap(pick)(features, start)
        swapped = part[..., ::-1] if field == "mel" else part[..., [1, 0, 2, 3]] * np.float32([1, 1, 1, -1])
        return jax.numpy.where(mirrored[:, None, None, None], swapped, part)

    def finish(batch):
        _, mel, stft = render(batch.pop("mono"), batch["azimuth_deg"])
        if task == "diffusion":
            return batch | {"latent": encode(mel, stft)}
        if task == "classifier":
            return {"mel": pool_ears(mel, config.classifier.pool), "label": batch["label"]}
        features = mel if field == "mel" else stft
        return {field: cut(features, batch["start"], batch["mirrored"]) if train else features}

    if task == "diffusion":
        _need_tokenizer(tokenizer)
        if encode is None:
            raise ValueError("encode = None: diffusion from rendered scenes needs the VAEs' encoders")
    return Elements(order, make, finish)


def _localiser_elements(config, *, split, train, **_) -> Elements:
    audio, path = config.audio, config.localiser.hrtf
    head = load_hrtf(path, audio.sample_rate) if path else None
    scenes = make_cue_scenes(head, sample_rate=audio.sample_rate, n_fft=audio.n_fft, n_bins=audio.n_bins)

    def make(index, rng):
        azimuth = float(rng.integers(360))
        return {"statistics": scenes.draw(azimuth, rng), "azimuth_deg": np.float32(azimuth)}

    return Elements(range(CUE_SCENES_PER_EPOCH if train else VALID_CUE_SCENES), make)


def _text_elements(config, *, task, split, tokenizer, train, data_dir, **_) -> Elements:
    _need_tokenizer(tokenizer)
    d, names = config.diffusion, known_labels(config, data_dir)

    def make(index, rng):
        label, azimuth = index % len(names), _draw_azimuth(rng)
        style = "doa" if rng.uniform() < 0.4 else None  # 360 numbers take more examples than 12 hours or 8 sectors
        # Hours, half hours and sectors lie on multiples of 15: too few among whole degrees to be learnt.
        if task == "reader" and rng.uniform() < 0.4:
            azimuth, style = float(15 * rng.integers(24)), None
        held_out = heldout_wordings(names[label]) if split == "valid" else ()
        event = held_out[rng.integers(len(held_out))] if held_out else sample_event(names[label], rng)
        if train and rng.uniform() < config.text.dropout:
            event = _drop_word(event, rng)
        kind = rng.uniform()
        has_direction = kind >= d.direction_free_prob
        has_event = not d.direction_free_prob <= kind < d.direction_free_prob + d.event_free_prob
        caption = make_caption(event if has_event else None, azimuth if has_direction else None, rng, style)
        # The reader learns what the words say, not where within their hour or sector the source is.
        if task == "reader" and has_direction:
            azimuth = parse_direction(caption).azimuth_deg
        return _tokens(tokenizer, caption, config.text.max_length) | {
            "label": np.int32(label if has_event else -1),
            "azimuth_deg": np.float32(azimuth if has_direction else 0.0),
            "has_direction": np.bool_(has_direction),
        }

    return Elements(range(CAPTIONS_PER_EPOCH if train else VALID_CAPTIONS), make)


def _latent_elements(config, *, seed, tokenizer, latents_dir, train, **_) -> Elements:
    _need_tokenizer(tokenizer)
    cache = load_latents(latents_dir)
    names, n = cache.labels, len(cache)

    def make(index, rng):
        latent = cache.latent(index)
        if train and config.diffusion.time_roll:
            latent = np.roll(latent, rng.integers(len(latent)), axis=0)
        sources = [(names[label], azimuth) for label, azimuth in cache.sources(index)]
        return {"latent": latent} | _caption_tokens(config, tokenizer, sources, rng)

    return Elements(_train_order(config, cache, seed) if train else np.arange(n), make)


def _event_latent_elements(config, *, seed, data_dir, latents_dir, train, **_) -> Elements:
    """The Mel latents of scenes with the event of their first source, counted as the text encoder counts them."""
    cache, n_mel = load_latents(latents_dir), config.mel_vae.latent_channels
    known = known_labels(config, data_dir)
    event = np.array([known.index(label) for label in cache.labels], np.int32)

    def make(index, rng):
        latent = cache.latent(index)[..., :n_mel]
        if train:
            latent = np.roll(latent, rng.integers(len(latent)), axis=0)
        return {"latent": latent, "label": event[cache.label_index[index]]}

    return Elements(_train_order(config, cache, seed) if train else np.arange(len(cache)), make)


def _caption_tokens(config, tokenizer, sources: list[tuple[str, float]], rng) -> dict[str, np.ndarray]:
    """Draw a caption of (label, azimuth) sources, with conditions left out as configured, as tokens.

    A scene of several sources has no numeric azimuth, and its captions name all of its events.
    """
    d = config.diffusion
    azimuth = sources[0][1]
    # Most people ask for whole degrees; the half degree this moves the words by cannot be heard.
    whole = rng.uniform() < 0.9
    worded = [float(round(a)) % 360.0 if whole else round(a, 1) % 360.0 for _, a in sources]
    events = [sample_event(label, rng) for label, _ in sources]
    kind = rng.uniform() - d.null_prob
    if kind < 0:
        caption = ""
    elif len(sources) > 1:
        caption = make_scene_caption(list(zip(events, worded, strict=True)), rng)
    elif kind < d.direction_free_prob:
        caption = make_caption(events[0], None, rng)
    elif kind < d.direction_free_prob + d.event_free_prob:
        caption = make_caption(None, worded[0], rng, _draw_style(azimuth, d.word_tolerance_deg, rng))
    else:
        caption = make_caption(events[0], worded[0], rng, _draw_style(azimuth, d.word_tolerance_deg, rng))
    has_azimuth = kind >= 0 and rng.uniform() < d.azimuth_token_prob and len(sources) == 1
    return _tokens(tokenizer, caption, config.text.max_length) | {
        "azimuth_deg": np.float32(azimuth),
        "has_azimuth": np.bool_(has_azimuth),
    }


def _draw_style(azimuth_deg: float, tolerance_deg: float, rng: np.random.Generator) -> str:
    """Draw a caption style: degrees, or twice as often an hour or a sector whose centre is within the tolerance."""
    off = lambda step: abs((azimuth_deg + step / 2.0) % step - step / 2.0)
    near = [style for style, step in (("clock", 30.0), ("general", 45.0)) if off(step) <= tolerance_deg]
    choices = ["doa", *near, *near]
    return choices[rng.integers(len(choices))]


def _need_tokenizer(tokenizer) -> None:
    if tokenizer is None:
        raise ValueError("tokenizer = None: text batches need a tokenizer")


def _tokens(tokenizer, caption: str, max_length: int) -> dict[str, np.ndarray]:
    ids, mask = tokenizer.encode_batch([caption], max_length)
    return {"token_ids": ids[0], "text_mask": mask[0]}


def _draw_azimuth(rng: np.random.Generator) -> float:
    """Draw a direction in [0, 360): 85 % whole degrees, 10 % half degrees, 5 % tenths."""
    kind = rng.uniform()
    if kind < 0.85:
        return float(rng.integers(360))
    return float(rng.integers(360) + 0.5) if kind < 0.95 else float(rng.integers(3600) / 10)


def _drop_word(event: str, rng: np.random.Generator) -> str:
    """Leave out one random word without digits, if at least one word remains."""
    words = event.split()
    droppable = [i for i, word in enumerate(words) if not any(c.isdigit() for c in word)]
    if len(words) < 2 or not droppable:
        return event
    del words[droppable[rng.integers(len(droppable))]]
    return " ".join(words)


CAPTION_TASKS = ("text_encoder", "reader")  # draw captions, read no scenes
READ: Mapping[str, Callable[..., Elements]] = {
    "mel_vae": _crop_elements,
    "mel_decoder": _crop_elements,
    "stft_vae": _crop_elements,
    "stft_decoder": _crop_elements,
    "vocoder": _wave_elements,
    "classifier": _content_elements,
    "listener": _content_elements,
    "localiser": _localiser_elements,
    "text_encoder": _text_elements,
    "reader": _text_elements,
    "event_guide": _event_latent_elements,
    "diffusion": _latent_elements,
}
RENDERED = dict.fromkeys(
    ("mel_vae", "mel_decoder", "stft_vae", "stft_decoder", "classifier", "diffusion"), _rendered_elements
)
