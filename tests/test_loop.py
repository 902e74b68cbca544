import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from toy_task import NAME, toy_config, toy_task

from dualspec_jax.checkpoint import latest_step
from dualspec_jax.lock import alone_in
from dualspec_jax.loop import move_position, train
from dualspec_jax.signals import StopSignals

ROOT = Path(__file__).resolve().parents[1]
CLOCKS = ("time", "steps_per_s", "data_wait")  # what may differ between two equal runs


def _lines(workdir):
    lines = [json.loads(text) for text in (workdir / NAME / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


def _assert_same_run(a, b):
    """Bit for bit: on the CPU the same program on the same numbers gives the same numbers."""
    (state_a, workdir_a), (state_b, workdir_b) = a, b
    jax.tree.map(np.testing.assert_array_equal, state_a, state_b)
    assert _lines(workdir_a) == _lines(workdir_b)


@pytest.fixture(scope="module", autouse=True)
def compile_cache(tmp_path_factory):
    """Compile each program once: faster, and as on the command line, where a resumed run loads compiled programs."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("xla")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Six steps without a break."""
    workdir = tmp_path_factory.mktemp("straight")
    return train(toy_config(), toy_task(), workdir), workdir


def test_writes_metrics_pictures_and_checkpoints(straight):
    state, workdir = straight
    assert int(state.step) == 6
    lines = _lines(workdir)
    assert [(line["step"], "valid/mse" in line) for line in lines] == [
        (2, False),
        (4, False),
        (4, True),
        (6, False),
        (6, True),
    ]
    assert {"step", "lr", "loss", "mse", "example_mean", "grad_norm"} == lines[0].keys()
    raw = json.loads((workdir / NAME / "metrics.jsonl").read_text().splitlines()[0])
    assert raw["steps_per_s"] > 0 and 0 <= raw["data_wait"] <= 1
    assert sorted(path.name for path in (workdir / NAME / "pictures").iterdir()) == ["kernel_4.png", "kernel_6.png"]
    assert sorted(path.name for path in (workdir / NAME / "checkpoints").iterdir()) == ["4", "6"]
    assert list((workdir / NAME).glob("events.out.tfevents.*"))
    errors = {line["step"]: line["valid/mse"] for line in lines if "valid/mse" in line}
    assert latest_step(workdir / NAME / "best") == min(errors, key=errors.get)


def test_logged_loss_is_the_mean_since_the_last_line(straight, tmp_path):
    train(toy_config(log_every=1), toy_task(), tmp_path)
    each = {line["step"]: line["loss"] for line in _lines(tmp_path) if "loss" in line}
    for line in _lines(straight[1]):
        if "loss" in line:
            assert line["loss"] == pytest.approx((each[line["step"] - 1] + each[line["step"]]) / 2, rel=1e-12)


@pytest.mark.parametrize("stop_after", [3, 4])  # between two lines of the log; at a checkpoint
def test_stop_and_resume_equals_a_straight_run(straight, tmp_path, stop_after):
    state = train(toy_config(), toy_task(), tmp_path, stop_after)
    assert int(state.step) == stop_after
    _assert_same_run((train(toy_config(), toy_task(), tmp_path), tmp_path), straight)


def test_resume_from_an_older_checkpoint_leaves_no_gap_or_repeat(straight, tmp_path):
    """A run that was killed hard: its log goes further than its checkpoint, and ends in half a line."""
    train(toy_config(), toy_task(), tmp_path, stop_after=4)
    log = tmp_path / NAME / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 5, "loss": 1.0}\n{"step": 6, "valid/mse": 1.0}\n{"step": 6, "lo')
    _assert_same_run((train(toy_config(), toy_task(), tmp_path), tmp_path), straight)


def test_missed_evaluation_is_made_up_for(straight, tmp_path):
    """A run that was killed between the checkpoint of step 4 and the end of its evaluation."""
    train(toy_config(), toy_task(), tmp_path, stop_after=4)
    log = tmp_path / NAME / "metrics.jsonl"
    log.write_text("".join(text + "\n" for text in log.read_text().splitlines() if "valid/" not in text))
    _assert_same_run((train(toy_config(), toy_task(), tmp_path), tmp_path), straight)


def test_log_of_a_run_without_checkpoint_is_started_anew(straight, tmp_path):
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n')
    _assert_same_run((train(toy_config(), toy_task(), tmp_path), tmp_path), straight)


def test_finished_training_does_nothing_when_run_again(straight):
    state, workdir = straight
    before = _lines(workdir)
    again = train(toy_config(), toy_task(), workdir)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert _lines(workdir) == before


def test_more_steps_go_on_from_the_end(tmp_path):
    train(toy_config(steps=2), toy_task(), tmp_path)
    state = train(toy_config(steps=4, lr=0.01), toy_task(), tmp_path)
    assert int(state.step) == 4
    assert [line["step"] for line in _lines(tmp_path)] == [2, 2, 4, 4]


def test_another_config_is_refused_and_changes_nothing(straight):
    _, workdir = straight
    before = _lines(workdir)
    config = toy_config()
    config.mel_vae.latent_channels = 3
    with pytest.raises(ValueError, match="mel_vae.latent_channels: checkpoint 8, config 3"):
        train(config, toy_task(), workdir)
    assert _lines(workdir) == before


def test_evaluation_uses_the_averaged_parameters(tmp_path, straight):
    state, workdir = straight
    task = toy_task()
    config = toy_config()
    eval_key = jax.random.split(jax.random.key(config.seed), 3)[2]
    batches = list(task.make_batches("valid", False, config.seed))
    errors = [
        float(task.eval_fn(state.ema_params, b, jax.random.fold_in(eval_key, i))["mse"]) for i, b in enumerate(batches)
    ]
    assert len(errors) == 2
    # The loop sums over four devices, this test over one.
    assert _lines(workdir)[-1]["valid/mse"] == pytest.approx(np.mean(errors), rel=1e-5)


def test_eval_batches_limits_the_evaluation(tmp_path, straight):
    train(toy_config(eval_batches=1), toy_task(), tmp_path)
    one, two = _lines(tmp_path)[-1]["valid/mse"], _lines(straight[1])[-1]["valid/mse"]
    assert one != two


def test_non_finite_loss_names_metric_and_step(tmp_path):
    task, config = toy_task(nan_from=None), toy_config()
    seen = iter(task.make_batches("train", True, config.seed))
    fifth = [next(seen)["example"] for _ in range(6)][4]  # 48 of 64 examples, each once: in no other batch
    with pytest.raises(FloatingPointError, match=f"{NAME}: loss = nan at step 5"):
        train(config, toy_task(nan_from=int(fifth[0])), tmp_path)
    assert latest_step(tmp_path / NAME) == 4, "the checkpoint from before must stay the last"


def test_non_finite_loss_is_never_saved(tmp_path):
    """Here the broken step is itself due for a checkpoint."""
    config = toy_config(save_every=1)
    first = next(iter(toy_task().make_batches("train", True, config.seed)))["example"]
    with pytest.raises(FloatingPointError, match="step 1"):
        train(config, toy_task(nan_from=int(first[0])), tmp_path)
    assert latest_step(tmp_path / NAME) is None


def test_empty_validation_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="validation split has no batch"):
        train(toy_config(), toy_task(n_valid=7), tmp_path)
    assert latest_step(tmp_path / NAME) == 4


def test_training_data_that_ends_is_an_error(tmp_path):
    task = toy_task()
    short = task._replace(make_batches=lambda split, train, seed, shard: task.make_batches("valid", False, seed))
    with pytest.raises(ValueError, match="training data ended after 2 batches"):
        train(toy_config(), short, tmp_path)


def test_task_without_pictures(tmp_path):
    train(toy_config(steps=1), toy_task()._replace(pictures=None), tmp_path)
    assert not (tmp_path / NAME / "pictures").exists()


def test_second_run_in_a_folder_is_refused_and_a_later_one_is_not(tmp_path):
    folder = tmp_path / NAME
    with alone_in(folder):
        with pytest.raises(ValueError, match=f"{folder}: another process"):
            train(toy_config(steps=1), toy_task(), tmp_path)
        assert [path.name for path in folder.iterdir()] == ["lock"]
    assert int(train(toy_config(steps=1), toy_task(), tmp_path).step) == 1


def test_stop_after_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="stop_after = 0"):
        train(toy_config(), toy_task(), tmp_path, stop_after=0)


