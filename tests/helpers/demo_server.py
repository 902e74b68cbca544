"""The demo's page with a tiny model, on a free port."""

import threading
import time

import pytest
from tiny import save_tiny_bundle

from dualspec_jax import demo


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A page with a tiny model, on a free port; (address, folder of the clips)."""
    pytest.importorskip("gradio")
    import uvicorn

    from dualspec_jax.pipeline import DualSpecPipeline

    root = tmp_path_factory.mktemp("demo")
    save_tiny_bundle(root / "b")
    folder = root / "clips"
    folder.mkdir()
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(root / "gradio"))
    pipe = DualSpecPipeline.from_pretrained(root / "b", cache=False)
    listener = demo.open_socket("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(demo.make_app(pipe, folder), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", folder
    server.should_exit = True
    thread.join(20)
    patch.undo()
