"""The tasks by name, `config.TASKS`."""

import functools
from pathlib import Path

from ml_collections import ConfigDict

from dualspec_jax.diffusion_task import diffusion_model, diffusion_task
from dualspec_jax.judge_tasks import classifier_task, localiser_task
from dualspec_jax.ranking_tasks import event_guide_model, event_guide_task, listener_model, listener_task
from dualspec_jax.task import Model, Task
from dualspec_jax.text_task import reader_model, reader_task, text_encoder_model, text_encoder_task
from dualspec_jax.vae_tasks import mel_decoder_task, mel_vae_task, stft_decoder_task, stft_vae_task, vae_model
from dualspec_jax.vocoder_task import vocoder_model, vocoder_task

BUILDERS = {
    "mel_vae": mel_vae_task,
    "mel_decoder": mel_decoder_task,
    "stft_vae": stft_vae_task,
    "stft_decoder": stft_decoder_task,
    "vocoder": vocoder_task,
    "text_encoder": text_encoder_task,
    "reader": reader_task,
    "event_guide": event_guide_task,
    "listener": listener_task,
    "classifier": classifier_task,
    "localiser": localiser_task,
    "diffusion": diffusion_task,
}
MODELS = {
    "mel_vae": functools.partial(vae_model, name="mel_vae"),
    "stft_vae": functools.partial(vae_model, name="stft_vae"),
    "vocoder": vocoder_model,
    "text_encoder": text_encoder_model,
    "reader": reader_model,
    "event_guide": event_guide_model,
    "listener": listener_model,
    "diffusion": diffusion_model,
}


def make_task(config: ConfigDict, name: str, workdir: str | Path) -> Task:
    """Build a task.

    Raises:
      ValueError: unknown task, or what it builds on (data set, latents, trained parts) is missing.
    """
    if name not in BUILDERS:
        raise ValueError(f"task = {name!r}: must be one of {', '.join(BUILDERS)}")
    return BUILDERS[name](config, Path(workdir))


def make_model(config: ConfigDict, name: str) -> Model:
    """Build what a task computes; needs no files.

    Raises:
      ValueError: unknown task, or the classifier, whose size depends on the data set.
    """
    if name not in MODELS:
        raise ValueError(f"task = {name!r}: must be one of {', '.join(MODELS)}")
    return MODELS[name](config)
