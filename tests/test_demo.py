import json
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from demo_server import served  # noqa: F401 - a fixture

from dualspec_jax import demo


def test_polar_plot_points_where_it_should():
    picture = demo.polar_svg(90.0, 180.0)
    assert 'x2="40.0" y2="110.0" stroke="#2563eb"' in picture  # left
    assert 'x2="110.0" y2="194.0" stroke="#f97316"' in picture  # down: behind
    assert "asked: 90&#176;" in picture and demo.polar_svg(None, 5.0).count("<line") == 1


def test_port_in_use_is_one_line_and_exit_2(capsys):
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert demo.main(["--port", str(taken.getsockname()[1])]) == 2
    error = capsys.readouterr().err
    assert "cannot listen there on 127.0.0.1" in error and error.count("\n") == 1


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99999), ("256.1.1.1", 0)])
def test_impossible_address_is_named(host, port):
    with pytest.raises(ValueError, match=f"port = {port}"):
        demo.open_socket(host, port)


def test_missing_gradio_names_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert demo.main([]) == 2
    assert r"pip install 'dualspec_jax[demo]'" in capsys.readouterr().err


def test_oldest_clips_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "KEPT_CLIPS", 2)
    for i in range(3):
        (tmp_path / f"{i:032x}").mkdir()
    (tmp_path / "gradio").mkdir()
    demo._delete_oldest(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 and (tmp_path / "gradio").is_dir()


def get(address):
    try:
        with urllib.request.urlopen(address, timeout=60) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as e:
        return e.code, {}, e.read()


# Gradio and its client warn about their own dependencies.
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_page_makes_a_clip_and_serves_nothing_else(served):  # noqa: F811
    from gradio_client import Client

    address, folder = served
    status, headers, page = get(address)
    assert status == 200 and "default-src 'self'" in headers["content-security-policy"]
    assert b"googleapis" not in page and b"cdnjs" not in page
    client = Client(address, verbose=False)
    arguments = ["a dog barking at 10 o'clock", True, 0, 3, 2, 3.0, 2.0, "unipc"]
    audio, picture, polar, table, files = client.predict(*arguments, api_name="/generate")
    assert Path(audio).read_bytes()[:4] == b"RIFF" and "asked: 60&#176;" in polar and "dB" in table
    record = json.loads(next(Path(f) for f in files if f.endswith(".json")).read_text())
    assert (record["seed"], record["steps"], record["solver"], record["guidance_stft"]) == (3, 2, "unipc", 2.0)
    by_number = client.predict(*["rain", False, 270, 0, 2, 1.0, 1.0, "ddim"], api_name="/generate")
    assert "asked: 270&#176;" in by_number[2]
    for bad, message in ((["  "], "prompt"), (["x" * 301], "301"), (["a dog on my left at 3 o'clock"], "o'clock")):
        with pytest.raises(Exception, match=message):
            client.predict(*bad, *arguments[1:], api_name="/generate")
    for path in ("/etc/passwd", str(folder.parent / "b" / "config.json"), str(Path(demo.__file__).resolve())):
        assert get(f"{address}/gradio_api/file={path}")[0] in (403, 404)
