"""Turn checkpoints into a bundle: `python -m dualspec_jax.export --config C --workdir W --out B --data ROOT`."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from dualspec_jax import __version__
from dualspec_jax.bundle import save_bundle
from dualspec_jax.checkpoint import latest_step, load_params
from dualspec_jax.command_line import run
from dualspec_jax.config_rules import validate
from dualspec_jax.diffusion.direction_prior import MIN_SCENES, fit_direction_prior
from dualspec_jax.latents import load_latents
from dualspec_jax.single_branch import branch_of

CARD = """\
# Model card: dualspec_jax embedded bundle

Text to two-ear audio: a sentence that names a sound and a direction becomes 5.12 s of binaural audio at 16 kHz that
comes from there. Made by dualspec_jax {version}; a design after DualSpec (Zhao et al. 2025, arXiv:2502.18952), trained
from scratch by this project. Licence of the weights: Apache-2.0. They were trained on the recordings listed below, each
under the licence named there; the CC-BY ones ask for the attribution that this card gives.

## Parts

| part | parameters | training steps |
|---|---|---|
{parts}

`config.json` holds the settings and the SHA-256 of every file.

## Training data

{count} mono recordings (split `train`) of {labels} labels, rendered anechoically at azimuths all around by the HRTF
below (for the decoder of the STFT-VAE in rooms too), as data set
`{dataset}` (built by `python -m data.spatial_audio.build`).

HRTF: {hrtf}

| collection | recordings |
|---|---|
{collections}

| licence | recordings |
|---|---|
{licences}

## Intended use and limits

Sound effects and ambience for research and prototyping. It knows the labels in `config.json`; many have few recordings,
and what it makes of those is close to them in kind. One source, anechoic, one head (a KEMAR mannequin), horizontal
plane only. On the median plane the two ears of this head are equal, so front and back differ there by timbre only. No
speech. Measured quality: README.md of the project, `python -m dualspec_jax.evaluate`.

## Every recording

