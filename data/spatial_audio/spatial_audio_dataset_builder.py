"""TFDS builder of `spatial_audio`: sound events rendered in a direction, with captions and both spectrograms.

Records are ArrayRecord files, read through `builder.as_data_source` or `dualspec_jax.input_pipeline`. Building and
reading need no TensorFlow; the command line `tfds` itself imports it (4.9.10), so without it use
`python -m data.spatial_audio.build` instead of `tfds build data/spatial_audio`.
"""

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import tensorflow_datasets as tfds

try:
    from data.clips import find_usable, write_problems
except ModuleNotFoundError:  # `tfds build` puts the folder `data` on the path, not the one above it
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    from data.clips import find_usable, write_problems

from data.sources import read_source
from data.spatial_audio import job as jobs
from data.spatial_audio.job import Job
from data.spatial_audio.recipe import Recipe
from dualspec_jax.spatial.direction import parse_direction
from dualspec_jax.spatial.hrtf import load_hrtf

BUILD_JSON = "build.json"  # beside the records: recipe, sources and digest
SKIPPED_CSV = "skipped_clips.csv"
DESCRIPTION = """\
Two-ear clips of sound events from known directions, 5.12 s at 16 kHz, made from labelled mono recordings and
head-related transfer functions, each with a caption that names events and directions, the azimuth of the first source
(degrees, 0 = front, 90 = left), the log-mel spectrogram of both ears and 8-bit coded STFT features (levels and
interaural coherence).
"""


@dataclasses.dataclass(eq=False, kw_only=True)
class SpatialAudioConfig(tfds.core.BuilderConfig):
    """Name a size of the set and how its scenes are made.

    Attributes:
      n_train, n_valid: scenes of each split.
      seed: of the plan and of every scene.
      recipe: how scenes are made.
    """

    n_train: int = 0
    n_valid: int = 0
    seed: int = 0
    recipe: Recipe = Recipe()


@dataclasses.dataclass(frozen=True)
class HowToBuild:
    """Say how a build runs; only `licences` changes what is built.

    Attributes:
      licences: clips under other licences are left out; empty = all (`data.sources.licence_matches`).
      workers: processes that make shards.
      run_beam: (folder, job) -> None makes the shards with Apache Beam; None = without it.
    """

    licences: tuple[str, ...] = ()
    workers: int = 1
    run_beam: Callable[[Path, Job], None] | None = None


# As spatial_audio_6k was first built; its records stay the same bit for bit.
_FIRST_RECIPE = Recipe(heads=1, level="rms", min_peak=0.0, max_clipped=None, scene_json=False)
_GRID_RECIPE = Recipe(azimuth_step_deg=30.0)
_ROOMS_RECIPE = Recipe(heads=1, room_share=1.0)
_FULL_RECIPE = Recipe(max_sources=3, room_share=0.5, mirror_share=0.5)


