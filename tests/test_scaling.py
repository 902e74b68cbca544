import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from dualspec_jax import scaling, scaling_fit
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
        point = dict(zip(scaling_fit.AXES, (n, fraction, seen), strict=True))
        terms = (scales[name] * point[name] ** -exponent for name, exponent in EXPONENTS.items())
        results.append(point | {"loss": (irreducible + sum(terms)) * np.exp(noise * rng.normal())})
    return results


EXPONENTS = {"parameters": 0.4, "fraction": 0.5, "examples_seen": 0.3}
SCALES = {"parameters": 20.0, "fraction": 0.05, "examples_seen": 4.0}


def test_fit_finds_the_law_that_made_the_losses():
    results = law_results(0.3, SCALES)
    fitted = scaling_fit.fit(results)
    assert fitted["irreducible"] == pytest.approx(0.3, abs=0.01) and fitted["runs"] == 27
    assert fitted["irreducible_resolved"] and not scaling_fit.fit(law_results(0.0, SCALES))["irreducible_resolved"]
    for name, exponent in EXPONENTS.items():
        assert fitted["terms"][name]["exponent"] == pytest.approx(exponent, abs=0.03)
    for r in results:
        assert scaling_fit.predict(fitted, r) == pytest.approx(r["loss"], rel=1e-3)
    assert scaling_fit.predict(fitted, {name: 1e12 for name in scaling_fit.AXES}) == pytest.approx(0.3, abs=0.02)


def test_noise_shows_in_the_residual_and_one_outlier_does_not_bend_the_fit():
    results = law_results(0.3, SCALES, noise=0.02)
    assert 0.005 < scaling_fit.fit(results)["residual"] < 0.04
    results = law_results(0.3, SCALES)
    results[4]["loss"] *= 2.0
    assert scaling_fit.predict(scaling_fit.fit(results), results[0]) == pytest.approx(results[0]["loss"], rel=0.02)


def test_axis_that_does_not_vary_is_left_out_and_too_few_runs_are_refused():
    results = [r for r in law_results(0.3, SCALES) if r["fraction"] == 1.0]
    assert list(scaling_fit.fit(results)["terms"]) == ["parameters", "examples_seen"]
    with pytest.raises(ValueError, match="2 runs that vary .* needs at least 3, with three values"):
        scaling_fit.fit([r for r in results if r["parameters"] == 1e5][:2])
    with pytest.raises(ValueError, match="4 runs that vary .* needs at least 5"):
        scaling_fit.fit([r for r in results if r["parameters"] < 1e6 and r["examples_seen"] < 1e4])
    with pytest.raises(ValueError, match="fraction has two values"):
        scaling_fit.fit([r for r in law_results(0.3, SCALES) if r["fraction"] > 0.1])
    with pytest.raises(ValueError, match="1 runs that vary nothing; a fit needs at least 3"):
        scaling_fit.fit(results[:1])


def grid_results(irreducible, noise, seed):
    """Three sizes x three lengths, as configs/scaling/cpu.py."""
    rng = np.random.default_rng(seed)
    points = itertools.product((9e5, 3e6, 1.12e7), (400, 1200, 3600))
    return [
        {"parameters": n, "fraction": 1.0, "examples_seen": seen}
        | {"loss": (irreducible + 6 * n**-0.2 + 2 * seen**-0.2) * np.exp(noise * rng.normal())}
        for n, seen in points
    ]


def losses_of_sizes(losses):
    return [{"parameters": 1e5 * 2**i, "fraction": 1.0, "examples_seen": 800, "loss": x} for i, x in enumerate(losses)]


@pytest.mark.parametrize(
    "results",
    [
        losses_of_sizes((1.0, 1.0, 1.0)),
        losses_of_sizes((1.0, 1.0, 1.0, 1.0, 1.0)),  # a run more than the law has numbers, and no noise
        losses_of_sizes((1.0, 1.1, 1.2)),
        losses_of_sizes((1.0, 1.1, 1.2, 1.3)),
        losses_of_sizes((1.0, 0.7, 0.55)),  # three numbers go through any three points
        *(grid_results(0.0, 0.02, seed) for seed in (0, 4)),  # whose best E is 0.34 and 0.25
    ],
)
def test_irreducible_loss_that_the_runs_do_not_tell_is_not_resolved(results):
    fitted = scaling_fit.fit(results)
    low, high = fitted["irreducible_interval"]
    assert not fitted["irreducible_resolved"] and low == 0 and fitted["irreducible"] <= high
    assert high > 0.4


def test_interval_of_the_irreducible_loss_holds_it_and_narrows_with_the_noise():
    widths = []
    for noise in (0.0, 0.002):
        fitted = scaling_fit.fit(grid_results(0.3, noise, seed=0))
        low, high = fitted["irreducible_interval"]
        assert fitted["irreducible_resolved"] and 0 < low < 0.3 < high and low < fitted["irreducible"] < high
        widths.append(high - low)
    assert widths[0] < widths[1] < 0.5