| file | label | title | author | licence | source |
|---|---|---|---|---|---|
{recordings}
"""

HRTF_KEMAR = (
    "KEMAR dummy head, normal pinna, W. G. Gardner and K. D. Martin, MIT Media Lab 1994 (J. Acoust. Soc. Am. 97 (6), "
    "1995); free with no restrictions on use, provided the authors are cited. Its responses are not in this bundle."
)


def total_steps(workdir: Path, here: dict[str, int]) -> dict[str, int]:
    """Return {part: steps trained in all}: those in the workdir and, where it began with a bundle that says, before.

    Empty where the bundle does not say.
    """
    path = workdir / "imported.json"
    if not path.is_file():
        return here
    before = json.loads(path.read_text())["steps"]
    return {part: before.get(part, 0) + n for part, n in here.items()} if before else {}


def _trained(part: str, steps: dict[str, int]) -> int | str:
    return "fitted, not trained" if part == "direction" else steps.get(part, "not recorded")


def model_card(config: ConfigDict, data: Path, params: dict, steps: dict[str, int]) -> str:
    """Return the model card: parts, training data and the attribution of every recording.

    Args:
      steps: of `total_steps`; the card says "not recorded" where it is empty.

    Raises:
      ValueError: no events/metadata.csv below data, or it lacks a column the card needs.
    """
    path = data / "events" / "metadata.csv"
    if not path.is_file():
        raise ValueError(f"data = {str(data)!r}: no events/metadata.csv there")
    with path.open(newline="", encoding="utf-8") as f:
        rows = [row for row in csv.DictReader(f) if row.get("split") == "train"]
    columns = ("file", "label", "title", "author", "licence", "source_url", "collection")
    missing = [name for name in columns if not rows or name not in rows[0]]
    if missing:
        raise ValueError(f"{path}: the model card needs the columns {', '.join(missing)}")
    found = sorted((data / "hrtf").glob("*.sofa"))
    if not found:
        hrtf = "analytic rigid sphere (no measured data)."
    elif "kemar" in found[0].name.lower():
        hrtf = HRTF_KEMAR
    else:
        hrtf = f"{found[0].name} (see its own licence)."
    clean = lambda text: text.replace("|", "/").replace("\n", " ").strip()
    table = lambda counter: "\n".join(f"| {name} | {n} |" for name, n in counter.most_common())
    import jax  # after the flags are read

    size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    return CARD.format(
        version=__version__,
        parts="\n".join(f"| {part} | {size(params[part]) / 1e6:.2f} M | {_trained(part, steps)} |" for part in params),
        count=len(rows),
        labels=len({row["label"] for row in rows}),
        dataset=config.data.dataset,
        hrtf=hrtf,
        collections=table(Counter(row["collection"] for row in rows)),
        licences=table(Counter(row["licence"] for row in rows)),
        recordings="\n".join("| " + " | ".join(clean(row[name]) for name in columns[:6]) + " |" for row in rows),
    )


def _single_sources(latents) -> bool:
    return all(len(latents.sources(i)) == 1 for i in range(len(latents)))


def bundle_config(config: ConfigDict, folder: Path) -> ConfigDict:
    """Return the config of a bundle trained on these cached latents.

    Where scenes have several sources, prompts name several sounds: they are not reduced to one label, nor are clips
    drawn to one sound, or made again for not being one.
    """
    if _single_sources(load_latents(folder)):
        return config
    config = config.copy_and_resolve_references()
    config.sampler.update(reword=False, event_guidance=0.0, accept=0.0)
    return config


def direction_prior(config: ConfigDict, folder: Path, meta: dict) -> dict | None:
    """Fit `diffusion.direction_prior` to the cached latents of the training split.

    Returns None where it does not apply: too few scenes, scenes of several sources, or a model without STFT branch.
    """
    latents, n_mel = load_latents(folder), config.mel_vae.latent_channels
    if len(latents) < MIN_SCENES or not _single_sources(latents) or branch_of(config) == "mel":
        return None
    mean, std = np.float32(meta["mean"])[n_mel:], np.float32(meta["std"])[n_mel:]
    means = [((latents.latent(i)[..., n_mel:].mean(0) - mean) / std).ravel() for i in range(len(latents))]
    return fit_direction_prior(np.stack(means), latents.azimuth_deg)


def export(config: ConfigDict, workdir: Path, out: Path, data: Path) -> str:
    """Write the bundle of a workdir's newest checkpoints (averaged parameters); return its digest.

    Raises:
      ValueError: a part is not trained yet, `out` exists, or the card cannot be made.
    """
    tasks = {"text_encoder": "text_encoder", "unet": "diffusion"}
    if out.exists():
        raise ValueError(f"out = {str(out)!r}: exists already; choose a new folder")
    from dualspec_jax.vae_tasks import load_vae, second_stage_of  # after the flags are read

    params, steps = {}, {}
    for vae in ("mel_vae", "stft_vae"):
        params[vae] = load_vae(workdir, vae)
        steps[vae] = sum(latest_step(workdir / task) or 0 for task in (vae, second_stage_of(vae)))
    for part, task in tasks.items():
        params[part] = load_params(workdir / task)[0]
        steps[part] = latest_step(workdir / task)
    params["text_encoder"] = params["text_encoder"]["encoder"]
    if (step := latest_step(workdir / "vocoder")) is not None:
        params["vocoder"], steps["vocoder"] = load_params(workdir / "vocoder")[0]["generator"], step
    for part in ("reader", "event_guide", "listener"):
        if (step := latest_step(workdir / part)) is not None:
            params[part], steps[part] = load_params(workdir / part)[0], step
    steps = total_steps(workdir, steps)
    latents_dir = Path(config.data.latents_dir or workdir / "latents")
    meta_path = latents_dir / "train" / "meta.json"
    if not meta_path.is_file():
        raise ValueError(f"workdir = {str(workdir)!r}: no latents/train/meta.json; run dualspec_jax.encode first")
    meta = json.loads(meta_path.read_text())
    if (prior := direction_prior(config, latents_dir / "train", meta)) is not None:
        params["direction"] = prior
    return save_bundle(
        out,
        bundle_config(config, latents_dir / "train"),
        params,
        (workdir / "tokenizer.json").read_text(encoding="utf-8"),
        meta["mean"],
        meta["std"],
        tuple(meta["labels"]),
        model_card(config, data, params, steps),
        steps,
    )


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    given = flags.FLAGS
    for name in ("config", "workdir", "out", "data"):
        if not given[name].value:
            raise ValueError(f"--{name} is required")
    validate(given.config)
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file it touches
    out = Path(given.out)
    digest = export(given.config, Path(given.workdir).absolute(), out, Path(given.data))
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size / 1e6:.1f} MB, digest {digest}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Experiment, a file in configs/.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder of the trained parts.")
    flags.DEFINE_string("out", None, "New bundle folder.")
    flags.DEFINE_string("data", None, "Source folder with events/metadata.csv and hrtf/, for the model card.")
    run(main)