def _signal_at(task, split, when):
    """Return the task with a SIGTERM to this process when batch number `when` of a split is read for the first time."""
    sent = []

    def make_batches(name, train, seed, shard=(0, 1)):
        dataset = task.make_batches(name, train, seed, shard)
        if name != split or sent:
            return dataset

        class Numbered:
            """Grain's iterator, counting in the main thread, where signals can be raised."""

            def __init__(self):
                self._batches, self._count = iter(dataset), 0

            def __iter__(self):
                return self

            def __next__(self):
                if self._count == when and not sent:
                    sent.append(when)
                    signal.raise_signal(signal.SIGTERM)
                self._count += 1
                return next(self._batches)

            def __getattr__(self, name):  # get_state, close
                return getattr(self._batches, name)

        return Numbered()

    return task._replace(make_batches=make_batches)


@pytest.mark.parametrize(
    ("split", "when", "saved"), [("train", 0, 1), ("train", 3, 4), ("valid", 0, 4), ("valid", 1, 4)]
)
def test_signal_stops_at_once_and_a_resumed_run_misses_nothing(tmp_path, straight, split, when, saved):
    with pytest.raises(SystemExit) as stop:
        train(toy_config(), _signal_at(toy_task(), split, when), tmp_path)
    assert stop.value.code == 143
    assert latest_step(tmp_path / NAME) == saved
    assert not any("valid/mse" in line for line in _lines(tmp_path)), "it must not evaluate after the signal"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    _assert_same_run((train(toy_config(), toy_task(), tmp_path), tmp_path), straight)


