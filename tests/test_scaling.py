import importlib.util
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from dualspec_jax import scaling
from dualspec_jax.latents import load_latents

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs" / "scaling").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_grid_expands_to_valid_experiments(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    grid = load(path).get_config()
    runs = scaling.expand(grid)
    assert len(runs) == len(grid.sizes) * len(grid.fractions) * len(grid.steps) >= 6
    assert len({one.name for one in runs}) == len(runs)
    for one in runs:
        config = scaling.load_experiment(grid, one.overrides)
        assert config.train[grid.task].steps == one.steps
        assert config.unet.channels == grid.sizes[one.size].channels
    assert "Command:" in load(path).__doc__


def law_results(irreducible, scales, noise=0.0):
    rng = np.random.default_rng(0)
    results = []
    for n, fraction, seen in itertools.product((1e5, 4e5, 1.6e6), (0.0625, 0.25, 1.0), (800, 3200, 12800)):
        point = dict(zip(scaling.AXES, (n, fraction, seen), strict=True))
        terms = (scales[name] * point[name] ** -exponent for name, exponent in EXPONENTS.items())
        results.append(point | {"loss": (irreducible + sum(terms)) * np.exp(noise * rng.normal())})
    return results


EXPONENTS = {"parameters": 0.4, "fraction": 0.5, "examples_seen": 0.3}
SCALES = {"parameters": 20.0, "fraction": 0.05, "examples_seen": 4.0}


def test_fit_finds_the_law_that_made_the_losses():
    results = law_results(0.3, SCALES)
    fitted = scaling.fit(results)
    assert fitted["irreducible"] == pytest.approx(0.3, abs=0.01) and fitted["runs"] == 27
    assert fitted["irreducible_resolved"] and not scaling.fit(law_results(0.0, SCALES))["irreducible_resolved"]
    for name, exponent in EXPONENTS.items():
        assert fitted["terms"][name]["exponent"] == pytest.approx(exponent, abs=0.03)
    for r in results:
        assert scaling.predict(fitted, r) == pytest.approx(r["loss"], rel=1e-3)
    assert scaling.predict(fitted, {name: 1e12 for name in scaling.AXES}) == pytest.approx(0.3, abs=0.02)


def test_noise_shows_in_the_residual_and_one_outlier_does_not_bend_the_fit():
    results = law_results(0.3, SCALES, noise=0.02)
    assert 0.005 < scaling.fit(results)["residual"] < 0.04
    results = law_results(0.3, SCALES)
    results[4]["loss"] *= 2.0
    assert scaling.predict(scaling.fit(results), results[0]) == pytest.approx(results[0]["loss"], rel=0.02)


def test_axis_that_does_not_vary_is_left_out_and_too_few_runs_are_refused():
    results = [r for r in law_results(0.3, SCALES) if r["fraction"] == 1.0]
    assert list(scaling.fit(results)["terms"]) == ["parameters", "examples_seen"]
    with pytest.raises(ValueError, match="4 runs that vary .* needs at least 5"):
        scaling.fit([r for r in results if r["parameters"] < 1e6 and r["examples_seen"] < 1e4])
    with pytest.raises(ValueError, match="fraction has two values"):
        scaling.fit([r for r in law_results(0.3, SCALES) if r["fraction"] > 0.1])
    with pytest.raises(ValueError, match="vary nothing"):
        scaling.fit(results[:1])


def test_picture_is_written(tmp_path):
    results = law_results(0.3, SCALES)
    scaling.draw(results, scaling.fit(results), tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 5000


def write_latents(folder, shards, more=False):
    """Write scenes 0, 1, ... as `dualspec_jax.encode` does, one file of each kind a shard."""
    folder.mkdir(parents=True)
    first = 0
    for shard, count in enumerate(shards):
        scenes = np.arange(first, first + count)
        first += count
        np.save(folder / f"latents-{shard:05d}.npy", np.float16(scenes).reshape(count, 1, 1, 1))
        np.save(folder / f"azimuth_deg-{shard:05d}.npy", np.float32(scenes))
        np.save(folder / f"label_index-{shard:05d}.npy", np.int32(scenes))
        if more:
            np.save(folder / f"more_sources-{shard:05d}.npy", np.float32(np.tile(scenes[:, None, None], (1, 2, 2))))
    (folder / "meta.json").write_text(json.dumps({"labels": []}))


@pytest.mark.parametrize("more", [False, True])
def test_fraction_of_the_latents_is_a_fixed_subset(tmp_path, more):
    source = tmp_path / "latents"
    write_latents(source / "train", (16, 16, 8), more)
    write_latents(source / "valid", (4,), more)
    assert scaling.prepare(source, tmp_path, 1.0) == source
    quarter, half = (load_latents(scaling.prepare(source, tmp_path, f) / "train") for f in (0.25, 0.5))
    assert len(quarter) == 10 and len(half) == 20 and set(quarter.label_index) < set(half.label_index)
    for row, scene in enumerate(half.label_index):
        assert half.latent(row).item() == scene
        assert half.sources(row) == [(scene, float(scene))] * (3 if more else 1)
    assert len(load_latents(tmp_path / "latents_f0.25" / "valid")) == 4
    with pytest.raises(ValueError, match="no cached latents"):
        scaling.prepare(tmp_path / "none", tmp_path, 0.5)


def test_line_of_a_finished_run_counts_its_scenes(tmp_path):
    grid = load(ROOT / "configs" / "scaling" / "cpu.py").get_config()
    one = scaling.expand(grid)[0]
    write_latents(tmp_path / "latents" / "train", (5, 3))
    folder = tmp_path / "run"
    (folder / "diffusion").mkdir(parents=True)
    assert scaling.measure(grid, one, folder, tmp_path / "latents") is None
    line = {"step": one.steps, "valid/loss": 0.5}
    (folder / "diffusion" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    found = scaling.measure(grid, one, folder, tmp_path / "latents")
    assert (found["scenes"], found["loss"], found["examples_seen"]) == (8, 0.5, one.steps * grid.fixed.batch_size)
    assert found["parameters"] > 1e5


def test_command_trains_one_point(tmp_path):
    grid = load(ROOT / "configs" / "scaling" / "cpu.py").get_config()
    one = scaling.expand(grid)[0]
    words = scaling.command(grid, one, tmp_path / "w", tmp_path / "latents")
    assert words[1:3] == ["-m", "dualspec_jax.train"] and f"--config.data.latents_dir={tmp_path}/latents" in words
    assert "--config.unet.channels=(16, 32, 48)" in words and "--config.train.diffusion.steps=50" in words


def test_only_a_complete_run_has_a_result(tmp_path):
    assert scaling.final_loss(tmp_path, 4) is None
    lines = [{"step": 2, "valid/loss": 3.0}, {"step": 4, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert scaling.final_loss(tmp_path, 4) is None and scaling.final_loss(tmp_path, 2) == 3.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"steps": ()}, r"grid\.steps"), ({"fractions": (0.0,)}, r"grid\.fractions"), ({"experiment": "x.py"}, "no such")],
)
def test_wrong_grid_is_refused(changes, message):
    grid = ConfigDict(load(ROOT / "configs" / "scaling" / "cpu.py").get_config().to_dict() | changes)
    with pytest.raises(ValueError, match=message):
        for one in scaling.expand(grid):
            scaling.load_experiment(grid, one.overrides)
