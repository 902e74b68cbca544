"""A page in the browser: `python -m dualspec_jax.demo` serves it at http://127.0.0.1:7860.

It works without a network, keeps its clips in one folder and serves no other file.
"""

import argparse
import html
import math
import os
import socket
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualspec_jax.config import SOLVERS
from dualspec_jax.flag_types import guarded
from dualspec_jax.interrupt import leave

if TYPE_CHECKING:
    from dualspec_jax.pipeline import Clip, DualSpecPipeline

MAX_PROMPT = 300  # characters
MAX_QUEUE = 16  # requests that wait; more are told to come back
KEPT_CLIPS = 200  # the oldest beyond these are deleted
EXAMPLES = (
    ("a dog barking at 10 o'clock", True, 0),
    ("rain behind me", True, 0),
    ("a rooster crowing", False, 315),
    ("footsteps to my right", True, 0),
)
# The browser itself refuses whatever is not from here: fonts, scripts, pictures, connections.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self' ws: wss:; "
    "worker-src 'self' blob:; frame-ancestors 'self'"
)
CSS = "#polar svg { max-width: 260px; width: 100%; height: auto } footer { display: none !important }"


def polar_svg(asked_deg: float | None, measured_deg: float | None) -> str:
    """Draw the asked and the measured direction around a head seen from above, front on top, left on the left."""

    def at(deg: float, radius: float) -> tuple[float, float]:
        return 110 - radius * math.sin(math.radians(deg)), 110 - radius * math.cos(math.radians(deg))

    parts = [
        '<svg viewBox="0 0 220 220" role="img" aria-label="asked and measured direction" font-family="sans-serif" '
        'font-size="11" fill="currentColor">',
        '<circle cx="110" cy="110" r="85" fill="none" stroke="currentColor" stroke-opacity="0.3"/>',
        '<circle cx="110" cy="110" r="14" fill="none" stroke="currentColor"/>',
        '<path d="M104 97 L110 88 L116 97" fill="none" stroke="currentColor"/>',
    ]
    for deg, name in ((0, "0"), (90, "90"), (180, "180"), (270, "270")):
        x, y = at(deg, 97)
        parts.append(f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle">{name}&#176;</text>')
    for deg, colour, width, radius in ((asked_deg, "#2563eb", 8, 70), (measured_deg, "#f97316", 4, 84)):
        if deg is not None:
            (x0, y0), (x1, y1) = at(deg, 18), at(deg, radius)
            parts.append(
                f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}" '
                f'stroke-width="{width}" stroke-linecap="round" stroke-opacity="0.85"/>'
            )
    parts.append("</svg>")
    name = lambda deg, none: none if deg is None else f"{deg:.0f}&#176;"
    legend = (
        f'<p><span style="color:#2563eb">&#9632;</span> asked: {name(asked_deg, "free")} &nbsp; '
        f'<span style="color:#f97316">&#9632;</span> measured: {name(measured_deg, "&ndash;")}</p>'
    )
    return "".join(parts) + legend


def describe(clip: "Clip") -> str:
    """Return what was measured as a small HTML table."""
    m = clip.measured
    unit = lambda value, text: "&ndash;" if value is None else f"{value:g} {text}"
    rows = [
        ("time difference", unit(m["itd_us"], "us")),
        ("level difference", unit(m["ild_db"], "dB")),
        ("loudness", unit(m["lufs"], "LUFS")),
    ]
    if m["event"] is not None:
        rows.append(("sounds like", html.escape(m["event"])))
    if m["silent"]:
        rows.append(("note", "the clip is silent; try another seed"))
    return "<table>" + "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in rows) + "</table>"


def make_handler(pipe: "DualSpecPipeline", folder: Path) -> Callable:
    """Return the page's one function: settings -> (audio file, picture, polar plot, table, files to load down).

    Mistakes of the user become `gradio.Error`, which the page shows.
    """
    import gradio as gr

    def generate(
        prompt: str,
        from_text: bool,
        azimuth: float,
        seed: float,
        steps: float,
        guidance_mel: float,
        guidance_stft: float,
        solver: str,
        progress: Any = gr.Progress(),  # noqa: B008 - how Gradio finds it
    ):
        if len(prompt) > MAX_PROMPT:
            raise gr.Error(f"The prompt has {len(prompt)} characters; it may have {MAX_PROMPT}.", print_exception=False)
        try:
            if seed is None or not float(seed).is_integer():
                raise ValueError(f"seed = {seed}: must be a whole number in [0, 2^32)")
            clip = pipe(
                prompt,
                None if from_text else azimuth,
                num_inference_steps=int(steps),
                guidance_scale=(guidance_mel, guidance_stft),
                seed=int(seed),
                solver=solver,
                callback=lambda step, count: progress((step, count), unit="steps"),
            )[0]
            _delete_oldest(folder)
            own = folder / uuid.uuid4().hex
            own.mkdir()
            path = clip.save(own / f"{clip.name}.wav")
        except ValueError as e:
            raise gr.Error(" ".join(html.escape(str(e), quote=False).split()), print_exception=False) from e
        files = [str(path), str(path.with_suffix(".json"))]
        polar = polar_svg(clip.scene.azimuth_deg, clip.measured["azimuth_deg"])
        return str(path), clip.spectrogram(), polar, describe(clip), files

    return generate


