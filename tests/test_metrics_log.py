import json
import math

import pytest
from tensorboardX.proto.event_pb2 import Event

from dualspec_jax.metrics_log import Clock, MetricsLog, Window


def _steps(folder):
    return [json.loads(text)["step"] for text in (folder / "metrics.jsonl").read_text().splitlines()]


def test_window_takes_means_and_starts_again():
    window = Window()
    window.add({"loss": 1.0})
    window.add({"loss": 4.0})
    assert window.take() == {"loss": 2.5}
    window.add({"loss": 7.0})
    assert window.take() == {"loss": 7.0}


def test_window_survives_json_exactly():
    straight, stopped = Window(), Window()
    for i, value in enumerate((0.1, 1e-9, 3.3, 1 / 3)):
        straight.add({"loss": value})
        stopped.add({"loss": value})
        if i == 1:
            stopped = Window(json.loads(json.dumps(stopped.sums)))
    assert stopped.take() == straight.take()


def test_non_finite_values_are_written_as_null(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.valid(3, {"snr": float("inf"), "loss": 1.0})
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["valid/snr"] is None and line["valid/loss"] == 1.0 and line["step"] == 3


def test_lines_after_the_restored_step_are_removed(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.train(step, {"loss": 1.0})
        log.valid(step, {"loss": 1.0, "error": math.nan})
    log.close()
    log = MetricsLog(tmp_path, 2)
    assert sorted(log.evaluated) == [1, 2]
    assert log.evaluated[2]["loss"] == 1.0 and math.isnan(log.evaluated[2]["error"])
    log.train(3, {"loss": 2.0})
    log.close()
    assert _steps(tmp_path) == [1, 1, 2, 2, 3]


def test_reader_writes_nothing(tmp_path):
    log = MetricsLog(tmp_path / "x", 5, write=False)
    log.train(6, {"loss": 1.0})
    log.close()
    assert not (tmp_path / "x").exists()


def test_events_are_for_tensorboard(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.train(4, {"loss": 0.5})
    log.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    data, scalars = path.read_bytes(), {}
    while data:  # TFRecord: length (8 bytes), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        scalars |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        data = data[16 + length :]
    assert scalars["loss"] == (4, 0.5)


def test_clock_measures_speed_and_waiting(monkeypatch):
    now = iter([0.0, 1.0, 2.0, 4.0])  # restart, waiting from 1 to 2, rates
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = Clock()
    with clock.waiting():
        pass
    clock.steps += 8
    assert clock.rates() == {"steps_per_s": pytest.approx(2.0), "data_wait": pytest.approx(0.25)}
