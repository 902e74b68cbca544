"""TFDS builder of `spatial_audio`: sound events rendered in a direction, with captions and both spectrograms.

Records are ArrayRecord files, read through `builder.as_data_source` or `dualspec_jax.input_pipeline`. Building and
reading need no TensorFlow; the command line `tfds` itself imports it (4.9.10), so without it use
`python -m data.spatial_audio.build` instead of `tfds build data/spatial_audio`.
"""

import dataclasses
import functools
import itertools
import os
import sys
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

try:
    from data.sources import load_clips, read_metadata
except ModuleNotFoundError:  # `tfds build` puts the folder `data` on the path, not the one above it
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    from data.sources import load_clips, read_metadata

from data.spatial_audio.scenes import SPLITS, generate_scenes, plan_scenes
from dualspec_jax import config as config_lib
from dualspec_jax.spatial.hrtf import default_hrtf

SHARD = 128  # scenes in one file, about 100 MB
DESCRIPTION = """\
Two-ear clips of one sound event from one direction, 5.12 s at 16 kHz, made from labelled mono recordings and a
head-related transfer function, each with a caption that names event and direction, the azimuth (degrees, 0 = front,
90 = left), the log-mel spectrogram of both ears and 8-bit coded STFT features (levels and interaural coherence).
"""


@dataclasses.dataclass(eq=False, kw_only=True)
class SpatialAudioConfig(tfds.core.BuilderConfig):
    """Name a size of the set.

    Attributes:
      n_train, n_valid: scenes of each split.
      seed: of the plan and of every scene.
    """

    n_train: int = 0
    n_valid: int = 0
    seed: int = 0


class Builder(tfds.core.ShardBasedBuilder):
    """Build `spatial_audio` from a source folder.

    Shard by shard, not as a GeneratorBasedBuilder: that one holds a split in memory up to 1 GB, and past it spills to
    disk through TensorFlow.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [
        SpatialAudioConfig(name="spatial_audio_1k", n_train=1000, n_valid=100, description="SpatialAudio-1K"),
        SpatialAudioConfig(name="spatial_audio_6k", n_train=6000, n_valid=424, description="6 424 scenes"),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Pass --manual_dir ROOT (or set DUALSPEC_DATA=ROOT). ROOT holds events/metadata.csv with the columns file, label,
    split (train or valid) and licence, the mono 16 kHz audio files it names, and, if there is one, hrtf/*.sofa;
    without that the scenes are rendered for a spherical head.
    """

    def __init__(self, **kwargs):
        kwargs["file_format"] = kwargs.get("file_format") or "array_record"
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        audio = config_lib.default().audio
        tensor, raw = tfds.features.Tensor, tfds.features.Encoding.BYTES
        return tfds.core.DatasetInfo(
            builder=self,
            description=DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "audio": tensor(shape=(audio.n_samples, 2), dtype=np.int16, encoding=raw),
                    "mel": tensor(shape=(audio.n_frames, audio.n_mels, 2), dtype=np.float16, encoding=raw),
                    "stft": tensor(shape=(audio.n_frames, audio.n_bins, 4), dtype=np.uint8, encoding=raw),
                    "caption": tfds.features.Text(),
                    "azimuth_deg": np.float32,
                    "label": tfds.features.Text(),
                    "label_index": tfds.features.ClassLabel(),  # its names are known once metadata.csv is read
                    "licence": tfds.features.Text(),
                    "source_file": tfds.features.Text(),
                    "source_group": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,  # scene order is random already
        )

    def _shard_iterators_per_split(self, dl_manager):
        root = _source_root(dl_manager)
        recordings = read_metadata(root / "events" / "metadata.csv")
        labels = sorted({r.label for r in recordings})  # before unusable clips are left out: indices stay the same
        if self.info.features["label_index"].num_classes is None:
            self.info.features["label_index"].names = labels
        found = sorted((root / "hrtf").glob("*.sofa"))
        hrtf = default_hrtf(found[0] if found else None)
        recordings, clips = load_clips(recordings)
        shards = {}
        for split, n_scenes in zip(SPLITS, (self.builder_config.n_train, self.builder_config.n_valid), strict=True):
            if n_scenes:
                chosen = [i for i, r in enumerate(recordings) if r.split == split]
                if not chosen:
                    raise ValueError(f"{root}/events/metadata.csv: no usable clip has split = {split!r}")
                parts = [recordings[i] for i in chosen], [clips[i] for i in chosen]
                shards[split] = self._shards(split, n_scenes, *parts, hrtf, labels)
        return shards

    def _shards(self, split, n_scenes, recordings, clips, hrtf, labels):
        """Return one function per shard that yields its (key, record) pairs."""
        plan = plan_scenes(recordings, n_scenes, split, self.builder_config.seed)
        audio = config_lib.default().audio
        bar = {"total": n_scenes, "desc": f"{self.builder_config.name} {split}", "unit": " scenes"}

        def shard(scenes: range):
            records = generate_scenes(
                recordings,
                clips,
                hrtf,
                audio,
                labels,
                plan=plan,
                scenes=scenes,
                split=split,
                seed=self.builder_config.seed,
            )
            with tqdm(initial=scenes.start, leave=scenes.stop == n_scenes, **bar) as progress:
                for i, record in zip(scenes, records, strict=True):
                    yield i, record
                    progress.update()

        n_shards = -(-n_scenes // SHARD)
        edges = [round(n_scenes * k / n_shards) for k in range(n_shards + 1)]
        return [functools.partial(shard, range(*pair)) for pair in itertools.pairwise(edges)]


def _source_root(dl_manager) -> Path:
    """Return --manual_dir if it exists, else $DUALSPEC_DATA."""
    try:
        return Path(dl_manager.manual_dir)
    except AssertionError:  # TFDS: no such folder, or an empty one
        root = os.environ.get("DUALSPEC_DATA")
        if not root:
            raise ValueError("no source folder: pass --manual_dir ROOT or set DUALSPEC_DATA=ROOT") from None
        return Path(root)
