"""Write the shards of a data set, in any order, on any number of workers; finished ones are kept for the next run.

A job is a folder: `job.pickle` says what to build, and each shard is an ArrayRecord file with a JSON file beside it,
which is written last. A shard without its JSON file is not there. So a build that was killed goes on where it stopped,
and what is written depends on the job alone: not on the number of workers, nor on how often it was interrupted.
"""

import concurrent.futures
import concurrent.futures.process
import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.clips import Clips
from data.sources import Recording
from data.spatial_audio.recipe import Recipe
from dualspec_jax.allocator import share_one_heap

SHARD = 128  # scenes in one file, about 100 MB
SCENE_BYTES = 1.0e6  # disk a scene needs at least, to refuse a build that cannot fit


@dataclasses.dataclass(frozen=True)
class Job:
    """Say what to build.

    Attributes:
      name: of the config.
      n_scenes: of each split.
      recordings: usable ones, of all splits.
      labels: all labels, sorted.
      heads: paths of HRTF files; none = the spherical head.
      shard: scenes in one file.
    """

    name: str
    n_scenes: dict[str, int]
    recordings: tuple[Recording, ...]
    labels: tuple[str, ...]
    heads: tuple[str, ...]
    seed: int
    recipe: Recipe
    shard: int = SHARD

    def shards(self) -> list[tuple[str, int]]:
        """List (split, number) of every shard."""
        return [(split, k) for split, n in self.n_scenes.items() for k in range(-(-n // self.shard))]

    def scenes(self, split: str, number: int) -> range:
        """Return the scenes of a shard."""
        n = self.n_scenes[split]
        count = -(-n // self.shard)
        return range(round(n * number / count), round(n * (number + 1) / count))

    def fingerprint(self) -> str:
        """Return a hash of everything that the records depend on: settings, and size and time of input files."""
        digest = hashlib.sha256(repr(dataclasses.replace(self, recordings=())).encode())
        for r in self.recordings:
            digest.update(repr(dataclasses.replace(r, path=None)).encode())
        for path in (*self.heads, *(r.path for r in self.recordings)):
            stat = os.stat(path)
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Shard:
    """What is known of a finished shard: its records' number, SHA-256 each, and the size of its file in bytes."""

    digests: tuple[str, ...]
    n_bytes: int


def open_folder(folder: Path, job: Job) -> None:
    """Make the folder of a job, or keep it if it is of the same job; shards of another one are deleted.

    Raises:
      OSError: ENOSPC where the disk cannot hold what is still to be written.
    """
    fingerprint = folder / "fingerprint"
    wanted = job.fingerprint()
    if folder.exists() and (not fingerprint.is_file() or fingerprint.read_text() != wanted):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    missing = sum(len(job.scenes(*s)) for s in job.shards() if read_shard(folder, *s) is None)
    free = shutil.disk_usage(folder).free
    if missing * SCENE_BYTES > free:
        text = f"{missing} scenes need about {missing * SCENE_BYTES / 1e9:.1f} GB in {folder.parent}"
        raise OSError(errno.ENOSPC, f"{text}; {free / 1e9:.1f} GB are free")
    if not fingerprint.is_file():
        _write(folder / "job.pickle", pickle.dumps(job))
        _write(fingerprint, wanted.encode())


def shard_path(folder: Path, split: str, number: int) -> Path:
    """Return where the records of a shard are."""
    return folder / f"{split}-{number:05d}.array_record"


def read_shard(folder: Path, split: str, number: int) -> Shard | None:
    """Return a shard if it is finished."""
    path = shard_path(folder, split, number)
    info = path.with_suffix(".json")
    if not (path.is_file() and info.is_file()):
        return None
    values = json.loads(info.read_text())
    return Shard(tuple(values["digests"]), values["n_bytes"]) if path.stat().st_size == values["n_bytes"] else None


def write_shard(folder: str, split: str, number: int) -> tuple[str, int]:
    """Make a shard of the job in `folder`, unless it is there; return (split, number).

    Raises:
      OSError: the disk is full, or a file cannot be read or written.
    """
    if read_shard(Path(folder), split, number) is None:
        from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

        # Each shard is computed in a thread of its own. With a heap for each, the peak of a build rose by chance with
        # the number of shards, by 170 MiB from 1 000 to 6 000 scenes, though what is in use does not grow.
        share_one_heap()
        stamp = Path(folder, "fingerprint").read_text()
        job, serialise = _open_job(folder, stamp)
        path = shard_path(Path(folder), split, number)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        digests = []
        try:
            writer = ArrayRecordWriter(str(partial), "group_size:1")  # as TFDS writes it
            for record in _records(folder, stamp, split, job.scenes(split, number)):
                serialised = serialise(record)
                writer.write(serialised)
                digests.append(hashlib.sha256(serialised).hexdigest())
            writer.close()
            if (held := ArrayRecordReader(str(partial)).num_records()) != len(digests):
                raise OSError(errno.EIO, f"{path} holds {held} of {len(digests)} records")
        except (RuntimeError, ValueError, OSError) as error:
            partial.unlink(missing_ok=True)
            if "No space left" in str(error) or shutil.disk_usage(folder).free < 2 * SCENE_BYTES:
                raise OSError(errno.ENOSPC, f"no space left on the disk of {path.parent.parent}") from error
            raise
        n_bytes = partial.stat().st_size
        partial.replace(path)
        _write(path.with_suffix(".json"), json.dumps({"digests": digests, "n_bytes": n_bytes}).encode())
    return split, number


def write_shards(folder: Path, job: Job, workers: int) -> None:
    """Make all missing shards, in this process or, with more than one worker, in as many others."""
    todo = [s for s in job.shards() if read_shard(folder, *s) is None]
    bar = tqdm(total=sum(job.n_scenes.values()), desc=job.name, unit=" scenes")
    bar.update(bar.total - sum(len(job.scenes(*s)) for s in todo))
    with bar:
        if workers == 1 or len(todo) < 2:
            for split, number in todo:
                write_shard(str(folder), split, number)
                bar.update(len(job.scenes(split, number)))
            return
        spawn = multiprocessing.get_context("spawn")  # not forked: JAX has threads
        count = min(workers, len(todo))
        with concurrent.futures.ProcessPoolExecutor(count, spawn, _end_with_parent, (os.getpid(),)) as pool:
            futures = [pool.submit(write_shard, str(folder), *s) for s in todo]
            try:
                for future in concurrent.futures.as_completed(futures):
                    bar.update(len(job.scenes(*future.result())))
            except concurrent.futures.process.BrokenProcessPool as error:
                raise OSError(errno.ECHILD, "a worker process was killed, perhaps for want of memory") from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def beam_pipeline(pipeline, folder: Path, job: Job):
    """Add the steps that make all missing shards to an Apache Beam pipeline; return the PCollection of those made.

    The same steps run on DirectRunner, Dataflow, Flink or Spark: what a worker needs is this package and the folders
    of the job and of the clips at the same paths, for instance on a shared file system.
    """
    import apache_beam as beam  # the extra `beam`

    tasks = [(str(folder), *s) for s in job.shards() if read_shard(folder, *s) is None]
    return (
        pipeline
        | "Shards" >> beam.Create(tasks)
        | "OnePerBundle" >> beam.Reshuffle()
        | "WriteShard" >> beam.Map(_write_shard_of)
    )


def total_digest(shards: Sequence[Shard]) -> str:
    """Return the SHA-256 of all records' SHA-256 in order; it does not depend on the size of the shards."""
    digest = hashlib.sha256()
    for shard in shards:
        for record in shard.digests:
            digest.update(bytes.fromhex(record))
    return digest.hexdigest()


def _end_with_parent(parent: int) -> None:
    """Watch over a worker: a build that was killed leaves no process behind."""

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_shard_of(task: tuple[str, str, int]) -> tuple[str, int]:
    return write_shard(*task)


def make_features(labels: Sequence[str] | None, scene_json: bool):
    """Return the TFDS features of a record; `labels` may still be unknown."""
    import tensorflow_datasets as tfds  # takes seconds

    from dualspec_jax import config as config_lib

    audio = config_lib.default().audio
    tensor, raw = tfds.features.Tensor, tfds.features.Encoding.BYTES
    features = {
        "audio": tensor(shape=(audio.n_samples, 2), dtype=np.int16, encoding=raw),
        "mel": tensor(shape=(audio.n_frames, audio.n_mels, 2), dtype=np.float16, encoding=raw),
        "stft": tensor(shape=(audio.n_frames, audio.n_bins, 4), dtype=np.uint8, encoding=raw),
        "caption": tfds.features.Text(),
        "azimuth_deg": np.float32,
        "label": tfds.features.Text(),
        "label_index": tfds.features.ClassLabel(names=labels),
        "licence": tfds.features.Text(),
        "source_file": tfds.features.Text(),
        "source_group": tfds.features.Text(),
    }
    return tfds.features.FeaturesDict(features | ({"scene_json": tfds.features.Text()} if scene_json else {}))


@functools.lru_cache(maxsize=1)
def _open_job(folder: str, stamp: str):
    """Return the job of a folder and the function that serialises its records; `stamp` tells jobs apart."""
    from tensorflow_datasets.core import example_serializer

    job = pickle.loads(Path(folder, "job.pickle").read_bytes())
    features = make_features(job.labels, job.recipe.scene_json)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())

    def serialise(record: dict) -> bytes:
        example = serializer.get_tf_example(features.encode_example(record))
        return example.SerializeToString(deterministic=True)  # else the order of the fields differs between processes

    return job, serialise


@functools.lru_cache(maxsize=2)
def _material(folder: str, stamp: str, split: str):
    from data.spatial_audio.scenes import Material, plan_scenes
    from dualspec_jax.spatial.hrtf import load_hrtf, spherical_head

    job, _ = _open_job(folder, stamp)
    recordings = [r for r in job.recordings if r.split == split]
    return Material(
        recordings=recordings,
        clips=Clips(recordings),
        heads=[load_hrtf(path) for path in job.heads] or [spherical_head()],
        labels=job.labels,
        plan=plan_scenes(recordings, job.n_scenes[split], split, job.seed, job.recipe.azimuth_step_deg),
        split=split,
        seed=job.seed,
        recipe=job.recipe,
    )


def _records(folder: str, stamp: str, split: str, scenes: range) -> Iterator[dict]:
    from data.spatial_audio.scenes import generate_scenes
    from dualspec_jax import config as config_lib

    return itertools.islice(
        generate_scenes(_material(folder, stamp, split), scenes, config_lib.default().audio), len(scenes)
    )


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    partial.replace(path)
