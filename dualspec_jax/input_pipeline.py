"""Read training batches through Grain: records or the caption grammar -> transforms -> NumPy batches."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from dualspec_jax.latents import latents_of, load_latents
from dualspec_jax.ops.coding import decode_stft_features
from dualspec_jax.spatial.captions import make_caption, make_scene_caption
from dualspec_jax.spatial.cue_scenes import make_cue_scenes
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


class SceneSource:
    """Give random access to the scenes of one split of a built data set.

    `source[i]` is a dict with the wanted fields, `mel` and `stft` as float32 features, and always `azimuth_deg` and
    `label_index`. It can be pickled.

    Args:
      data_dir: folder that the data set was built in (TFDS's data_dir).
      dataset: "builder/config:version".
      split: `train` or `valid`.
      fields: record fields to decode; the others cost no decoding.
      optional: fields to decode too where the data set has them.

    Raises:
      ValueError: naming the data set, split or field that is not there.
    """

    def __init__(
        self,
        data_dir,
        dataset: str,
        split: str,
        fields: Sequence[str] = ("mel", "stft"),
        optional: Sequence[str] = (),
    ):
        import tensorflow_datasets as tfds  # takes seconds: only where records are read

        name, _, version = dataset.partition(":")
        self.directory = Path(data_dir) / name / version
        if not version:
            raise ValueError(f"dataset = {dataset!r}: it must be builder/config:version")
        if not (self.directory / "dataset_info.json").is_file():
            raise ValueError(
                f"no data set at {self.directory}: build it with python -m data.spatial_audio.build "
                f"--config {name.split('/')[-1]} --data_dir {data_dir}"
            )
        builder = tfds.builder_from_directory(str(self.directory))
        if split not in builder.info.splits:
            raise ValueError(f"split = {split!r}: {dataset} has {', '.join(builder.info.splits)}")
        features = builder.info.features
        for field in fields:
            if field not in features:
                raise ValueError(f"field {field!r} is not in {dataset}, which has {', '.join(features)}")
        self.split = split
        self.labels = tuple(features["label_index"].names)
        # Not tfds.decode.PartialDecoding: with as_data_source it fails, and alone it needs TensorFlow (4.9.10).
        optional = [field for field in optional if field in features]
        wanted = dict.fromkeys((*fields, *optional, "azimuth_deg", "label_index"))
        self._features = tfds.features.FeaturesDict({field: features[field] for field in wanted})
        self._label_feature = tfds.features.FeaturesDict({"label_index": features["label_index"]})
        raw_bytes = tfds.decode.DeserializeMethod.RAW_BYTES
        self._records = builder.as_data_source(split, deserialize_method=raw_bytes)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.read_coded(index)
        if "mel" in record:
            record["mel"] = record["mel"].astype(np.float32)
        if "stft" in record:
            record["stft"] = decode_stft_features(record["stft"])
        return record

    def read_coded(self, index: int) -> dict[str, Any]:
        """Return a record as stored: `mel` float16, `stft` in its 8-bit code (see `ops.coding`)."""
        return self._features.deserialize_example_np(self._records[index])

    def _read_label(self, index: int) -> int:
        return int(self._label_feature.deserialize_example_np(self._records[index])["label_index"])

    @functools.cached_property
    def label_index(self) -> np.ndarray:
        """int32 [n], the label of every scene; read once, then kept beside the records as JSON."""
        cache = self.directory / f"label_index.{self.split}.json"
        if cache.is_file():
            index = np.array(json.loads(cache.read_text()), np.int32)
            if len(index) == len(self):
                return index
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            index = list(pool.map(self._read_label, range(len(self))))
        with contextlib.suppress(OSError):  # a folder that cannot be written is read again next time
            cache.write_text(json.dumps(index))
        return np.array(index, np.int32)


def make_batches(
    config: ConfigDict,
    task: str,
    split: str,
    *,
    seed: int,
    data_dir=None,
    tokenizer=None,
    latents_dir=None,
    train: bool = True,
    encode: Callable | None = None,
    shard: tuple[int, int] = (0, 1),
) -> grain.IterDataset:
    """Return the batches of a task; its iterators have get_state and set_state.

    Training batches go on without end, each pass shuffled and cropped anew. With train=False there is one pass in
    stored order, the same each time; its last batch is filled up from the start, so that every batch is full.

      mel_vae, mel_decoder  mel f32 [B, crop, M, 2]; whole clips [B, T, M, 2] with train=False
      stft_vae      stft f32 [B, crop, F, 4]; whole clips with train=False
      classifier    mel f32 [B, T / pool, M] of both ears' sum, label int32 [B]
      localiser     statistics f32 [B, F, 4] (see `ops.interaural`), azimuth_deg f32 [B]; drawn, needs no data set
      text_encoder  token_ids int32, text_mask bool [B, L], label int32 [B] (-1 = no event named; of `known_labels`),
                    azimuth_deg f32 [B] (0 where has_direction is false), has_direction bool [B]
      diffusion     latent f32 [B, t, f, C], token_ids, text_mask, azimuth_deg f32 [B], has_azimuth bool [B]

    The forms do not depend on `config.feeding.source`; with "render", clips of the bank are placed in drawn directions
    and their features computed on the device, new ones in every pass, and arrays are those of JAX.

    Args:
      split: `train` or `valid`. The captions of text_encoder are drawn from the grammar; `valid` draws the held-out
        wordings of the events, where there are any.
      data_dir: folder of the data set; None takes config.data.data_dir. For the VAEs and the classifier, and for the
        labels of text_encoder.
      tokenizer: for text_encoder and diffusion.
      latents_dir: folder of cached latents of this split, for diffusion; see `dualspec_jax.encode`.
      encode: (mel, stft) -> latents, for diffusion from rendered scenes.
      shard: (index, count) of this host: batch size is divided by count, and the hosts' parts, one after the other, are
        the batch that a single host would have.

    Raises:
      ValueError: unknown task, data that is missing, or a batch that the hosts cannot share.
    """
    if task not in _ELEMENTS:
        raise ValueError(f"task = {task!r}: must be one of {', '.join(_ELEMENTS)}")
    feeding, batch_size = config.feeding, config.train[task].batch_size
    index, count = shard
    if not 0 <= index < count or batch_size % count:
        raise ValueError(f"shard = {shard}: index must be below count, and count divide batch_size = {batch_size}")
    rendered = feeding.source == "render" and task != "text_encoder"
    make_elements = _RENDERED[task] if rendered else _ELEMENTS[task]
    sources = [(config.data.dataset, 1.0)]
    if train and task != "text_encoder":
        sources += [tuple(pair) for pair in feeding.mix]
    parts, finish = [], None
    for number, (dataset, _) in enumerate(sources):
        part_seed = seed + 1000003 * number
        elements = make_elements(
            config,
            task=task,
            split=split,
            seed=part_seed,
            dataset=dataset,
            data_dir=data_dir or config.data.data_dir,
            tokenizer=tokenizer,
            latents_dir=latents_of(latents_dir or config.data.latents_dir, dataset if number else None),
            train=train,
            encode=encode,
        )
        finish = elements.finish
        order = grain.MapDataset.source(elements.order)
        if train:
            order = order.shuffle(part_seed).repeat()
        else:
            n_full = -(-len(elements.order) // batch_size) * batch_size
            order = order.repeat(reseed_each_epoch=False)[:n_full]
        parts.append(order.random_map(elements.make, seed=part_seed))
    mixed = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, [weight for _, weight in sources])
    if count > 1:  # rows of this host, in the order of the whole batch
        rows = range(index * batch_size // count, (index + 1) * batch_size // count)
        mixed = grain.MapDataset.mix([mixed[row::batch_size] for row in rows])
    reader = grain.ReadOptions(
        num_threads=config.data.num_threads, prefetch_buffer_size=max(config.data.prefetch, batch_size)
    )
    dataset = mixed.to_iter_dataset(reader)
    if feeding.num_workers:  # before batching: then the order does not depend on how many there are
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl's flags, which a program may not use at all
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=feeding.num_workers))
    dataset = dataset.batch(batch_size // count, drop_remainder=True)
    return dataset.map(finish) if finish else dataset


def known_labels(config: ConfigDict, data_dir=None) -> tuple[str, ...]:
    """Return the labels that captions are made of, sorted: those of `sounds.json` and, once built, of the data set."""
    return tuple(sorted({*labels(), *dataset_labels(config, data_dir)}))


def dataset_labels(config: ConfigDict, data_dir=None) -> tuple[str, ...]:
    """Return the labels of `config.data.dataset` and of all data sets mixed in, sorted; () where none is built."""
    found = set()
    for dataset in (config.data.dataset, *(name for name, _ in config.feeding.mix)):
        name, _, version = dataset.partition(":")
        path = Path(data_dir or config.data.data_dir, name, version, "label_index.labels.txt")  # TFDS writes it
        if path.is_file():
            found.update(path.read_text(encoding="utf-8").splitlines())
    return tuple(sorted(found))


def balanced_order(label_index: np.ndarray, balance: float, seed: int) -> np.ndarray:
    """Repeat indices so that a label's share is count ** (1 - balance); every index comes at least once.

    An index of a label with `count` members is due (reference / count) ** balance times, where the reference is the
    largest count, or the smallest where balance < 0; the fraction left over is given to randomly chosen members.
    """
    rng = np.random.default_rng(seed)
    parts = []
    counts = np.bincount(label_index)
    reference = counts.max() if balance >= 0 else counts[counts > 0].min()
    for label in np.flatnonzero(counts):
        members = rng.permutation(np.flatnonzero(label_index == label))
        wanted = round(len(members) * (reference / len(members)) ** balance)
        parts.append(np.resize(members, max(wanted, len(members))))
    return np.concatenate(parts)


def _scene_elements(config, fields, *, split, seed, dataset, data_dir, train, make) -> Elements:
    source = SceneSource(data_dir, dataset, split, fields)
    order = balanced_order(source.label_index, config.data.label_balance, seed) if train else np.arange(len(source))
    return Elements(order, functools.partial(make, source))


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


def _classifier_elements(config, *, split, seed, dataset, data_dir, train, **_) -> Elements:
    every, pool = dataset_labels(config, data_dir), config.classifier.pool
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
    order = balanced_order(bank.label_index, config.data.label_balance, seed) if train else np.arange(len(bank))

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


def _text_elements(config, *, split, tokenizer, train, data_dir, **_) -> Elements:
    _need_tokenizer(tokenizer)
    d, names = config.diffusion, known_labels(config, data_dir)

    def make(index, rng):
        label, azimuth = index % len(names), _draw_azimuth(rng)
        held_out = heldout_wordings(names[label]) if split == "valid" else ()
        event = held_out[rng.integers(len(held_out))] if held_out else sample_event(names[label], rng)
        if train and rng.uniform() < config.text.dropout:
            event = _drop_word(event, rng)
        kind = rng.uniform()
        has_direction = kind >= d.direction_free_prob
        has_event = not d.direction_free_prob <= kind < d.direction_free_prob + d.event_free_prob
        style = "doa" if rng.uniform() < 0.4 else None  # 360 numbers take more examples than 12 hours or 8 sectors
        caption = make_caption(event if has_event else None, azimuth if has_direction else None, rng, style)
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

    balance = config.data.label_balance
    return Elements(balanced_order(cache.label_index, balance, seed) if train else np.arange(n), make)


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


_ELEMENTS: Mapping[str, Callable[..., Elements]] = {
    "mel_vae": _crop_elements,
    "mel_decoder": _crop_elements,
    "stft_vae": _crop_elements,
    "classifier": _classifier_elements,
    "localiser": _localiser_elements,
    "text_encoder": _text_elements,
    "diffusion": _latent_elements,
}
_RENDERED = dict.fromkeys(("mel_vae", "mel_decoder", "stft_vae", "classifier", "diffusion"), _rendered_elements)


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
