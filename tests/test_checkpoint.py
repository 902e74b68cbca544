import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dualspec_jax import config as config_lib
from dualspec_jax.checkpoint import BestCheckpoint, Checkpoints, config_differences, latest_step, load_params
from dualspec_jax.sharding import infer_sharding, make_mesh
from dualspec_jax.train_step import init_state

POSITION = {"iterator": {"next_index": 5}, "window": {"count": 1, "total": {"loss": 0.1}}}


def _state(value=0.0):
    def init(key):
        return {"dense": {"kernel": jnp.full((8, 4), value), "bias": jnp.zeros(4)}}

    state = init_state(init, optax.adam(0.1), jax.random.key(0))
    return state.replace(ema_params=jax.tree.map(lambda x: x + 0.5, state.ema_params))


def _save(folder, steps=(1,), config=None, task="mel_vae", keep=2, key=None):
    checkpoints = Checkpoints(folder, config or config_lib.default(), task, keep)
    for step in steps:
        checkpoints.save(step, _state(float(step)), POSITION, jax.random.key(3) if key is None else key)
    checkpoints.close()


def _restore(folder, config=None, task="mel_vae", abstract=None):
    checkpoints = Checkpoints(folder, config or config_lib.default(), task, 2)
    try:
        return checkpoints.restore_latest(jax.eval_shape(_state) if abstract is None else abstract)
    finally:
        checkpoints.close()


def test_restore_gives_back_what_was_saved(tmp_path):
    _save(tmp_path, steps=(1, 7))
    restored = _restore(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, restored.state, _state(7.0))
    assert restored.position == POSITION
    np.testing.assert_array_equal(jax.random.key_data(restored.key), jax.random.key_data(jax.random.key(3)))


def test_key_implementation_is_kept(tmp_path):
    _save(tmp_path, key=jax.random.key(3, impl="rbg"))
    assert jax.random.key_impl(_restore(tmp_path).key) == jax.random.key_impl(jax.random.key(3, impl="rbg"))


def test_restore_without_checkpoint_is_none(tmp_path):
    assert _restore(tmp_path) is None


def test_last_checkpoints_are_kept(tmp_path):
    _save(tmp_path, steps=(1, 2, 3, 4), keep=3)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 3, 4]


def test_saving_a_saved_step_changes_nothing(tmp_path):
    _save(tmp_path, steps=(4,))
    _save(tmp_path, steps=(4,))
    assert latest_step(tmp_path) == 4


def test_saved_values_survive_donation_of_the_state(tmp_path):
    """Saving is asynchronous, and the next steps overwrite the buffers."""
    checkpoints = Checkpoints(tmp_path, config_lib.default(), "mel_vae", 1)
    state = {"kernel": jnp.zeros((512, 512))}
    bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints.save(1, state, POSITION, jax.random.key(0))
    for _ in range(20):
        state = bump(state)
    checkpoints.close()
    reader = Checkpoints(tmp_path, config_lib.default(), "mel_vae", 1)
    saved = reader.restore_latest(jax.eval_shape(lambda: state)).state
    reader.close()
    np.testing.assert_array_equal(saved["kernel"], 0.0)


def test_position_is_saved_as_it_was(tmp_path):
    position = {"iterator": {"next_index": 1}, "window": {}}
    checkpoints = Checkpoints(tmp_path, config_lib.default(), "mel_vae", 1)
    checkpoints.save(1, _state(), position, jax.random.key(0))
    position["iterator"]["next_index"] = 99
    checkpoints.close()
    assert _restore(tmp_path).position["iterator"]["next_index"] == 1


@pytest.mark.skipif(jax.device_count() != 4, reason="needs the four fake CPU devices of conftest.py")
def test_restore_onto_another_mesh(tmp_path):
    _save(tmp_path, steps=(2,))
    abstract = jax.eval_shape(_state)
    shardings = infer_sharding(abstract, make_mesh(8, fsdp=2), min_size=1)
    sharded = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    state = _restore(tmp_path, abstract=sharded).state
    assert state.params["dense"]["kernel"].addressable_shards[0].data.shape == (4, 4)
    np.testing.assert_array_equal(state.params["dense"]["kernel"], 2.0)


