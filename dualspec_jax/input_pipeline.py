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
from ml_collections import ConfigDict

from dualspec_jax.ops.coding import decode_stft_features
from dualspec_jax.spatial.captions import make_caption
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
    """

    order: Sequence[int]
    make: Callable[[int, np.random.Generator], dict[str, np.ndarray]]


class SceneSource:
    """Give random access to the scenes of one split of a built data set.

    `source[i]` is a dict with the wanted fields, `mel` and `stft` as float32 features, and always `azimuth_deg` and
    `label_index`. It can be pickled.

    Args:
      data_dir: folder that the data set was built in (TFDS's data_dir).
      dataset: "builder/config:version".
      split: `train` or `valid`.
      fields: record fields to decode; the others cost no decoding.

    Raises:
      ValueError: naming the data set, split or field that is not there.
    """

    def __init__(self, data_dir, dataset: str, split: str, fields: Sequence[str] = ("mel", "stft")):
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
        wanted = dict.fromkeys((*fields, "azimuth_deg", "label_index"))
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
) -> grain.IterDataset:
    """Return the batches of a task; its iterators have get_state and set_state.

    Training batches go on without end, each pass shuffled and cropped anew. With train=False there is one pass in
    stored order, the same each time; its last batch is filled up from the start, so that every batch is full.

      mel_vae       mel f32 [B, crop, M, 2]; whole clips [B, T, M, 2] with train=False
      stft_vae      stft f32 [B, crop, F, 4]; whole clips with train=False
      classifier    mel f32 [B, T / pool, M] of both ears' sum, label int32 [B]
      localiser     statistics f32 [B, F, 4] (see `ops.interaural`), azimuth_deg f32 [B]; drawn, needs no data set
      text_encoder  token_ids int32, text_mask bool [B, L], label int32 [B] (-1 = no event named; of `sounds.labels()`),
                    azimuth_deg f32 [B] (0 where has_direction is false), has_direction bool [B]
      diffusion     latent f32 [B, t, f, C], token_ids, text_mask, azimuth_deg f32 [B], has_azimuth bool [B]

    Args:
      split: `train` or `valid`. The captions of text_encoder are drawn from the grammar; `valid` draws the held-out
        wordings of the events, where there are any.
      data_dir: folder of the data set; None takes config.data.data_dir. For the VAEs and the classifier.
      tokenizer: for text_encoder and diffusion.
      latents_dir: folder of cached latents of this split, for diffusion; see `dualspec_jax.encode`.

    Raises:
      ValueError: unknown task, or data that is missing.
    """
    if task not in _ELEMENTS:
        raise ValueError(f"task = {task!r}: must be one of {', '.join(_ELEMENTS)}")
    elements = _ELEMENTS[task](
        config,
        task=task,
        split=split,
        seed=seed,
        data_dir=data_dir or config.data.data_dir,
        tokenizer=tokenizer,
        latents_dir=latents_dir or config.data.latents_dir,
        train=train,
    )
    batch_size = config.train[task].batch_size
    order = grain.MapDataset.source(elements.order)
    if train:
        order = order.shuffle(seed).repeat()
    else:
        n_full = -(-len(elements.order) // batch_size) * batch_size
        order = order.repeat(reseed_each_epoch=False)[:n_full]
    reader = grain.ReadOptions(
        num_threads=config.data.num_threads, prefetch_buffer_size=max(config.data.prefetch, batch_size)
    )
    dataset = order.random_map(elements.make, seed=seed).to_iter_dataset(reader)
    return dataset.batch(batch_size, drop_remainder=True)


def balanced_order(label_index: np.ndarray, balance: float, seed: int) -> np.ndarray:
    """Repeat indices so that a label's share is count ** (1 - balance); every index comes at least once.

    An index of a label with `count` members is due (largest count / count) ** balance times; the fraction left over is
    given to randomly chosen members of the label.
    """
    rng = np.random.default_rng(seed)
    parts = []
    counts = np.bincount(label_index)
    for label in np.flatnonzero(counts):
        members = rng.permutation(np.flatnonzero(label_index == label))
        wanted = round(len(members) * (counts.max() / len(members)) ** balance)
        parts.append(np.resize(members, max(wanted, len(members))))
    return np.concatenate(parts)


def _scene_elements(config, fields, *, split, seed, data_dir, train, make) -> Elements:
    source = SceneSource(data_dir, config.data.dataset, split, fields)
    order = balanced_order(source.label_index, config.data.label_balance, seed) if train else np.arange(len(source))
    return Elements(order, functools.partial(make, source))


def _crop_elements(config, *, task, split, seed, data_dir, train, **_) -> Elements:
    field, crop = task.removesuffix("_vae"), config.data.crop_frames

    def make(source, index, rng):
        coded = source.read_coded(index)[field]
        if train:
            start = rng.integers(len(coded) - crop + 1)
            coded = coded[start : start + crop]
        return {field: decode_stft_features(coded) if field == "stft" else coded.astype(np.float32)}

    return _scene_elements(config, (field,), split=split, seed=seed, data_dir=data_dir, train=train, make=make)


def _classifier_elements(config, *, split, seed, data_dir, train, **_) -> Elements:
    pool = config.classifier.pool
    seen: dict[int, dict[str, np.ndarray]] = {}  # decoding costs more than the network

    def read(source, index):
        record = source.read_coded(index)
        power = np.exp(2.0 * record["mel"].astype(np.float32)).sum(axis=-1)  # of both ears
        power = power[: len(power) // pool * pool].reshape(-1, pool, power.shape[-1]).mean(axis=1)
        return {"mel": (0.5 * np.log(power)).astype(np.float16), "label": np.int32(record["label_index"])}

    def make(source, index, rng):
        element = seen.get(index) or read(source, index)
        if len(seen) < CACHED_CLIPS:
            seen[index] = element
        return element | {"mel": element["mel"].astype(np.float32)}

    return _scene_elements(config, ("mel",), split=split, seed=seed, data_dir=data_dir, train=train, make=make)


def _localiser_elements(config, *, split, train, **_) -> Elements:
    audio, path = config.audio, config.localiser.hrtf
    head = load_hrtf(path, audio.sample_rate) if path else None
    scenes = make_cue_scenes(head, sample_rate=audio.sample_rate, n_fft=audio.n_fft, n_bins=audio.n_bins)

    def make(index, rng):
        azimuth = float(rng.integers(360))
        return {"statistics": scenes.draw(azimuth, rng), "azimuth_deg": np.float32(azimuth)}

    return Elements(range(CUE_SCENES_PER_EPOCH if train else VALID_CUE_SCENES), make)


def _text_elements(config, *, split, tokenizer, train, **_) -> Elements:
    _need_tokenizer(tokenizer)
    d, names = config.diffusion, labels()

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
    cache = _load_latents(latents_dir)
    d, names = config.diffusion, cache["labels"]

    def make(index, rng):
        latent = cache["latents"][index].astype(np.float32)
        if train and d.time_roll:
            latent = np.roll(latent, rng.integers(len(latent)), axis=0)
        azimuth = float(cache["azimuth_deg"][index])
        # Most people ask for whole degrees; the half degree this moves the words by cannot be heard.
        worded = float(round(azimuth)) % 360.0 if rng.uniform() < 0.9 else round(azimuth, 1) % 360.0
        event = sample_event(names[cache["label_index"][index]], rng)
        kind = rng.uniform() - d.null_prob
        if kind < 0:
            caption = ""
        elif kind < d.direction_free_prob:
            caption = make_caption(event, None, rng)
        elif kind < d.direction_free_prob + d.event_free_prob:
            caption = make_caption(None, worded, rng)
        else:
            caption = make_caption(event, worded, rng)
        return _tokens(tokenizer, caption, config.text.max_length) | {
            "latent": latent,
            "azimuth_deg": np.float32(azimuth),
            "has_azimuth": np.bool_(kind >= 0 and rng.uniform() < d.azimuth_token_prob),
        }

    balance = config.data.label_balance
    n = len(cache["label_index"])
    return Elements(balanced_order(cache["label_index"], balance, seed) if train else np.arange(n), make)


_ELEMENTS: Mapping[str, Callable[..., Elements]] = {
    "mel_vae": _crop_elements,
    "stft_vae": _crop_elements,
    "classifier": _classifier_elements,
    "localiser": _localiser_elements,
    "text_encoder": _text_elements,
    "diffusion": _latent_elements,
}


def _load_latents(folder) -> dict[str, Any]:
    folder = Path(folder or "")
    if not (folder / "meta.json").is_file():
        raise ValueError(f"latents_dir = {str(folder)!r} holds no cached latents: run dualspec_jax.encode first")
    arrays = {k: np.load(folder / f"{k}.npy", mmap_mode="r") for k in ("latents", "azimuth_deg", "label_index")}
    arrays |= {k: np.array(arrays[k]) for k in ("azimuth_deg", "label_index")}
    if len({len(a) for a in arrays.values()}) != 1:
        raise ValueError(f"{folder}: the arrays differ in length: " + str({k: len(a) for k, a in arrays.items()}))
    return arrays | {"labels": json.loads((folder / "meta.json").read_text())["labels"]}


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
