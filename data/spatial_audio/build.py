"""Build a config of `spatial_audio`: python -m data.spatial_audio.build --config spatial_audio_1k --data_dir DIR.

Killed at any moment, the same command goes on where it stopped. Readers see the data set only once it is whole.
"""

import argparse
import errno
import json
import os
import shutil
import sys
from pathlib import Path


def main(argv=None) -> int:
    """Run the command line; return 2 after one clear line if the input is bad, 1 if the disk is full."""
    parser = argparse.ArgumentParser(
        prog="python -m data.spatial_audio.build", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--config", default="spatial_audio_1k", help="spatial_audio_1k, _6k, _grid or _full")
    add("--data_dir", required=True, help="folder to build the data set in")
    add("--manual_dir", help="source folder: clips and hrtf/; default: $DUALSPEC_DATA")
    add("--licences", default="", help="keep only clips under these, for instance CC0,CC-BY; default: all")
    add("--workers", type=int, default=1, help="processes; the records do not depend on it")
    add("--beam", metavar="OPTIONS", help='build with Apache Beam, for instance --beam="--runner=FlinkRunner";\n'
        'empty OPTIONS take the DirectRunner with --workers processes')  # fmt: skip
    add("--overwrite", action="store_true", help="build again where the data set exists")
    args = parser.parse_args(argv)
    licences = tuple(name.strip() for name in args.licences.split(",")) if args.licences else ()
    try:
        build(
            args.config,
            args.data_dir,
            args.manual_dir,
            overwrite=args.overwrite,
            licences=licences,
            workers=args.workers,
            beam=None if args.beam is None else args.beam.split(),
        )
    except (ValueError, OSError) as error:
        text = " ".join(
            str(error.strerror if getattr(error, "strerror", None) and not error.filename else error).split()
        )
        print(f"error: {text}", file=sys.stderr)
        return 1 if getattr(error, "errno", None) == errno.ENOSPC else 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def build(config, data_dir, manual_dir=None, *, overwrite=False, licences=(), workers=1, beam=None):
    """Build a config (its name or a SpatialAudioConfig) below data_dir and return the builder.

    Args:
      overwrite: build again where the data set exists; the old one is deleted first.
      licences: names of licences to keep, such as ("CC0", "CC-BY"); empty = all.
      workers: processes.
      beam: options of an Apache Beam pipeline, a list of strings; None = without Beam.

    Raises:
      ValueError: for an unknown config, a bad source folder, or a data set that exists with other licences.
      OSError: the disk is full, or a file cannot be read or written.
    """
    if workers < 1:
        raise ValueError(f"workers = {workers}: must be at least 1")
    root = manual_dir or os.environ.get("DUALSPEC_DATA")
    if not root:
        raise ValueError("no source folder: pass --manual_dir ROOT or set DUALSPEC_DATA=ROOT")
    if not Path(root).is_dir() or not any(Path(root).iterdir()):
        raise ValueError(f"{root} is no source folder: it does not exist or is empty")

    import tensorflow_datasets as tfds  # takes seconds: only after the arguments are read

    from data.spatial_audio.spatial_audio_dataset_builder import BUILD_JSON, Builder, HowToBuild

    if isinstance(config, str) and config not in Builder.builder_configs:
        raise ValueError(f"--config {config!r}: it must be one of {', '.join(Builder.builder_configs)}")
    builder = Builder(data_dir=str(data_dir), config=config)
    if builder.is_prepared():
        told = Path(builder.data_dir, BUILD_JSON)
        before = json.loads(told.read_text())["licences"] if told.is_file() else []
        if not overwrite and before != list(licences):
            raise ValueError(
                f"licences = {','.join(licences)!r}: {builder.data_dir} was built with {','.join(before)!r}; "
                "pass --overwrite to build it again"
            )
        if overwrite:
            builder.data_path.rmtree()
    for left in Path(builder.data_dir).parent.glob("incomplete.*"):  # of builds that were killed
        shutil.rmtree(left, ignore_errors=True)
    builder = Builder(data_dir=str(data_dir), config=config)
    builder.how = HowToBuild(tuple(licences), workers, None if beam is None else _beam_runner(beam, workers))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(root)))
    print(f"{builder.info.full_name}: {_summary(builder)} in {builder.data_path}")
    return builder


def _beam_runner(options: list[str], workers: int):
    """Return (folder, job) -> None that runs the pipeline of `job.beam_pipeline` to its end."""
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ValueError(f'--beam: Apache Beam is not installed ({error}); pip install ".[beam]"') from error
    from data.spatial_audio.job import beam_pipeline

    given = list(options)
    if not any(option.startswith("--runner") for option in given):
        mode = "multi_processing" if workers > 1 else "in_memory"
        given += ["--runner=DirectRunner", f"--direct_num_workers={workers}", f"--direct_running_mode={mode}"]

    def run(folder, job) -> None:
        with apache_beam.Pipeline(options=PipelineOptions(given)) as pipeline:
            beam_pipeline(pipeline, folder, job)

    return run


def _summary(builder) -> str:
    splits = ", ".join(f"{n} {s.num_examples}" for n, s in builder.info.splits.items())
    told = Path(builder.data_dir, "build.json")
    digests = json.loads(told.read_text())["sha256"] if told.is_file() else {}
    digests = "".join(f", sha256 {split} {digest[:16]}" for split, digest in digests.items())
    return f"{splits} scenes, {sum(s.num_bytes for s in builder.info.splits.values()) / 1e6:.0f} MB{digests}"


if __name__ == "__main__":
    sys.exit(main())
