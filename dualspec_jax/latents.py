"""Read the cached latents that `dualspec_jax.encode` writes."""

import json
from pathlib import Path

import numpy as np


class Latents:
    """Cached latents of a split, in one or more shards; nothing is read before it is asked for. It can be pickled.

    Attributes:
      labels: names that `label_index` counts in.
      label_index, azimuth_deg: int32 and float32 [n], of each scene's first source.
    """

    def __init__(self, folder: Path):
        meta = json.loads((folder / "meta.json").read_text())
        self.labels = tuple(meta["labels"])
        self._paths = sorted(folder.glob("latents*.npy"))  # latents.npy, or latents-00000.npy and so on
        of = lambda name: [path.with_name(path.name.replace("latents", name, 1)) for path in self._paths]
        self.label_index = np.concatenate([np.load(path) for path in of("label_index")])
        self.azimuth_deg = np.concatenate([np.load(path) for path in of("azimuth_deg")])
        more = [path for path in of("more_sources") if path.is_file()]
        self._more = np.concatenate([np.load(path) for path in more]) if more else None  # [n, 2, (label, azimuth)]
        lengths = [len(np.load(path, mmap_mode="r")) for path in self._paths]
        self._starts = np.cumsum([0, *lengths])
        counts = {
            "latents": int(self._starts[-1]), "azimuth_deg": len(self.azimuth_deg), "label_index": len(self.label_index)
        }  # fmt: skip
        if len(set(counts.values())) != 1:
            raise ValueError(f"{folder}: the arrays differ in length: {counts}")
        self._open = {}

    def __len__(self) -> int:
        return len(self.label_index)

    def __getstate__(self):
        return self.__dict__ | {"_open": {}}

    def latent(self, index: int) -> np.ndarray:
        """Return one scene's latent, float32 [t, f, C]."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        if shard not in self._open:
            self._open[shard] = np.load(self._paths[shard], mmap_mode="r")
        return self._open[shard][index - self._starts[shard]].astype(np.float32)

    def write_subset(self, folder: Path, rows: np.ndarray) -> None:
        """Write some scenes, in this order, as one shard of a folder that exists; meta.json is the caller's."""
        shape = (len(rows), *self.latent(0).shape)
        target = np.lib.format.open_memmap(folder / "latents.npy", mode="w+", dtype=np.float16, shape=shape)
        for place, row in enumerate(rows):
            target[place] = self.latent(row)
        target.flush()
        np.save(folder / "azimuth_deg.npy", self.azimuth_deg[rows])
        np.save(folder / "label_index.npy", self.label_index[rows])
        if self._more is not None:
            np.save(folder / "more_sources.npy", self._more[rows])

    def sources(self, index: int) -> list[tuple[int, float]]:
        """Return (label index, azimuth) of every source of a scene, the first one first."""
        found = [(int(self.label_index[index]), float(self.azimuth_deg[index]))]
        if self._more is not None:
            found += [(int(label), float(azimuth)) for label, azimuth in self._more[index] if label >= 0]
        return found


def load_latents(folder) -> Latents:
    """Open the cached latents of a split.

    Raises:
      ValueError: there are none, or they are not complete.
    """
    folder = Path(folder or "")
    if not (folder / "meta.json").is_file():
        raise ValueError(f"latents_dir = {str(folder)!r} holds no cached latents: run dualspec_jax.encode first")
    return Latents(folder)


def latents_folder(latents_dir, split: str, dataset: str | None = None) -> Path:
    """Return where the latents of a split are: of `config.data.dataset`, or of a data set that is mixed in."""
    folder = Path(latents_dir) / split
    return folder if dataset is None else latents_of(folder, dataset)


def latents_of(folder, dataset: str | None):
    """Return the folder of a mixed-in data set's latents, given that of the main one."""
    if not folder or dataset is None:
        return folder
    name = dataset.partition(":")[0].split("/")[-1]
    return Path(folder).with_name(f"{Path(folder).name}.{name}")
