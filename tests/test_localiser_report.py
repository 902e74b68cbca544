import json

import numpy as np
import pytest
import soundfile
from judges import save_random_localiser
from tiny import tiny_config

from dualspec_jax import localiser_report
from dualspec_jax.prompt_set import LABELS
from dualspec_jax.spatial.hrtf import spherical_head


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    (folder / "events").mkdir()
    rows = ["file,label,split"]
    for i, label in enumerate(LABELS):
        noise = 0.1 * np.random.default_rng(i).standard_normal(8000)
        soundfile.write(folder / "events" / f"{i}.wav", noise, 16000)
        rows.append(f"{i}.wav,{label},valid")
    (folder / "events" / "metadata.csv").write_text("\n".join(rows) + "\n")
    head = spherical_head()
    fields = {name: getattr(head, name) for name in ("hrir", "azimuth_deg", "elevation_deg", "sample_rate")}
    np.savez(folder / "head.npz", **fields)
    save_random_localiser(folder / "localiser", tiny_config())
    return folder


def run(place, *more):
    arguments = ["--data", place, "--hrtf", place / "head.npz", "--localiser", place / "localiser", "--limit", 4]
    return localiser_report.main([str(x) for x in (*arguments, *more)])


def test_both_localisers_are_measured_with_and_without_rooms(place, tmp_path, capsys):
    assert run(place, "--out", tmp_path / "report.json", "--seed", 3) == 0
    assert "network, rooms" in capsys.readouterr().out
    content = json.loads((tmp_path / "report.json").read_text())
    names = ["template, anechoic", "network, anechoic", "template, rooms", "network, rooms"]
    assert list(content["summary"]) == names and all(len(rows) == 4 for rows in content["clips"].values())
    assert content["summary"]["template, anechoic"]["lateral_mae_deg"]["value"] < 1.0
    assert content["summary"]["template, rooms"]["lateral_mae_deg"]["value"] < 10.0
    confidence = content["summary"]["network, rooms"]["confidence_percent"]["value"]
    assert 0.0 < confidence < 100.0
    assert content["clips"]["network, rooms"] != content["clips"]["network, anechoic"]


def test_mistakes_are_one_line(place, tmp_path, capsys):
    assert run(place, "--limit", 0) == 2
    assert run(place, "--localiser", tmp_path / "none") == 2
    assert localiser_report.main(["--data", str(place)]) == 2  # no hrtf/*.sofa
    assert capsys.readouterr().err.count("error: ") == 3


def test_calibration_error_of_an_overconfident_localiser():
    rows = [{"confidence": 0.9, "within_10": float(i % 2)} for i in range(100)]
    localiser_report._add_calibration(rows)
    assert np.mean([r["calibration"] for r in rows]) == pytest.approx(0.4, abs=0.05)