@pytest.mark.skipif(jax.device_count() != 4, reason="needs the four fake CPU devices of conftest.py")
def test_any_mesh_and_device_count_restores_the_same_state(tmp_path):
    abstract = jax.eval_shape(_state)

    def sharded(mesh):
        shardings = infer_sharding(abstract, mesh, min_size=1)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)

    saved = jax.device_put(_state(2.0), jax.tree.map(lambda x: x.sharding, sharded(make_mesh(8, fsdp=4))))
    checkpoints = Checkpoints(tmp_path, config_lib.default(), "mel_vae", 1)
    checkpoints.save(1, saved, POSITION, jax.random.key(0))
    checkpoints.close()
    for mesh in (
        make_mesh(8, devices=jax.devices()[:1]),
        make_mesh(8, fsdp=2, devices=jax.devices()[:2]),
        make_mesh(8, fsdp=2, tensor=2),
    ):
        state = _restore(tmp_path, abstract=sharded(mesh)).state
        jax.tree.map(np.testing.assert_array_equal, state, _state(2.0))
        assert state.params["dense"]["kernel"].sharding.mesh.size == mesh.size


def test_best_is_replaced_by_lower_errors_only(tmp_path):
    def offer(errors):
        best = BestCheckpoint(tmp_path, config_lib.default(), "mel_vae")
        before = best.error
        for step, error in errors.items():
            best.offer(step, _state(float(step)), error, jax.random.key(0))
        best.close()
        return before

    assert offer({1: 0.5, 2: 0.25, 3: 0.75}) == float("inf")
    assert latest_step(tmp_path / "best") == 2
    assert offer({4: 0.3}) == 0.25 and latest_step(tmp_path / "best") == 2
    assert offer({1: 0.125}) == 0.25 and latest_step(tmp_path / "best") == 1  # a run that was resumed from before
    np.testing.assert_array_equal(load_params(tmp_path / "best", "params")[0]["dense"]["kernel"], 1.0)


def test_best_of_another_config_is_refused(tmp_path):
    best = BestCheckpoint(tmp_path, config_lib.default(), "mel_vae")
    best.offer(1, _state(), 0.5, jax.random.key(0))
    best.close()
    config = config_lib.default()
    config.train.mel_vae.batch_size = 8
    with pytest.raises(ValueError, match="best/checkpoints/1 was made with another config.*batch_size: checkpoint 16"):
        BestCheckpoint(tmp_path, config, "mel_vae")


@pytest.mark.parametrize("damage", ["empty", "no state", "short state", "no json", "no position"])
def test_damaged_checkpoint_is_named(tmp_path, damage):
    _save(tmp_path, steps=(1, 2))
    path = tmp_path / "checkpoints" / "2"
    if damage == "short state":
        for file in (path / "state").rglob("*"):
            if file.is_file():
                file.write_bytes(file.read_bytes()[:10])
    elif damage == "no json":
        (path / "config" / "metadata").write_text("")
    else:
        for item in path.iterdir() if damage == "empty" else [path / damage.removeprefix("no ")]:
            shutil.rmtree(item) if item.is_dir() else item.unlink()
    with pytest.raises(ValueError, match=f"checkpoint {path} cannot be read; delete it"):
        _restore(tmp_path)
    if damage != "no position":  # of no use there
        with pytest.raises(ValueError, match=f"checkpoint {path} cannot be read; delete it"):
            load_params(tmp_path)
    shutil.rmtree(path)
    assert int(_restore(tmp_path).state.params["dense"]["kernel"][0, 0]) == 1


def test_damaged_best_checkpoint_is_named(tmp_path):
    (tmp_path / "best" / "checkpoints" / "9").mkdir(parents=True)
    with pytest.raises(ValueError, match="best/checkpoints/9 cannot be read; delete it"):
        BestCheckpoint(tmp_path, config_lib.default(), "mel_vae")


