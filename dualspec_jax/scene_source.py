"""Random access to the scenes of a built data set, their labels, and the order they are read in."""

import concurrent.futures
import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dualspec_jax.ops.coding import decode_stft_features
from dualspec_jax.spatial.sounds import labels


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


def balanced_order(
    label_index: np.ndarray, balance: float, seed: int, cap: int = 0, factors: Mapping[int, float] | None = None
) -> np.ndarray:
    """Repeat indices so that a label's share is factor * min(count, cap) ** (1 - balance); each comes at least once.

    The shortest such list; what a label is due beyond whole repeats is given to randomly chosen members.

    Args:
      cap: scenes beyond which a label's share grows no more; 0 = none.
      factors: label -> how many times that share it has; 1 for labels that are not named.
    """
    rng = np.random.default_rng(seed)
    counts = np.bincount(label_index)
    labels = np.flatnonzero(counts)
    factor = np.array([(factors or {}).get(int(label), 1.0) for label in labels])
    weights = factor * np.minimum(counts, cap or counts.max())[labels] ** (1.0 - balance)
    wanted = np.round(weights * np.max(counts[labels] / weights)).astype(int)
    members = (rng.permutation(np.flatnonzero(label_index == label)) for label in labels)
    return np.concatenate([np.resize(m, max(n, len(m))) for m, n in zip(members, wanted, strict=True)])
