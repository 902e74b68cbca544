"""Write the cached latents that diffusion trains on: `python -m dualspec_jax.encode --config C --workdir W`."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from dualspec_jax import compile_cache, networks
from dualspec_jax.checkpoint import load_params
from dualspec_jax.command_line import run
from dualspec_jax.config import validate
from dualspec_jax.input_pipeline import SceneSource


def encode_split(config: ConfigDict, workdir: Path, split: str, batch_size: int) -> Path:
    """Encode all scenes of a split to posterior means; return the folder.

    Writes latents.npy float16 [N, t, f, C] (Mel channels first), azimuth_deg.npy, label_index.npy and, last,
    meta.json with the labels and the mean and standard deviation per channel. A rerun goes on where the last one
    stopped, unless the data set or the VAEs' steps have changed; then it starts again.
    """
    source = SceneSource(config.data.data_dir or workdir / "tfds", config.data.dataset, split, ("mel", "stft"))
    folder = Path(config.data.latents_dir or workdir / "latents") / split
    folder.mkdir(parents=True, exist_ok=True)
    mel_params, stft_params = load_params(workdir / "mel_vae")[0], load_params(workdir / "stft_vae")[0]
    mel_vae, stft_vae = networks.make_vae(config.mel_vae), networks.make_vae(config.stft_vae)
    checksum = float(sum(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves((mel_params, stft_params))))
    origin = {"dataset": config.data.dataset, "count": len(source), "vae_checksum": checksum}

    @jax.jit
    def encode(mel, stft):
        mel_mu, _ = mel_vae.apply({"params": mel_params}, mel, method="encode")
        stft_mu, _ = stft_vae.apply({"params": stft_params}, stft, method="encode")
        return jnp.concatenate([mel_mu, stft_mu], axis=-1).astype(jnp.float16)

    progress_path, meta_path = folder / "progress.json", folder / "meta.json"
    shape = (len(source), *networks.latent_shape(config))
    done = 0
    if progress_path.exists():
        progress = json.loads(progress_path.read_text())
        done = progress["done"] if progress["origin"] == origin else 0
    if done == 0:
        meta_path.unlink(missing_ok=True)
    mode = "r+" if done else "w+"
    latents = np.lib.format.open_memmap(folder / "latents.npy", mode, np.float16, None if done else shape)
    azimuth = np.lib.format.open_memmap(folder / "azimuth_deg.npy", mode, np.float32, None if done else shape[:1])
    label = np.lib.format.open_memmap(folder / "label_index.npy", mode, np.int32, None if done else shape[:1])
    with tqdm(total=len(source), initial=done, unit="clip", desc=f"encode {split}") as bar:
        for start in range(done, len(source), batch_size):
            records = [source[i] for i in range(start, min(start + batch_size, len(source)))]
            pad = [records[-1]] * (batch_size - len(records))
            stack = lambda name: np.stack([r[name] for r in records + pad])  # noqa: B023 - used in this turn only
            n = len(records)
            latents[start : start + n] = np.asarray(encode(stack("mel"), stack("stft")))[:n]
            azimuth[start : start + n] = [r["azimuth_deg"] for r in records]
            label[start : start + n] = [r["label_index"] for r in records]
            bar.update(n)
            if start // batch_size % 50 == 0 or start + n == len(source):
                for array in (latents, azimuth, label):
                    array.flush()
                partial = progress_path.with_suffix(".partial")
                partial.write_text(json.dumps({"done": start + n, "origin": origin}))
                partial.replace(progress_path)
    flat = latents.reshape(-1, shape[-1])
    total, squares = np.zeros(shape[-1]), np.zeros(shape[-1])
    for part in np.array_split(np.arange(len(flat)), max(1, len(flat) // 1_000_000)):
        x = flat[part].astype(np.float64)
        total, squares = total + x.sum(0), squares + (x**2).sum(0)
    mean = total / len(flat)
    std = np.sqrt(squares / len(flat) - mean**2)
    meta = {"labels": list(source.labels), "mean": mean.tolist(), "std": std.tolist(), "origin": origin}
    partial = meta_path.with_suffix(".partial")
    partial.write_text(json.dumps(meta))
    partial.replace(meta_path)
    return folder


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    given = flags.FLAGS
    for name in ("config", "workdir"):
        if not given[name].value:
            raise ValueError(f"--{name} is required")
    validate(given.config)
    compile_cache.enable()
    for split in ("train", "valid"):
        print(encode_split(given.config, Path(given.workdir).absolute(), split, given.batch_size))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Experiment, a file in configs/.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder of the trained VAEs; latents go to <workdir>/latents.")
    flags.DEFINE_integer("batch_size", 8, "Clips encoded at once.", lower_bound=1)
    run(main)