def test_half_written_checkpoint_is_ignored_and_removed(tmp_path):
    _save(tmp_path, steps=(3,))
    leftover = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp"
    (leftover / "state").mkdir(parents=True)
    assert latest_step(tmp_path) == 3
    np.testing.assert_array_equal(load_params(tmp_path, "params")[0]["dense"]["kernel"], 3.0)
    assert leftover.exists(), "reading must not write"
    assert int(_restore(tmp_path).state.params["dense"]["kernel"][0, 0]) == 3
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("mel_vae.latent_channels", 4, "mel_vae.latent_channels: checkpoint 8, config 4"),
        ("audio.hop_length", 80, "audio.hop_length: checkpoint 160, config 80"),
        ("train.mel_vae.batch_size", 3, "train.mel_vae.batch_size: checkpoint 16, config 3"),
        ("data.crop_frames", 64, "data.crop_frames: checkpoint 128, config 64"),
        ("seed", 1, "seed: checkpoint 0, config 1"),
    ],
)
def test_restoring_with_another_config_names_the_field(tmp_path, field, value, shown):
    _save(tmp_path)
    config = config_lib.default()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=shown):
        _restore(tmp_path, config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train.mel_vae.steps", 10),
        ("train.mel_vae.lr", 0.5),
        ("train.mel_vae.log_every", 1),
        ("train.diffusion.batch_size", 1),
        ("train.mel_vae.accumulate", 4),
        ("mesh.fsdp", 2),
        ("unet.channels", (32, 64, 96)),
        ("sample.steps", 3),
        ("sampler.solver", "unipc"),
        ("data.prefetch", 1),
        ("data.data_dir", "/elsewhere"),
    ],
)
def test_fields_that_do_not_concern_the_task_may_change(tmp_path, field, value):
    _save(tmp_path)
    config = config_lib.default()
    config.update_from_flattened_dict({field: value})
    assert _restore(tmp_path, config) is not None


def test_another_task_is_refused(tmp_path):
    _save(tmp_path)
    with pytest.raises(ValueError, match="task: checkpoint mel_vae, config classifier"):
        _restore(tmp_path, task="classifier")


@pytest.mark.parametrize(
    ("task", "field", "matters"),
    [
        ("diffusion", "unet.head_dim", True),
        ("diffusion", "text.d_model", True),
        ("diffusion", "classifier.dropout", False),
        ("text_encoder", "text.d_model", True),
        ("text_encoder", "diffusion.num_steps", False),
        ("stft_vae", "stft_vae.cue_weight", True),
        ("stft_vae", "mel_vae.kl_weight", False),
        ("classifier", "classifier.pool", True),
        ("diffusion", "localiser.azimuths", False),
        ("localiser", "localiser.azimuths", True),
    ],
)
def test_sections_that_matter_depend_on_the_task(task, field, matters):
    old, new = config_lib.default(), config_lib.default()
    section, name = field.split(".")
    new[section][name] = old[section][name] * 2
    saved, wanted = ({"task": task, "config": json.loads(json.dumps(c.to_dict()))} for c in (old, new))
    assert bool(config_differences(saved, wanted)) == matters


def test_every_task_says_which_sections_matter():
    from dualspec_jax import checkpoint

    assert set(checkpoint._SECTIONS) == set(config_lib.TASKS)
    named = {name for sections in checkpoint._SECTIONS.values() for name in sections}
    assert named < set(config_lib.default())


@pytest.mark.parametrize("value", [1e-5, 1e-4])
def test_field_newer_than_the_checkpoint_had_its_default_there(value):
    base = json.loads(json.dumps(config_lib.default().to_dict()))
    older = json.loads(json.dumps(base))
    del older["audio"]["mel_floor"], older["mesh"]
    base["audio"]["mel_floor"] = value
    differences = config_differences({"task": "mel_vae", "config": older}, {"task": "mel_vae", "config": base})
    assert differences == ([] if value == 1e-5 else ["audio.mel_floor: checkpoint 1e-05, config 0.0001"])


def test_config_of_an_older_checkpoint_has_the_newer_fields(tmp_path):
    older = config_lib.default()
    with older.unlocked():
        del older.mesh, older.train.mel_vae.remat
    _save(tmp_path, config=older)
    assert _restore(tmp_path) is not None
    assert load_params(tmp_path)[1] == config_lib.default()


def test_load_params_needs_only_the_folder(tmp_path):
    config = config_lib.default()
    config.mel_vae.kl_weight = 0.125
    _save(tmp_path, steps=(2, 4), config=config)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    params, loaded = load_params(tmp_path)
    raw, _ = load_params(tmp_path, which="params")
    np.testing.assert_array_equal(params["dense"]["kernel"], 4.5)
    np.testing.assert_array_equal(raw["dense"]["kernel"], 4.0)
    assert isinstance(params["dense"]["kernel"], jax.Array) and params["dense"]["kernel"].dtype == jnp.float32
    assert loaded == config and loaded.mel_vae.strides == config.mel_vae.strides
    assert before == sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))


def test_load_params_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint in"):
        load_params(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(ValueError, match="which = 'opt_state'"):
        load_params(tmp_path, which="opt_state")
