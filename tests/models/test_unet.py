import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw_params

from dualspec_jax.models.unet import AzimuthEmbedding, UNet

FIELDS = {
    "patch": (2, 1),
    "channels": (8, 16),
    "layers_per_block": 1,
    "attention": (False, True),
    "head_dim": 4,
    "norm_groups": 4,
}
B, L, D = 2, 5, 6
MASK = jnp.arange(L) < jnp.array([[3], [5]])


def inputs(seed=0):
    k = jax.random.split(jax.random.key(seed), 2)
    return {
        "x": jax.random.normal(k[0], (B, 8, 4, 3)),
        "t": jnp.array([0, 900]),
        "text_emb": jax.random.normal(k[1], (B, L, D)),
        "text_mask": MASK,
        "azimuth_deg": jnp.array([30.0, 200.0]),
        "has_azimuth": jnp.array([True, True]),
    }


def build(**more):
    model = UNet(**(FIELDS | more))
    return jax.jit(model.apply), draw_params(model, **inputs())


@pytest.fixture(scope="module")
def built():
    return build()


def difference(a, b):
    return np.asarray(jnp.max(jnp.abs(a - b), axis=(1, 2, 3)))


def test_output_has_the_shape_of_the_latent(built):
    apply, params = built
    out = apply(params, **inputs())
    assert out.shape == (B, 8, 4, 3) and out.dtype == jnp.float32 and np.all(np.isfinite(out))


@pytest.mark.parametrize("field", ["x", "t", "text_emb", "azimuth_deg"])
def test_every_input_matters(built, field):
    apply, params = built
    changed = inputs() | {field: inputs()[field] + 50}
    assert np.all(difference(apply(params, **inputs()), apply(params, **changed)) > 1e-5)


def test_masked_tokens_have_no_influence_and_no_gradient(built):
    apply, params = built
    i = inputs()
    junk = i | {"text_emb": jnp.where(MASK[..., None], i["text_emb"], 50.0)}
    np.testing.assert_array_equal(apply(params, **i), apply(params, **junk))
    gradient = jax.grad(lambda e: jnp.sum(apply(params, **(i | {"text_emb": e})) ** 2))(i["text_emb"])
    np.testing.assert_array_equal(gradient[~MASK], 0.0)
    assert np.all(np.abs(gradient[MASK]).sum(-1) > 0)


def test_without_has_azimuth_the_number_has_no_influence(built):
    apply, params = built
    off = inputs() | {"has_azimuth": jnp.array([False, True])}
    moved = off | {"azimuth_deg": jnp.array([111.0, 200.0])}
    np.testing.assert_array_equal(apply(params, **off)[0], apply(params, **moved)[0])
    gradient = jax.grad(lambda a: jnp.sum(apply(params, **(off | {"azimuth_deg": a})) ** 2))(off["azimuth_deg"])
    assert gradient[0] == 0 and gradient[1] != 0
    assert difference(apply(params, **off), apply(params, **inputs()))[0] > 1e-5


def test_a_full_turn_changes_nothing(built):
    apply, params = built
    zero, turn = (inputs() | {"azimuth_deg": jnp.array(a)} for a in ([0.0, 200.0], [360.0, 560.0]))
    np.testing.assert_allclose(apply(params, **zero), apply(params, **turn), atol=1e-4)


def test_azimuth_embedding_is_continuous_across_zero_and_tells_directions_apart():
    model = AzimuthEmbedding(width=8, harmonics=4)
    azimuth = jnp.arange(0.0, 360.0, 5.0)
    e, params = model.init_with_output(jax.random.key(0), azimuth)
    np.testing.assert_allclose(model.apply(params, jnp.array([359.99])), e[:1], atol=1e-2)
    distance = np.linalg.norm(np.asarray(e[:, None] - e[None]), axis=-1) + 9 * np.eye(len(e))
    assert distance.min() > 1e-2


@pytest.mark.parametrize(
    "more",
    [
        {"azimuth_token": False},
        {"pooled_text": False},
        {"freq_embedding": False},
        {"patch": (1, 1)},
        {"layers_per_block": 2},
        {"condition_rows": True},
    ],
)
def test_every_option_builds_and_changes_the_parameters(built, more):
    apply, params = build(**more)
    out = apply(params, **inputs())
    assert out.shape == (B, 8, 4, 3)
    assert jax.tree.map(np.shape, params) != jax.tree.map(np.shape, built[1])
    if more == {"azimuth_token": False}:
        moved = inputs() | {"azimuth_deg": jnp.array([111.0, 2.0])}
        np.testing.assert_array_equal(out, apply(params, **moved))
    if more == {"pooled_text": False}:  # the azimuth then works through its token alone
        moved = inputs() | {"azimuth_deg": jnp.array([111.0, 2.0])}
        assert np.all(difference(out, apply(params, **moved)) > 1e-5)


def test_condition_rows_start_at_nothing_and_tell_the_rows_apart(built):
    apply, params = build(condition_rows=True)
    start = jax.eval_shape(lambda k: UNet(**FIELDS, condition_rows=True).init(k, **inputs()), jax.random.key(0))
    rows = jax.tree.map(lambda x: jnp.zeros(x.shape), start["params"]["condition_rows"])
    params = {"params": params["params"] | {"condition_rows": rows}}
    without = {"params": {name: value for name, value in params["params"].items() if name != "condition_rows"}}
    np.testing.assert_allclose(apply(params, **inputs()), built[0](without, **inputs()), atol=1e-5)
    gradient = jax.grad(lambda p: jnp.sum(apply(p, **inputs()) ** 2))(params)["params"]["condition_rows"]["kernel"]
    assert np.all(np.abs(gradient).max(axis=0) > 0)
    # A bias in the second row alone changes what that row says first of all.
    width = FIELDS["channels"][0]
    bias = rows["bias"].at[width : 2 * width].set(1.0)
    second = {"params": params["params"] | {"condition_rows": rows | {"bias": bias}}}
    assert np.all(difference(apply(second, **inputs()), apply(params, **inputs())) > 1e-5)


def test_without_attention_at_a_level_there_are_no_weights_for_it(built):
    names = built[1]["params"]
    assert "down_0_attentions_0" not in names and "down_1_attentions_0" in names and "mid_attentions_0" in names


def test_bfloat16_compute_keeps_float32_output():
    model = UNet(**FIELDS, dtype=jnp.bfloat16)
    out, params = jax.eval_shape(lambda k: model.init_with_output(k, **inputs()), jax.random.key(0))
    assert out.dtype == jnp.float32
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
