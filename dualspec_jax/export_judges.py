"""Turn checkpoints into the files that judge clips: `python -m dualspec_jax.export_judges --workdir W --out FOLDER`.

Writes classifier.safetensors and localiser.safetensors, whichever <workdir>/<task> has a checkpoint of; `evaluate`
reads those of the package, dualspec_jax/evaluation_models.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import flags

from dualspec_jax import networks
from dualspec_jax.checkpoint import latest_step, load_params
from dualspec_jax.command_line import run
from dualspec_jax.event_metrics import save_classifier
from dualspec_jax.input_pipeline import make_batches
from dualspec_jax.network_localiser import fit_temperature, save_localiser
from dualspec_jax.scene_source import SceneSource


def export_classifier(workdir: Path, path: Path) -> None:
    """Write the classifier's averaged parameters; the labels are those of the data set it was trained on."""
    params, config = load_params(workdir / "classifier")
    source = SceneSource(config.data.data_dir or workdir / "tfds", config.data.dataset, "train", ("label_index",))
    audio = config.audio
    save_classifier(path, params, source.labels, config.classifier, audio.sample_rate / audio.hop_length)


def export_localiser(workdir: Path, path: Path) -> float:
    """Write the localiser's averaged parameters with the temperature that fits validation scenes; return that."""
    params, config = load_params(workdir / "localiser")
    model = networks.make_localiser(config.localiser, config.audio)
    apply = jax.jit(lambda x: model.apply({"params": params}, x))
    batches = list(make_batches(config, "localiser", "valid", seed=config.seed, train=False))
    logits = np.concatenate([np.asarray(apply(b["statistics"])) for b in batches])
    temperature = fit_temperature(logits, np.concatenate([b["azimuth_deg"] for b in batches]))
    save_localiser(path, params, temperature, config.localiser, config.audio)
    return temperature


def export_judges(workdir: Path, out: Path) -> list[Path]:
    """Write what is trained to an existing or new folder; return the files.

    Raises:
      ValueError: neither judge is trained.
    """
    writers: dict[str, Callable] = {"classifier": export_classifier, "localiser": export_localiser}
    trained = [name for name in writers if latest_step(workdir / name) is not None]
    if not trained:
        raise ValueError(f"workdir = {str(workdir)!r}: no checkpoint of {' or '.join(writers)} there")
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in trained:
        paths.append(out / f"{name}.safetensors")
        writers[name](workdir, paths[-1])
    return paths


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    given = flags.FLAGS
    for name in ("workdir", "out"):
        if not given[name].value:
            raise ValueError(f"--{name} is required")
    for path in export_judges(Path(given.workdir).absolute(), Path(given.out)):
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the trained judges.")
    flags.DEFINE_string("out", None, "Folder for the files, such as dualspec_jax/evaluation_models.")
    run(main)
