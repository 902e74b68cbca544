"""Build a config of `spatial_audio`: python -m data.spatial_audio.build --config spatial_audio_1k --data_dir DIR."""

import argparse
import os
import sys
from pathlib import Path


def main(argv=None) -> int:
    """Run the command line; return 2 after one clear line if the input is bad."""
    parser = argparse.ArgumentParser(prog="python -m data.spatial_audio.build", description=__doc__)
    parser.add_argument("--config", default="spatial_audio_1k", help="spatial_audio_1k or spatial_audio_6k")
    parser.add_argument("--data_dir", required=True, help="folder to build the data set in")
    parser.add_argument("--manual_dir", help="source folder with events/ and hrtf/; default: $DUALSPEC_DATA")
    parser.add_argument("--overwrite", action="store_true", help="build again where the data set exists")
    args = parser.parse_args(argv)
    try:
        build(args.config, args.data_dir, args.manual_dir, overwrite=args.overwrite)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def build(config, data_dir, manual_dir=None, *, overwrite: bool = False):
    """Build a config (its name or a SpatialAudioConfig) below data_dir and return the builder.

    Raises:
      ValueError: for an unknown config or a bad source folder.
    """
    import tensorflow_datasets as tfds  # takes seconds: only after the arguments are read

    from data.spatial_audio.spatial_audio_dataset_builder import Builder

    root = manual_dir or os.environ.get("DUALSPEC_DATA")
    if not root:
        raise ValueError("no source folder: pass --manual_dir ROOT or set DUALSPEC_DATA=ROOT")
    if not Path(root, "events", "metadata.csv").is_file():
        raise ValueError(f"{root} is no source folder: events/metadata.csv is missing")
    if isinstance(config, str) and config not in Builder.builder_configs:
        raise ValueError(f"--config {config!r}: it must be one of {', '.join(Builder.builder_configs)}")
    builder = Builder(data_dir=str(data_dir), config=config)
    if builder.is_prepared() and overwrite:
        builder.data_path.rmtree()
        builder = Builder(data_dir=str(data_dir), config=config)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(root)))
    print(f"{builder.info.full_name}: {_summary(builder)} in {builder.data_path}")
    return builder


def _summary(builder) -> str:
    splits = ", ".join(f"{n} {s.num_examples}" for n, s in builder.info.splits.items())
    return f"{splits} scenes, {sum(s.num_bytes for s in builder.info.splits.values()) / 1e6:.0f} MB"


if __name__ == "__main__":
    sys.exit(main())