def _delete_oldest(folder: Path) -> None:
    """Keep the folder of clips from growing without end."""
    import shutil

    clips = sorted((p for p in folder.iterdir() if len(p.name) == 32 and p.is_dir()), key=lambda p: p.stat().st_mtime)
    for path in clips[: max(0, len(clips) - KEPT_CLIPS + 1)]:
        shutil.rmtree(path, ignore_errors=True)


def build(pipe: "DualSpecPipeline", folder: Path):
    """Return the page as `gradio.Blocks`."""
    import gradio as gr

    s, d = pipe.generator, pipe.bundle.config.diffusion
    with gr.Blocks(title="dualspec_jax", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# dualspec_jax\nA sentence becomes two-ear audio. Listen with headphones.")
        with gr.Row():
            with gr.Column():
                prompt = gr.Textbox(
                    label="Prompt",
                    placeholder=EXAMPLES[0][0],
                    max_length=MAX_PROMPT,
                    info="a sound and where it comes from",
                    elem_id="prompt",
                )
                from_text = gr.Checkbox(True, label="Direction from the text", elem_id="from_text")
                azimuth = gr.Slider(
                    0, 359, 0, step=1, label="Azimuth, degrees", info="0 front, 90 left, 180 behind, 270 right",
                    interactive=False, elem_id="azimuth",
                )  # fmt: skip
                with gr.Accordion("Settings", open=False):
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
                    steps = gr.Slider(1, min(100, d.num_steps), s.steps, step=1, label="Steps")
                    guidance_mel = gr.Slider(0, 15, s.guidance_mel, label="Guidance of the sound (Mel)")
                    guidance_stft = gr.Slider(0, 15, s.guidance_stft, label="Guidance of the direction (STFT)")
                    solver = gr.Dropdown(list(SOLVERS), value=s.solver, label="Solver")
                button = gr.Button("Make the sound", variant="primary", elem_id="make")
                gr.Examples([list(example) for example in EXAMPLES], [prompt, from_text, azimuth], cache_examples=False)
            with gr.Column():
                audio = gr.Audio(label="Two ears", interactive=False, elem_id="audio")
                picture = gr.Image(label="Left ear above, right ear below", interactive=False, elem_id="picture")
                with gr.Row():
                    with gr.Column(min_width=220):  # on a phone one stands below the other
                        polar = gr.HTML(polar_svg(None, None), elem_id="polar")
                    with gr.Column(min_width=220):
                        table = gr.HTML(elem_id="table")
                files = gr.File(label="Files", file_count="multiple", interactive=False, elem_id="files")
        from_text.change(lambda on: gr.update(interactive=not on), from_text, azimuth, queue=False)
        inputs = [prompt, from_text, azimuth, seed, steps, guidance_mel, guidance_stft, solver]
        gr.on(
            [button.click, prompt.submit],
            make_handler(pipe, folder),
            inputs,
            [audio, picture, polar, table, files],
            concurrency_limit=1,
            api_name="generate",
        )
    return page.queue(max_size=MAX_QUEUE, default_concurrency_limit=1)


def make_app(pipe: "DualSpecPipeline", folder: Path):
    """Return the page as an ASGI application that sends `POLICY` with everything."""
    import gradio as gr
    from fastapi import FastAPI

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def add_policy(request, call_next):
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    fonts = ["system-ui", "sans-serif"]  # Gradio's own themes load theirs from Google
    theme = gr.themes.Base(font=fonts, font_mono=["ui-monospace", "monospace"])
    return gr.mount_gradio_app(
        app,
        build(pipe, folder),
        path="/",
        theme=theme,
        css=CSS,
        allowed_paths=[str(folder)],
        max_file_size="1kb",
        ssr_mode=False,
        show_error=True,
        footer_links=[],
    )


def make_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m dualspec_jax.demo", description=__doc__.split("\n\n")[0])
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s: this machine only)")
    p.add_argument("--port", type=int, default=7860, help="TCP port (default %(default)s)")
    p.add_argument("--bundle", type=Path, help="bundle folder (default: the embedded one)")
    p.add_argument("--out", type=Path, help=f"folder of the last {KEPT_CLIPS} clips (default: a temporary one)")
    return p


def open_socket(host: str, port: int) -> socket.socket:
    """Bind the address now, before the model is loaded.

    Raises:
      ValueError: the port is in use, or host or port are none of this machine.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port = {port}: must be in [0, 65535]")
    listener = None
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as e:
        if listener is not None:
            listener.close()
        raise ValueError(f"port = {port}: cannot listen there on {host} ({e.strerror or e}); try another") from e
    return listener


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = make_parser().parse_args(argv)
    return guarded(_run, args)


def _run(args: argparse.Namespace) -> int:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401 - the extra `demo`
        import uvicorn
    except ImportError as e:
        raise ValueError(f"demo: needs {e.name}; pip install 'dualspec_jax[demo]'") from e
    with open_socket(args.host, args.port) as listener, tempfile.TemporaryDirectory(prefix="dualspec_") as temporary:
        root = (args.out or Path(temporary)).resolve()
        folder = root / "clips"  # all that is served; --out may hold other things
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ValueError(f"out = {str(root)!r}: cannot be made ({e.strerror or e})") from e
        os.environ["GRADIO_TEMP_DIR"] = str(root / "gradio")  # its copies

        from dualspec_jax.pipeline import DualSpecPipeline

        pipe = DualSpecPipeline.from_pretrained(args.bundle)
        app = make_app(pipe, folder)
        print(f"http://{args.host}:{listener.getsockname()[1]}  (Ctrl-C stops)", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        server.run(sockets=[listener])
    return 0


if __name__ == "__main__":
    leave(main())