class Builder(tfds.core.ShardBasedBuilder):
    """Build `spatial_audio` from a source folder, shard by shard (see `job.py`).

    Not as a GeneratorBasedBuilder: that one holds a split in memory up to 1 GB, past it spills to disk through
    TensorFlow, and starts again when it was killed.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [
        SpatialAudioConfig(
            name="spatial_audio_1k", n_train=1000, n_valid=100, description="SpatialAudio-1K: one source, anywhere"
        ),
        SpatialAudioConfig(
            name="spatial_audio_6k",
            n_train=6000,
            n_valid=424,
            recipe=_FIRST_RECIPE,
            description="6 424 scenes of one source, for the embedded model",
        ),
        SpatialAudioConfig(
            name="spatial_audio_grid",
            n_train=12000,
            n_valid=1200,
            recipe=_GRID_RECIPE,
            description="One source in steps of 30 degrees, as the paper has it",
        ),
        SpatialAudioConfig(
            name="spatial_audio_rooms",
            n_train=1500,
            n_valid=100,
            recipe=_ROOMS_RECIPE,
            description="One source in a room, for the STFT-VAE of the embedded model",
        ),
        SpatialAudioConfig(
            name="spatial_audio_full",
            n_train=100000,
            n_valid=5000,
            recipe=_FULL_RECIPE,
            description="One to three sources, half of the scenes in rooms, all HRTF files, mirrored at random",
        ),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Pass --manual_dir ROOT (or set DUALSPEC_DATA=ROOT). ROOT, or folders in it, hold labelled clips: metadata.csv with
    the columns file, label and licence, or ESC-50, UrbanSound8K or FSD50K as published. HRTFs are ROOT/hrtf/*.sofa;
    without one the scenes are rendered for a spherical head.
    """

    how = HowToBuild()

    def __init__(self, **kwargs):
        kwargs["file_format"] = kwargs.get("file_format") or "array_record"
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=DESCRIPTION,
            features=jobs.make_features(None, self.builder_config.recipe.scene_json),  # labels: once clips are read
            disable_shuffling=True,  # scene order is random already
        )

    def _shard_iterators_per_split(self, dl_manager):
        raise AssertionError("never called: _download_and_prepare, below, replaces the loop of TFDS that would")

    def _download_and_prepare(self, dl_manager, download_config=None):
        root = _source_root(dl_manager)
        job, problems = self._make_job(root)
        final = Path(self.data_dir)  # TFDS's temporary folder, which it renames when this returns
        folder = final.parent / f"shards.{self.version}"
        jobs.open_folder(folder, job)
        if self.how.run_beam:
            self.how.run_beam(folder, job)
        else:
            jobs.write_shards(folder, job, self.how.workers)
        self.info.features["label_index"].names = list(job.labels)
        shards = {split: [] for split in job.n_scenes}
        for split, number in job.shards():
            shards[split].append(jobs.read_shard(folder, split, number))
        split_infos = []
        for split, parts in shards.items():
            template = self._get_filename_template(split_name=split)
            for number in range(len(parts)):
                target = template.sharded_filepath(shard_index=number, num_shards=len(parts))
                os.replace(jobs.shard_path(folder, split, number), target)
            split_infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[len(part.digests) for part in parts],
                    num_bytes=sum(part.n_bytes for part in parts),
                    filename_template=template,
                )
            )
        self.info.set_splits(tfds.core.SplitDict(split_infos))
        write_problems(final / SKIPPED_CSV, problems)
        build = {
            "config": job.name,
            "seed": job.seed,
            "recipe": dataclasses.asdict(job.recipe),
            "licences": self.how.licences,
            "clips": len(job.recordings),
            "skipped": len(problems),
            "heads": [Path(path).name for path in job.heads],
            "sha256": {split: jobs.total_digest(parts) for split, parts in shards.items()},
        }
        (final / BUILD_JSON).write_text(json.dumps(build, indent=1))
        shutil.rmtree(folder)

    def _make_job(self, root: Path):
        """Return the job and the problems of the clips that are left out.

        Raises:
          ValueError: no usable clip for a split, or a label that names a direction.
        """
        config = self.builder_config
        recipe = config.recipe
        recordings = read_source(root, self.how.licences)
        labels = tuple(sorted({r.label for r in recordings}))  # with unusable clips: indices stay the same
        for label in labels:
            if parse_direction(label) is not None:
                raise ValueError(f"label = {label!r}: it names a direction, which captions add themselves")
        recordings, problems = find_usable(recordings, min_peak=recipe.min_peak, max_clipped=recipe.max_clipped)
        n_scenes = {s: n for s, n in (("train", config.n_train), ("valid", config.n_valid)) if n}
        for split in n_scenes:
            if not any(r.split == split for r in recordings):
                raise ValueError(f"{root}: no usable clip has split = {split!r}")
        heads = [str(path) for path in sorted((root / "hrtf").glob("*.sofa"))[: recipe.heads]]
        for path in heads:
            load_hrtf(path)  # what cannot be read is named here, before any work
        job = Job(config.name, n_scenes, tuple(recordings), labels, tuple(heads), config.seed, recipe, jobs.SHARD)
        return job, problems


def _source_root(dl_manager) -> Path:
    """Return --manual_dir if it exists, else $DUALSPEC_DATA."""
    try:
        return Path(dl_manager.manual_dir)
    except AssertionError:  # TFDS: no such folder, or an empty one
        root = os.environ.get("DUALSPEC_DATA")
        if not root:
            raise ValueError("no source folder: pass --manual_dir ROOT or set DUALSPEC_DATA=ROOT") from None
        return Path(root)
