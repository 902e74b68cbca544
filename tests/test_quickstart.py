"""The notebook's cells, run one after another as Jupyter would, without Jupyter."""

import ast
import json
from pathlib import Path

import pytest
from tiny import save_tiny_bundle

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"


def run_cells():
    """Return the value of the last expression of each code cell."""
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    namespace, values = {}, []
    for cell in cells:
        *statements, last = ast.parse("".join(cell["source"])).body
        exec(compile(ast.Module(statements, []), "cell", "exec"), namespace)
        values.append(eval(compile(ast.Expression(last.value), "cell", "eval"), namespace))
    return values


def check(values, rate=16000):
    _, shown, (scene, measured), (shape, *_), clip, (saved, flac) = values
    assert "<audio" in shown._repr_html_() and "<audio" in clip._repr_html_()
    assert scene.azimuth_deg == 60.0 and measured["itd_us"] is not None
    assert shape[1] == 2 and len(clip.waveform) == rate // 2 and len(clip.record["solver"]) > 4
    assert saved[0].is_file() and flac.with_suffix(".json").is_file()


def test_notebook_runs_with_a_tiny_model(tmp_path, monkeypatch, capsys):
    save_tiny_bundle(tmp_path / "b")
    monkeypatch.setattr("dualspec_jax.bundle.EMBEDDED", tmp_path / "b")
    monkeypatch.setattr("dualspec_jax.compile_cache.enable", lambda: None)
    check(run_cells())
    assert capsys.readouterr().out.split() == [f"{i}/8" for i in range(1, 9)]


@pytest.mark.slow
def test_notebook_runs_with_the_embedded_model():
    check(run_cells())