def test_second_sigterm_does_not_end_the_save_and_a_later_sigint_does():
    with StopSignals() as signals:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert signals.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def test_best_state_that_was_not_written_in_time_is_written_by_the_resumed_run(tmp_path):
    train(toy_config(), toy_task(), tmp_path, stop_after=4)
    best = tmp_path / NAME / "best"
    assert latest_step(best) == 4
    shutil.rmtree(best)  # as after a kill while it was written
    train(toy_config(), toy_task(), tmp_path, stop_after=1)
    assert latest_step(best) == 4


def test_number_of_worker_processes_may_not_change(tmp_path):
    train(toy_config(), toy_task(), tmp_path, stop_after=2)
    config = toy_config()
    config.feeding.num_workers = 1
    with pytest.raises(ValueError, match="feeding.num_workers = 1: .* saved with, 0"):
        train(config, toy_task(), tmp_path)


def _start(workdir, *arguments, devices=4):
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "toy_task.py"), str(workdir), *map(str, arguments)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def _wait_for_line(workdir, process, deadline_s=240.0):
    end = time.monotonic() + deadline_s
    log = workdir / NAME / "metrics.jsonl"
    while not (log.exists() and log.read_text()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_and_resumes(tmp_path, number, status):
    """The signal comes at any point of the loop; two steps later, the run must be as if nothing had happened."""
    stopped = tmp_path / "stopped"
    process = _start(stopped, 5000, "--slow", 0.01)
    _wait_for_line(stopped, process)
    process.send_signal(number)
    start = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert time.monotonic() - start < 15
    assert "Traceback" not in err and "saved at step" in err
    step = latest_step(stopped / NAME)
    assert step is not None and f"saved at step {step};" in err
    end = step + 2
    resumed = train(toy_config(steps=5000), toy_task(), stopped, stop_after=2)
    whole = train(toy_config(steps=5000), toy_task(), tmp_path / "whole", stop_after=end)
    _assert_same_run((resumed, stopped), (whole, tmp_path / "whole"))


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_again_and_again_it_goes_on_as_if_nothing_had_happened(tmp_path, kills):
    """Every step is saved, in the background: most of these moments are during a save."""
    killed, rng = tmp_path / "killed", np.random.default_rng(kills)
    for _ in range(kills):
        before = latest_step(killed / NAME) or 0
        process = _start(killed, 5000, "--slow", 0.002, "--save_every", 1)
        end = time.monotonic() + 240
        while (latest_step(killed / NAME) or 0) <= before:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        process.communicate()
    end = latest_step(killed / NAME) + 2
    resumed = train(toy_config(steps=5000), toy_task(), killed, stop_after=2)
    whole = train(toy_config(steps=5000), toy_task(), tmp_path / "whole", stop_after=end)
    _assert_same_run((resumed, killed), (whole, tmp_path / "whole"))
    assert latest_step(killed / NAME / "best") == latest_step(tmp_path / "whole" / NAME / "best")


def _run_in_processes(workdir, count):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    processes = [_start(workdir, 6, "--process", i, count, address, devices=2) for i in range(count)]
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path, straight):
    _run_in_processes(tmp_path, 2)
    for a, b in zip(_lines(tmp_path), _lines(straight[1]), strict=True):
        assert a == pytest.approx(b, rel=1e-5)  # gloo adds the processes' parts in another order


@pytest.mark.slow
def test_more_processes_go_on_where_one_stopped(tmp_path, straight):
    train(toy_config(), toy_task(), tmp_path, stop_after=3)
    _run_in_processes(tmp_path, 2)
    for a, b in zip(_lines(tmp_path), _lines(straight[1]), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_position_moves_to_another_number_of_hosts():
    assert move_position({"next_index": 24}, 1, 4) == {"next_index": 6}
    assert move_position({"next_index": 6}, 4, 2) == {"next_index": 12}
    assert move_position({"workers": []}, 2, 2) == {"workers": []}
    with pytest.raises(ValueError, match="hosts = 2: .* saved with, 1"):
        move_position({"workers": []}, 1, 2)
