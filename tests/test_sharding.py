import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from dualspec_jax.sharding import (
    batch_sharding,
    bytes_per_device,
    gather,
    host_share,
    infer_sharding,
    make_mesh,
    place,
    place_batch,
    replicated,
    share_of_rows,
    with_whole_weights,
)
from dualspec_jax.train_step import init_state, make_train_step

pytestmark = pytest.mark.skipif(jax.device_count() != 4, reason="needs the four fake CPU devices of conftest.py")


def _shape(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize(("batch_size", "data"), [(8, 4), (6, 2), (1, 1), (5, 1)])
def test_data_axis_takes_as_many_devices_as_divide_the_batch(batch_size, data):
    assert dict(make_mesh(batch_size).shape) == {"data": data, "fsdp": 1, "tensor": 1}


def test_mesh_axes_can_be_given():
    assert dict(make_mesh(8, fsdp=2).shape) == {"data": 2, "fsdp": 2, "tensor": 1}
    assert dict(make_mesh(8, fsdp=2, tensor=2).shape) == {"data": 1, "fsdp": 2, "tensor": 2}
    assert make_mesh(8, devices=jax.devices()[1:3]).size == 2
    assert dict(make_mesh(8, fsdp=2, data=1).shape) == {"data": 1, "fsdp": 2, "tensor": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(batch_size=8, fsdp=3), "must divide the 4 devices"),
        (dict(batch_size=8, fsdp=0), "must divide the 4 devices"),
        (dict(batch_size=3, fsdp=2), "batch_size = 3"),
        (dict(batch_size=3, data=4), "batch_size = 3: must be a multiple of data \\* fsdp = 4"),
        (dict(batch_size=8, fsdp=2, data=3), "data = 3"),
    ],
)
def test_mesh_that_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(**arguments)


def test_largest_divisible_axis_is_sharded():
    mesh = make_mesh(8, fsdp=2)
    abstract = {
        "kernel": _shape(3, 3, 64, 128),
        "odd_largest": _shape(64, 129),
        "tie": _shape(64, 64),
        "scalar": _shape(),
        "prime": _shape(127, 129),
    }
    specs = jax.tree.map(lambda s: s.spec, infer_sharding(abstract, mesh, min_size=1))
    assert specs["kernel"] == P(None, None, None, "fsdp")
    assert specs["odd_largest"] == P("fsdp")
    assert specs["tie"] == P(None, "fsdp")
    assert specs["scalar"] == P()
    assert specs["prime"] == P()


def test_tensor_axis_takes_outputs_and_then_the_inputs_of_what_reads_them():
    mesh = make_mesh(8, fsdp=2, tensor=2)
    block = {"conv1": {"kernel": _shape(3, 3, 8, 16), "bias": _shape(16)}, "conv2": {"kernel": _shape(3, 3, 16, 16)}}
    block |= {"to_q": {"kernel": _shape(8, 8)}, "to_out": {"kernel": _shape(8, 8)}, "odd": {"kernel": _shape(4, 7)}}
    block |= {"layer_11_wo": {"kernel": _shape(4, 6)}, "layer_11_wi_0": {"kernel": _shape(4, 6)}}
    specs = jax.tree.map(lambda s: s.spec, infer_sharding({"params": block}, mesh, min_size=1))["params"]
    assert specs["conv1"] == {"kernel": P(None, None, "fsdp", "tensor"), "bias": P("fsdp")}
    assert specs["conv2"]["kernel"] == P(None, None, "tensor", "fsdp")
    assert specs["to_q"]["kernel"] == P("fsdp", "tensor") and specs["to_out"]["kernel"] == P("tensor", "fsdp")
    assert specs["odd"]["kernel"] == P("fsdp")
    assert specs["layer_11_wi_0"]["kernel"] == P("fsdp", "tensor")
    assert specs["layer_11_wo"]["kernel"] == P("tensor", "fsdp")