def test_fit_does_not_depend_on_the_unit_of_the_loss():
    results = grid_results(0.3, 0.002, seed=0)
    fitted = scaling_fit.fit(results)
    for unit in (1e-8, 1e4):
        scaled = scaling_fit.fit([r | {"loss": unit * r["loss"]} for r in results])
        for name in ("irreducible", "irreducible_interval"):
            np.testing.assert_allclose(scaled[name], np.multiply(fitted[name], unit), rtol=1e-3)  # the solver's
        expected = unit * scaling_fit.predict(fitted, results[0])
        assert scaling_fit.predict(scaled, results[0]) == pytest.approx(expected, 1e-5)


@pytest.mark.parametrize("loss", [0.0, -0.5, float("nan"), float("inf")])
def test_loss_that_is_not_positive_and_finite_is_refused(loss):
    results = losses_of_sizes((1.0, 0.8, loss))
    with pytest.raises(ValueError, match=rf"line 3: loss = {loss}: must be positive"):
        scaling_fit.fit(results)


def test_slopes_are_the_derivatives_of_the_law():
    p, x = np.array([-1.0, 0.3, 0.4, -0.2, 0.7]), np.array([[1.0, 2.0], [3.0, 5.0], [9.0, 1.0]])
    small = 1e-6 * np.eye(5)
    numeric = [(np.log(scaling_fit.law(p + d, x)) - np.log(scaling_fit.law(p - d, x))) / 2e-6 for d in small]
    np.testing.assert_allclose(scaling_fit.slopes(p, x), np.transpose(numeric), atol=1e-8)


def test_picture_is_written(tmp_path):
    results = law_results(0.3, SCALES)
    scaling_fit.draw(results, scaling_fit.fit(results), tmp_path / "scaling.png")
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
    write_latents(tmp_path / "other" / "train", (16,), more)
    with pytest.raises(ValueError, match=r"latents_f0\.25/valid = .*: must be .*other/valid"):
        scaling.prepare(tmp_path / "other", tmp_path, 0.25)


def test_line_of_a_finished_run_counts_its_scenes(tmp_path):
    grid = load(ROOT / "configs" / "scaling" / "cpu.py").get_config()
    one = scaling.expand(grid)[0]
    write_latents(tmp_path / "latents" / "train", (5, 3))
    folder = tmp_path / "run"
    (folder / "diffusion").mkdir(parents=True)
    with pytest.raises(ValueError, match="not finished"):
        scaling.measure(grid, one, folder, tmp_path / "latents")
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
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "valid/lo')  # killed while writing
    assert scaling.final_loss(tmp_path, 4) is None and scaling.final_loss(tmp_path, 2) == 3.0


def test_loss_that_was_not_finite_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "valid/loss": null}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: valid/loss = null at step 4"):
        scaling.final_loss(tmp_path, 4)


def small_grid(**changes):
    fields = dict(
        experiment=str(ROOT / "configs" / "embedded.py"),
        task="diffusion",
        fixed=dict(batch_size=4),
        sizes=dict(a=dict(channels=(16, 16, 16), head_dim=16)),
        fractions=(1.0,),
        steps=(2, 4, 6),
    )
    return ConfigDict(fields | changes)


def write_source(folder):
    write_latents(folder / "latents" / "train", (8,))
    write_latents(folder / "latents" / "valid", (4,))
    for name in ("text_encoder", "mel_vae"):
        (folder / name).mkdir()
    (folder / "tokenizer.json").write_text("{}")
    return folder


def run_main(monkeypatch, grid, workdir, out, dry=False):
    values = {"grid": grid, "workdir": str(workdir), "out": str(out), "dry-run": dry}
    given = type("Given", (dict,), values)({name: SimpleNamespace(value=value) for name, value in values.items()})
    monkeypatch.setattr(scaling.flags, "FLAGS", given)
    scaling.main(["scaling"])


TRAINING = """
import json, pathlib, sys
folder, steps = pathlib.Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir()
(folder / "metrics.jsonl").write_text(json.dumps({"step": steps, "valid/loss": 1.0 + 1.0 / steps}))
"""


