"""Show a built data set as one HTML page: python -m dualspec_jax.preview DATASET [--out preview.html].

DATASET is the folder of a built config, such as tfds/spatial_audio/spatial_audio_1k/1.0.0. The page needs no other file
and no network: directions, labels, durations, licences, spectrograms, and examples to listen to.
"""

import argparse
import base64
import collections
import html
import io
import json
import sys
from pathlib import Path

import numpy as np

from dualspec_jax import metrics
from dualspec_jax.picture import spectrogram_image
from dualspec_jax.scene_source import SceneSource
from dualspec_jax.spatial.scene import HOP, SAMPLE_RATE, active_frames
from dualspec_jax.wav import write_atomically

EXAMPLES, MONTAGE = 10, 12
TOP = 25  # labels shown; the rest is one bar
_FIELDS = ("audio", "mel", "caption", "label", "licence", "source_file")
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.15rem; margin-top: 2rem }}
.row {{ display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start }}
table {{ border-collapse: collapse }} td, th {{ padding: .2rem .7rem .2rem 0; text-align: left; vertical-align: top }}
.card {{ border: 1px solid #ccc; border-radius: 6px; padding: .7rem 1rem; margin: .7rem 0 }}
audio {{ width: 100% }} pre {{ white-space: pre-wrap; font-size: 12px; background: #f5f5f5; padding: .5rem }}
img {{ max-width: 100% }}
</style></head><body><h1>{title}</h1><p>{summary}</p>
<h2>Directions, labels, durations</h2><div class="row">{figures}</div>
<h2>Licences</h2><table><tr><th>licence</th><th>scenes</th></tr>{licences}</table>
<h2>Spectrograms</h2><p>Left ear above right ear, 0 to 8 kHz, 5.12 s; captions in the order of the pictures:
{montage_captions}.</p><img alt="log-mel spectrograms of {montage_count} scenes" src="{montage}">
<h2>Examples</h2>{examples}</body></html>
"""


def write_preview(dataset, out, split: str = "train", limit: int = 1000) -> Path:
    """Write the page of one split.

    Args:
      dataset: folder of a built config and version.
      limit: scenes that are looked at, spread evenly over the split.

    Raises:
      ValueError: there is no data set, no such split, or limit < 1.
    """
    if limit < 1:
        raise ValueError(f"limit = {limit}: must be at least 1")
    folder = Path(dataset).resolve()
    if len(folder.parts) < 4:
        raise ValueError(f"dataset = {str(dataset)!r}: the folder of a built config, ending in its version")
    version, config, builder = folder.name, folder.parent.name, folder.parent.parent.name
    name = f"{builder}/{config}:{version}"
    source = SceneSource(folder.parents[2], name, split, _FIELDS, optional=("scene_json",))
    looked_at = np.unique(np.linspace(0, len(source) - 1, min(limit, len(source))).round().astype(int))
    shown = set(looked_at[np.linspace(0, len(looked_at) - 1, min(EXAMPLES, len(looked_at))).astype(int)].tolist())
    pictured = set(looked_at[np.linspace(0, len(looked_at) - 1, min(MONTAGE, len(looked_at))).astype(int)].tolist())
    azimuths, seconds, cards, pictures, captions = [], [], [], [], []
    labels, licences = collections.Counter(), collections.Counter()
    for i in looked_at.tolist():
        record = {k: v.decode() if isinstance(v, bytes) else v for k, v in source.read_coded(i).items()}
        scene = json.loads(record["scene_json"]) if "scene_json" in record else None
        sources = scene["sources"] if scene else [{"azimuth_deg": float(record["azimuth_deg"])} | record]
        azimuths += [x["azimuth_deg"] for x in sources]
        labels.update(x["label"] for x in sources)
        licences.update(record["licence"].split("; "))
        seconds.append(active_frames(record["audio"].mean(1)).sum() * HOP / SAMPLE_RATE)
        if i in pictured:
            pictures.append(spectrogram_image(record["mel"].astype(np.float32))[::2, ::2])
            captions.append(record["caption"])
        if i in shown:
            cards.append(_card(i, record, scene))
    of = f"{len(looked_at)} of the {len(source)}" if len(looked_at) < len(source) else f"all {len(source)}"
    page = _PAGE.format(
        title=html.escape(f"{name}, {split}"),
        summary=f"{of} scenes, {len(source.labels)} labels in the data set.",
        figures="".join(_figures(azimuths, labels, seconds)),
        licences="".join(f"<tr><td>{html.escape(x)}</td><td>{n}</td></tr>" for x, n in licences.most_common()),
        montage_captions="; ".join(html.escape(c) for c in captions),
        montage_count=len(pictures),
        montage=_data_url("image/png", _png(_montage(pictures))),
        examples="".join(cards),
    )
    out = Path(out)
    write_atomically(out, lambda file: file.write(page.encode()))
    return out


def _card(index: int, record: dict, scene: dict | None) -> str:
    wave = record["audio"].astype(np.float32) / 32767
    itd, ild = metrics.itd_us(wave, SAMPLE_RATE), metrics.ild_db(wave, SAMPLE_RATE)
    facts = {
        "azimuth": f"{record['azimuth_deg']:.1f}°",
        "label": record["label"],
        "measured ITD": f"{itd:+.0f} µs",
        "measured ILD": f"{ild:+.1f} dB",
        "source": record["source_file"],
        "licence": record["licence"],
    }
    rows = "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in facts.items())
    more = f"<details><summary>scene</summary><pre>{html.escape(json.dumps(scene, indent=1))}</pre></details>"
    audio = f'<audio controls preload="none" src="{_data_url("audio/wav", _wav(record["audio"]))}"></audio>'
    caption = f"<b>{index}: {html.escape(record['caption'])}</b>"
    return f'<div class="card">{caption}{audio}<table>{rows}</table>{more if scene else ""}</div>'


def _figures(azimuths, labels: collections.Counter, seconds) -> list[str]:
    """Return inline SVG pictures: polar histogram of azimuths, bars of labels, histogram of sounding seconds."""
    from matplotlib.figure import Figure  # slow to import; pyplot is not needed

    circle = Figure(figsize=(3.6, 3.8), layout="constrained")
    axes = circle.add_subplot(projection="polar")
    counts, edges = np.histogram(np.mod(azimuths, 360), bins=36, range=(0, 360))
    axes.bar(np.deg2rad(edges[:-1]), counts, width=np.deg2rad(10), align="edge")
    axes.set_theta_zero_location("N")  # front is up, and angles grow to the left as azimuths do
    axes.set_title("azimuth of the sources, degrees")
    top = labels.most_common(TOP)
    if len(labels) > TOP:
        top.append((f"{len(labels) - TOP} others", sum(n for _, n in labels.most_common()[TOP:])))
    bars = Figure(figsize=(4.4, 0.6 + 0.2 * len(top)), layout="constrained")
    axes = bars.add_subplot()
    axes.barh([label for label, _ in top][::-1], [n for _, n in top][::-1])
    axes.set_title("sources of each label")
    axes.tick_params(labelsize=8)
    lengths = Figure(figsize=(3.6, 2.6), layout="constrained")
    axes = lengths.add_subplot()
    axes.hist(seconds, bins=20, range=(0, 5.12))
    axes.set(title="seconds that sound", xlabel="s", ylabel="scenes")
    pictures = []
    for figure in (circle, bars, lengths):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg")
        pictures.append(buffer.getvalue()[buffer.getvalue().index("<svg") :])
    return pictures


def _montage(pictures: list[np.ndarray], columns: int = 4) -> np.ndarray:
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + 6), columns * (width + 6), 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = (i // columns) * (height + 6), (i % columns) * (width + 6)
        sheet[y : y + height, x : x + width] = picture
    return sheet


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _wav(audio: np.ndarray) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, audio, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def main(argv=None) -> int:
    """Run the command line; return 2 after one clear line if the input is bad."""
    parser = argparse.ArgumentParser(
        prog="python -m dualspec_jax.preview", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("dataset", help="folder of a built config and version")
    parser.add_argument("--out", default="preview.html", help="the page; an existing one is replaced")
    parser.add_argument("--split", default="train", help="train or valid")
    parser.add_argument("--limit", type=int, default=1000, help="scenes that are looked at")
    args = parser.parse_args(argv)
    try:
        print(write_preview(args.dataset, args.out, args.split, args.limit))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