@pytest.mark.parametrize(("axes", "split"), [(dict(fsdp=2), 1), (dict(fsdp=2, tensor=2), 2), (dict(), 1)])
def test_loss_sees_weights_whole_over_fsdp_and_split_over_tensor(axes, split):
    mesh, seen = make_mesh(8, **axes), []

    def loss_fn(params, batch, key, frozen):
        for tree in (params, frozen):
            jax.debug.inspect_array_sharding(tree["kernel"], callback=seen.append)
        return jnp.sum(params["kernel"]) + jnp.sum(frozen["kernel"]) + jnp.sum(batch), {}

    tree = {"kernel": np.ones((8, 4), np.float32)}
    placed = place(tree, infer_sharding(tree, mesh, 1))
    jax.jit(with_whole_weights(loss_fn, mesh, 1))(placed, np.ones(8), jax.random.key(0), placed)
    assert [s.shard_shape((8, 4)) for s in seen] == [(8, 4 // split)] * 2


def test_bytes_per_device_fall_with_fsdp():
    tree = {"kernel": np.zeros((64, 64), np.float32), "bias": np.zeros(64, np.float32)}
    for fsdp, expected in ((1, 64 * 65 * 4), (2, 64 * 32 * 4 + 64 * 4), (4, 64 * 16 * 4 + 64 * 4)):
        placed = place(tree, infer_sharding(tree, make_mesh(8, fsdp=fsdp), min_size=65))
        assert bytes_per_device(placed) == expected
        assert sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(placed)) == expected
        jax.tree.map(np.testing.assert_array_equal, gather(placed), tree)


def test_small_arrays_are_replicated():
    mesh = make_mesh(8, fsdp=2)
    shardings = infer_sharding({"small": _shape(16, 16), "large": _shape(1024, 16)}, mesh, min_size=1024)
    assert shardings["small"].spec == P()
    assert shardings["large"].spec == P("fsdp")


def test_without_fsdp_everything_is_replicated():
    assert infer_sharding(_shape(1024, 1024), make_mesh(8)).spec == P()


@pytest.mark.parametrize("fsdp", [1, 2])
def test_placed_batch_is_split_and_whole(fsdp):
    batch = {"x": np.arange(24.0, dtype=np.float32).reshape(8, 3), "label": np.arange(8, dtype=np.int32)}
    placed = place_batch(batch, make_mesh(8, fsdp=fsdp))
    assert {shard.data.shape for shard in placed["x"].addressable_shards} == {(2, 3)}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(placed), batch)


def test_processes_share_the_rows_of_a_batch():
    assert host_share(make_mesh(8), 8) == (0, 1)
    halves = {0: {0, 1}, 1: {2, 3}}
    assert share_of_rows(halves, 1, 4) == (1, 2)
    assert share_of_rows({**halves, 2: {0, 1}, 3: {2, 3}}, 3, 4) == (1, 2)  # two processes hold the same rows
    assert share_of_rows({0: {0, 1, 2, 3}, 1: {0, 1, 2, 3}}, 1, 4) == (0, 1)
    assert share_of_rows({0: {0, 2}, 1: {1, 3}}, 1, 4) == (0, 1)  # not in order: everyone reads everything
    assert share_of_rows({0: {0}, 1: {1, 2, 3}}, 1, 4) == (0, 1)


@pytest.mark.parametrize("axes", [dict(), dict(fsdp=2), dict(fsdp=2, tensor=2)])
def test_sharded_training_equals_one_device(axes):
    def init(key):
        return {"kernel": jax.random.normal(key, (8, 4))}

    def loss_fn(params, batch, key):
        y = batch @ params["kernel"] + jax.random.normal(key, (8, 4))
        return jnp.mean(y**2), {}

    tx = optax.adam(0.1)
    batch = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)

    def run(mesh):
        def make(key):
            return init_state(init, tx, key)

        shardings = infer_sharding(jax.eval_shape(make, jax.random.key(0)), mesh, min_size=1)
        state = jax.jit(make, out_shardings=shardings)(jax.random.key(0))
        step = jax.jit(
            make_train_step(with_whole_weights(loss_fn, mesh, 1), tx, 0.9),
            in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
            out_shardings=(shardings, replicated(mesh)),
            donate_argnums=0,
        )
        for _ in range(3):
            state, _ = step(state, place_batch(batch, mesh), jax.random.key(1))
        return state

    one, many = run(make_mesh(8, devices=jax.devices()[:1])), run(make_mesh(8, **axes))
    if axes:
        split = (4, 2) if "tensor" in axes else (4, 4)
        for tree in (many.params, many.ema_params, optax.tree.get(many.opt_state, "mu")):
            assert tree["kernel"].addressable_shards[0].data.shape == split
    # Sums over shards are taken in another order: some units in the last place, which Adam's division can enlarge.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), jax.device_get(one), jax.device_get(many)
    )