def test_grid_whose_runs_have_begun_keeps_its_settings_and_its_workdir(tmp_path, monkeypatch):
    """With a command that trains nothing, and parameters that are not counted."""
    monkeypatch.setattr("dualspec_jax.sizes.abstract_step", lambda *_: (None, None, (SimpleNamespace(params={}),)))
    train = lambda grid, one, folder, latents: [sys.executable, "-c", TRAINING, f"{folder}/diffusion", str(one.steps)]
    monkeypatch.setattr(scaling, "command", train)
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    run_main(monkeypatch, small_grid(fixed=dict(batch_size=2)), source, out, dry=True)  # begins nothing
    assert not list(out.glob("runs/*/diffusion")) and not (out / "results.jsonl").exists()
    run_main(monkeypatch, small_grid(), source, out)
    files = {name: (out / name).read_bytes() for name in ("results.jsonl", "fit.json", "scaling.png")}
    assert [json.loads(line)["examples_seen"] for line in files["results.jsonl"].splitlines()] == [8, 16, 24]

    wide = dict(a=dict(channels=(32, 64, 128), head_dim=16))
    edits = [
        (dict(fixed=dict(batch_size=8)), r"batch_size: checkpoint 4, config 8$"),
        (dict(fixed=dict(batch_size=4, lr=0.5)), r"diffusion\.lr: checkpoint 0\.001, config 0\.5$"),
        (dict(fixed={}), r"batch_size: checkpoint 4, config 16$"),
        (dict(sizes=wide), r"unet\.channels: checkpoint \[16, 16, 16\], config \[32, 64, 128\]$"),
    ]
    for changes, message in edits:
        for dry in (False, True):
            with pytest.raises(ValueError, match=r"a_f1_s2: this run .*" + message):
                run_main(monkeypatch, small_grid(**changes), source, out, dry)
    with pytest.raises(ValueError, match=r"text_encoder = .*source/text_encoder: must be .*other/text_encoder"):
        run_main(monkeypatch, small_grid(), write_source(tmp_path / "other"), out)
    assert files == {name: (out / name).read_bytes() for name in files}

    run_main(monkeypatch, small_grid(fixed=dict(batch_size=4, save_every=7), steps=(2, 4, 6, 8)), source, out)
    assert json.loads((out / "fit.json").read_text())["runs"] == 4
    with pytest.raises(ValueError, match="2 runs that vary"):
        run_main(monkeypatch, small_grid(steps=(2, 4)), source, out)
    assert len((out / "results.jsonl").read_text().splitlines()) == 2
    assert not (out / "fit.json").exists() and not (out / "scaling.png").exists()
    (out / "runs" / "a_f1_s2" / "run.json").unlink()
    with pytest.raises(ValueError, match="a_f1_s2: nothing tells what this run was made with"):
        run_main(monkeypatch, small_grid(), source, out)


TRAINER = """
import pathlib, signal, sys, time
asked = []
def note(number, frame):
    asked.append(number)
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGTERM, note)
folder = pathlib.Path(sys.argv[1])
(folder / "begun").touch()
while not asked:
    time.sleep(0.01)
(folder / "asked").touch()
time.sleep(1.0)
(folder / "saved").touch()
sys.exit(128 + asked[0])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_grid_lets_its_training_save(tmp_path, number):
    """Signals go to the whole group, as a terminal's do, and come twice."""
    words = [sys.executable, "-c", TRAINER, str(tmp_path)]
    program = f"import sys; from dualspec_jax import scaling; sys.exit(scaling.train({words}))"
    with subprocess.Popen([sys.executable, "-c", program], start_new_session=True) as process:
        for name in ("begun", "asked"):
            while not (tmp_path / name).exists():
                assert process.poll() is None
                time.sleep(0.02)
            os.killpg(process.pid, number)
        assert process.wait(timeout=30) == 128 + number
    assert (tmp_path / "saved").exists()


def test_training_that_fails_gives_its_exit_status():
    assert scaling.train([sys.executable, "-c", "raise SystemExit(3)"]) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": ()}, r"grid\.steps = \(\): must be"),
        ({"steps": 6}, r"grid\.steps = 6: must be"),
        ({"steps": ("a", 4)}, r"grid\.steps"),
        ({"steps": (2.5, 4)}, r"grid\.steps"),
        ({"steps": (0, 4)}, r"grid\.steps"),
        ({"steps": (2, 2, 4)}, r"grid\.steps = \(2, 2, 4\): must not have a value twice"),
        ({"fractions": (0.0,)}, r"grid\.fractions"),
        ({"fractions": (1.5,)}, r"grid\.fractions"),
        ({"fractions": 1.0}, r"grid\.fractions = 1\.0: must be"),
        ({"fractions": (0.5, 0.5)}, r"grid\.fractions = \(0\.5, 0\.5\)"),
        ({"sizes": {}}, r"grid\.sizes"),
        ({"sizes": dict(a=5)}, r"grid\.sizes = a: 5\s+: must be"),
        ({"sizes": dict(a=dict(chanels=(16, 16, 16)))}, r"config\.unet\.chanels = \(16, 16, 16\): no such field"),
        ({"sizes": dict(a=dict(channels=16))}, r"config\.unet\.channels = 16: .*tuple"),
        ({"fixed": 3}, r"grid\.fixed = 3"),
        ({"fixed": dict(batchsize=3)}, r"config\.train\.diffusion\.batchsize = 3: no such field"),
        ({"fixed": dict(lr="much")}, r"config\.train\.diffusion\.lr = 'much': .*float"),
        ({"task": "mel_vae"}, r"grid\.task = 'mel_vae': must be diffusion"),
        ({"experiment": "x.py"}, "no such"),
    ],
)
def test_wrong_grid_is_refused(changes, message):
    grid = small_grid(**changes)
    with pytest.raises(ValueError, match=message):
        for one in scaling.expand(grid):
            scaling.load_experiment(grid, one.overrides)


@pytest.mark.parametrize("name", ["experiment", "task", "fixed", "sizes", "fractions", "steps"])
def test_grid_without_a_field_is_refused(name):
    grid = small_grid()
    del grid[name]
    with pytest.raises(ValueError, match=rf"grid\.{name} = None: must be"):
        scaling.expand(grid)
