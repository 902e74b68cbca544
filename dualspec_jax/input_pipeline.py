"""Read training batches through Grain: records or the caption grammar -> transforms -> NumPy batches."""

from collections.abc import Callable

import grain
from absl import flags
from ml_collections import ConfigDict

from dualspec_jax.elements import CAPTION_TASKS, READ, RENDERED
from dualspec_jax.latents import latents_of


def make_batches(
    config: ConfigDict,
    task: str,
    split: str,
    *,
    seed: int,
    data_dir=None,
    tokenizer=None,
    latents_dir=None,
    train: bool = True,
    encode: Callable | None = None,
    shard: tuple[int, int] = (0, 1),
) -> grain.IterDataset:
    """Return the batches of a task; its iterators have get_state and set_state.

    Training batches go on without end, each pass shuffled and cropped anew. With train=False there is one pass in
    stored order, the same each time; its last batch is filled up from the start, so that every batch is full.

      mel_vae, mel_decoder  mel f32 [B, crop, M, 2]; whole clips [B, T, M, 2] with train=False
      stft_vae, stft_decoder  stft f32 [B, crop, F, 4]; whole clips with train=False
      vocoder       wave f32 [B, crop * hop] of one ear; the middle of a clip with train=False
      classifier    mel f32 [B, T / pool, M] of both ears' sum, label int32 [B]
      listener      the same, label of `known_labels`
      localiser     statistics f32 [B, F, 4] (see `ops.interaural`), azimuth_deg f32 [B]; drawn, needs no data set
      text_encoder, reader  token_ids int32, text_mask bool [B, L], label int32 [B] (of `known_labels`; -1 = no event),
                    azimuth_deg f32 [B] (0 where has_direction is false), has_direction bool [B]
      event_guide   latent f32 [B, t, f, C of the Mel-VAE], label int32 [B] (of `known_labels`)
      diffusion     latent f32 [B, t, f, C], token_ids, text_mask, azimuth_deg f32 [B], has_azimuth bool [B]

    The forms do not depend on `config.feeding.source`; with "render", clips of the bank are placed in drawn directions
    and their features computed on the device, new ones in every pass, and arrays are those of JAX.

    Args:
      split: `train` or `valid`. The captions of text_encoder are drawn from the grammar; `valid` draws the held-out
        wordings of the events, where there are any.
      data_dir: folder of the data set; None takes config.data.data_dir. For VAEs, classifier and listener, and for
        the labels of text_encoder, event_guide and listener.
      tokenizer: for text_encoder and diffusion.
      latents_dir: folder of cached latents of this split, for diffusion and event_guide; see `dualspec_jax.encode`.
      encode: (mel, stft) -> latents, for diffusion from rendered scenes.
      shard: (index, count) of this host: batch size is divided by count, and the hosts' parts, one after the other, are
        the batch that a single host would have.

    Raises:
      ValueError: unknown task, data that is missing, or a batch that the hosts cannot share.
    """
    if task not in READ:
        raise ValueError(f"task = {task!r}: must be one of {', '.join(READ)}")
    feeding, batch_size = config.feeding, config.train[task].batch_size
    index, count = shard
    if not 0 <= index < count or batch_size % count:
        raise ValueError(f"shard = {shard}: index must be below count, and count divide batch_size = {batch_size}")
    rendered = feeding.source == "render" and task not in CAPTION_TASKS
    if rendered and task not in RENDERED:
        raise ValueError(f"feeding.source = 'render': task {task} has no rendered form; only {', '.join(RENDERED)}")
    make_elements = RENDERED[task] if rendered else READ[task]
    sources = [(config.data.dataset, 1.0)]
    if train and task not in CAPTION_TASKS:
        sources += [tuple(pair) for pair in feeding.mix]
    parts, finish = [], None
    for number, (dataset, _) in enumerate(sources):
        part_seed = seed + 1000003 * number
        elements = make_elements(
            config,
            task=task,
            split=split,
            seed=part_seed,
            dataset=dataset,
            data_dir=data_dir or config.data.data_dir,
            tokenizer=tokenizer,
            latents_dir=latents_of(latents_dir or config.data.latents_dir, dataset if number else None),
            train=train,
            encode=encode,
        )
        finish = elements.finish
        order = grain.MapDataset.source(elements.order)
        if train:
            order = order.shuffle(part_seed).repeat()
        else:
            n_full = -(-len(elements.order) // batch_size) * batch_size
            order = order.repeat(reseed_each_epoch=False)[:n_full]
        parts.append(order.random_map(elements.make, seed=part_seed))
    mixed = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, [weight for _, weight in sources])
    if count > 1:  # rows of this host, in the order of the whole batch
        rows = range(index * batch_size // count, (index + 1) * batch_size // count)
        mixed = grain.MapDataset.mix([mixed[row::batch_size] for row in rows])
    reader = grain.ReadOptions(
        num_threads=config.data.num_threads, prefetch_buffer_size=max(config.data.prefetch, batch_size)
    )
    dataset = mixed.to_iter_dataset(reader)
    if feeding.num_workers:  # before batching: then the order does not depend on how many there are
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl's flags, which a program may not use at all
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=feeding.num_workers))
    dataset = dataset.batch(batch_size // count, drop_remainder=True)
    return dataset.map(finish) if finish else dataset
