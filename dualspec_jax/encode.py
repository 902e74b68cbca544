"""Write the cached latents that diffusion trains on: `python -m dualspec_jax.encode --config C --workdir W`."""

import concurrent.futures
import json
import os
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
from dualspec_jax.config_rules import validate
from dualspec_jax.latents import latents_folder
from dualspec_jax.scene_source import SceneSource
from dualspec_jax.sharding import batch_sharding, make_mesh, replicated

SHARD = 512  # scenes in one file: what a killed run loses at most


def encode_split(
    config: ConfigDict,
    workdir: Path,
    split: str,
    batch_size: int,
    dataset: str | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Path:
    """Encode all scenes of a split to posterior means, on all devices of this host; return the folder.

    Writes, for every `SHARD` scenes, latents-*.npy float16 [n, t, f, C] (Mel channels first), azimuth_deg-*.npy,
    label_index-*.npy, more_sources-*.npy float32 [n, 2, 2] (label and azimuth of further sources, -1 = none; only where
    scenes have any) and, last, shard-*.json. When all shards are there, meta.json gets the labels and the mean and
    standard deviation per channel. A rerun makes the missing shards; other data or VAEs mean all of them.

    Args:
      dataset: a data set of `config.feeding.mix`; None = config.data.dataset.
      shard: (index, count) of this host: it makes every count-th file. The last host to finish writes meta.json.

    Raises:
      ValueError: the data set or a VAE is missing.
    """
    name = dataset or config.data.dataset
    data_dir = config.data.data_dir or workdir / "tfds"
    source = SceneSource(data_dir, name, split, ("mel", "stft"), optional=("scene_json",))
    folder = latents_folder(config.data.latents_dir or workdir / "latents", split, dataset)
    folder.mkdir(parents=True, exist_ok=True)
    params = {vae: load_params(workdir / vae)[0] for vae in ("mel_vae", "stft_vae")}
    checksum = float(sum(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(params)))
    origin = {"dataset": name, "count": len(source), "vae_checksum": checksum}
    meta_path = folder / "meta.json"
    count = -(-len(source) // SHARD)
    if meta_path.is_file() and _same(json.loads(meta_path.read_text())["origin"], origin):
        return folder
    if shard[0] == 0:
        meta_path.unlink(missing_ok=True)
        _remove_old(folder, count)
    mine = [k for k in range(count) if k % shard[1] == shard[0] and _read_shard(folder, k, origin) is None]
    if mine:
        encode = _make_encoder(config, params, batch_size)
        scenes = lambda k: range(k * SHARD, min((k + 1) * SHARD, len(source)))
        with tqdm(total=sum(len(scenes(k)) for k in mine), unit="clip", desc=f"encode {split}") as bar:
            for k in mine:
                _write_shard(folder, k, origin, source, scenes(k), encode, batch_size, bar)
    parts = [_read_shard(folder, k, origin) for k in range(count)]
    if all(parts):
        total, squares, n = (np.sum([part[field] for part in parts], axis=0) for field in ("sum", "squares", "n"))
        mean = total / n
        std = np.sqrt(squares / n - mean**2)
        meta = {"labels": list(source.labels), "mean": mean.tolist(), "std": std.tolist(), "origin": origin}
        _write(meta_path, meta)
    return folder


def _make_encoder(config: ConfigDict, params, batch_size: int):
    """Return (mel, stft) -> float16 latents as NumPy; the batch is split over the devices of this host."""
    mesh = make_mesh(batch_size, devices=jax.local_devices())
    params = jax.device_put(params, replicated(mesh))
    encode = jax.jit(networks.make_latent_encoder(config))

    def encode_batch(mel, stft) -> np.ndarray:
        mel, stft = jax.device_put((mel, stft), batch_sharding(mesh))
        return np.asarray(encode(params, mel, stft).astype(jnp.float16))

    return encode_batch


def _write_shard(folder, k, origin, source, scenes, encode, batch_size, bar) -> None:
    def read(start: int) -> list[dict]:
        return [source[i] for i in range(start, min(start + batch_size, scenes.stop))]

    latents, records = [], []
    with concurrent.futures.ThreadPoolExecutor(1) as pool:  # one batch is read while another is encoded
        ahead = pool.submit(read, scenes.start)
        for start in scenes[::batch_size]:
            batch = ahead.result()
            ahead = pool.submit(read, start + batch_size)
            filled = batch + batch[-1:] * (batch_size - len(batch))
            mel, stft = (np.stack([record[field] for record in filled]) for field in ("mel", "stft"))
            latents.append(encode(mel, stft)[: len(batch)])
            records += [{f: v for f, v in record.items() if f not in ("mel", "stft")} for record in batch]
            bar.update(len(batch))
    latents = np.concatenate(latents)
    arrays = {
        "latents": latents,
        "azimuth_deg": np.array([r["azimuth_deg"] for r in records], np.float32),
        "label_index": np.array([r["label_index"] for r in records], np.int32),
    }
    if "scene_json" in records[0]:
        arrays["more_sources"] = np.stack([_more_sources(r["scene_json"], source.labels) for r in records])
    for name, array in arrays.items():
        partial = folder / f"{name}-{k:05d}.partial.npy.{os.getpid()}"
        with open(partial, "wb") as file:
            np.save(file, array)
        partial.replace(folder / f"{name}-{k:05d}.npy")
    flat = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
    sums = {"n": len(flat), "sum": flat.sum(0).tolist(), "squares": (flat**2).sum(0).tolist()}
    _write(folder / f"shard-{k:05d}.json", {"origin": origin} | sums)


def _more_sources(scene_json: str | bytes, labels) -> np.ndarray:
    """Return (label index, azimuth) of the second and third source, float32 [2, 2]; -1 where there is none."""
    out = np.full((2, 2), -1, np.float32)
    for row, extra in zip(out, json.loads(scene_json)["sources"][1:], strict=False):
        row[:] = labels.index(extra["label"]), extra["azimuth_deg"]
    return out


def _read_shard(folder: Path, k: int, origin: dict) -> dict | None:
    """Return what shard-*.json says, if it is there and of this data and these VAEs."""
    path = folder / f"shard-{k:05d}.json"
    content = json.loads(path.read_text()) if path.is_file() else None
    return content if content and _same(content["origin"], origin) else None


def _same(a: dict, b: dict) -> bool:
    """Compare two origins; the sum over the VAEs' parameters differs in its last digits from device to device."""
    close = np.isclose(a["vae_checksum"], b["vae_checksum"], rtol=1e-5)
    return bool(close) and all(a[name] == b[name] for name in ("dataset", "count"))


def _remove_old(folder: Path, count: int) -> None:
    """Delete files of a larger data set, and those of the time when a split was one file."""
    for path in folder.glob("*.npy"):
        number = path.stem.rpartition("-")[2]
        if not number.isdigit() or int(number) >= count:
            path.unlink()
    for path in (*folder.glob("*.partial.npy.*"), folder / "progress.json"):
        path.unlink(missing_ok=True)


def _write(path: Path, content: dict) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content))
    partial.replace(path)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    given = flags.FLAGS
    for name in ("config", "workdir"):
        if not given[name].value:
            raise ValueError(f"--{name} is required")
    validate(given.config)
    compile_cache.enable()
    shard = (given.shard_index, given.shard_count)
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard_index = {shard[0]}: must be in [0, shard_count = {shard[1]})")
    for dataset in (None, *(name for name, _ in given.config.feeding.mix)):
        for split in ("train", "valid") if dataset is None else ("train",):
            print(encode_split(given.config, Path(given.workdir).absolute(), split, given.batch_size, dataset, shard))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Experiment, a file in configs/.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder of the trained VAEs; latents go to <workdir>/latents.")
    flags.DEFINE_integer("shard_index", 0, "Number of this host among those that encode together, from 0.")
    flags.DEFINE_integer("shard_count", 1, "How many hosts encode together, into one shared folder.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 8, "Clips encoded at once.", lower_bound=1)
    run(main)
