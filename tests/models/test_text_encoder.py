import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw_params

from dualspec_jax.models.text_encoder import (
    CaptionHeads,
    DirectionReader,
    RMSNorm,
    T5Encoder,
    masked_mean,
    read_direction,
    relative_position_bucket,
)

IDS = jax.random.randint(jax.random.key(0), (2, 9), 3, 50)
MASK = jnp.arange(9) < jnp.array([[4], [9]])


FIELDS = dict(vocab_size=50, d_model=12, d_kv=5, d_ff=16, num_layers=2, num_heads=3, relative_buckets=8)


@pytest.fixture(scope="module")
def built():
    model = T5Encoder(**FIELDS)
    return jax.jit(model.apply), draw_params(model, IDS, MASK)


def reference_bucket(relative, num_buckets, max_distance):
    """The rule of section 2.1 in plain Python: exact up to a quarter of the buckets, then logarithmic."""
    half = num_buckets // 2
    exact, distance = half // 2, abs(relative)
    if distance >= exact:
        step = np.log(np.float32(distance) / exact) / np.log(max_distance / exact) * (half - exact)
        distance = min(exact + int(np.float32(step)), half - 1)
    return distance + (half if relative > 0 else 0)


@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (8, 20)])
def test_buckets_follow_the_rule(buckets, reach):
    relative = np.arange(-200, 201)
    ours = np.asarray(relative_position_bucket(jnp.asarray(relative), buckets, reach))
    np.testing.assert_array_equal(ours, [reference_bucket(int(r), buckets, reach) for r in relative])


def test_buckets_of_t5_by_hand():
    """32 buckets to 128: 8 exact, then 8 per direction whose edges are 8 * 16 ** (k / 8)."""
    table = {0: 0, -1: 1, -7: 7, -8: 8, -11: 8, -12: 9, -16: 10, -23: 11, -32: 12, -46: 13, -64: 14, -91: 15, -500: 15}
    table |= {1: 17, 7: 23, 8: 24, 12: 25, 127: 31, 500: 31}
    ours = relative_position_bucket(jnp.array(list(table)), 32, 128)
    np.testing.assert_array_equal(ours, list(table.values()))


def test_features_have_one_row_per_token(built):
    apply, params = built
    out = apply(params, IDS, MASK)
    assert out.shape == (2, 9, 12) and out.dtype == jnp.float32 and np.all(np.isfinite(out))


def test_masked_tokens_have_no_influence(built):
    apply, params = built
    out = apply(params, IDS, MASK)
    other = apply(params, jnp.where(MASK, IDS, 7), MASK)
    np.testing.assert_array_equal(out[MASK], other[MASK])
    alone = apply(params, IDS[:1, :4], MASK[:1, :4])
    np.testing.assert_allclose(out[0, :4], alone[0], atol=1e-5)


def test_masked_tokens_have_no_gradient(built):
    apply, params = built
    unused = jnp.where(MASK, jnp.minimum(IDS, 48), 49)  # token 49 stands in masked places only

    def loss(params):
        return jnp.sum(jnp.where(MASK[..., None], apply(params, unused, MASK), 0.0) ** 3)

    gradient = jax.grad(loss)(params)["params"]["shared"]["embedding"]
    np.testing.assert_array_equal(gradient[49], 0.0)
    assert float(jnp.max(jnp.abs(gradient[unused[0, 0]]))) > 0


def test_order_of_words_matters(built):
    apply, params = built
    ids = jnp.array([[5, 6, 7, 8]])
    pooled = lambda ids: masked_mean(apply(params, ids, jnp.ones((1, 4), bool)), jnp.ones((1, 4), bool))
    assert float(jnp.max(jnp.abs(pooled(ids) - pooled(ids[:, ::-1])))) > 1e-3


def test_layers_share_one_position_bias(built):
    names = built[1]["params"]
    assert [n for n in names if "relative" in n] == ["relative_attention_bias"]
    assert names["relative_attention_bias"]["embedding"].shape == (8, 3)
    assert names["layer_1_q"]["kernel"].shape == (12, 15) and "bias" not in names["layer_1_q"]


def test_rms_norm_has_unit_root_mean_square():
    x = 3.0 + 2.0 * jax.random.normal(jax.random.key(2), (4, 64))
    out, params = RMSNorm().init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(jnp.mean(out**2, -1), 1.0, rtol=1e-4)
    np.testing.assert_allclose(out / x, jnp.broadcast_to((out / x)[:, :1], x.shape), rtol=1e-4)  # no mean is taken off
    assert RMSNorm().apply(params, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_masked_mean_counts_kept_tokens_only():
    features = jnp.stack([jnp.arange(9.0)] * 2)[..., None]
    np.testing.assert_allclose(masked_mean(features, MASK)[:, 0], [1.5, 4.0])
    np.testing.assert_array_equal(masked_mean(features, jnp.zeros((2, 9), bool)), 0.0)


def test_caption_heads_read_the_mean():
    heads, features = CaptionHeads(num_labels=7), jax.random.normal(jax.random.key(3), (2, 9, 12))
    (logits, direction, azimuth), params = heads.init_with_output(jax.random.key(0), features, MASK)
    assert logits.shape == (2, 7) and direction.shape == (2,) and azimuth.shape == (2, 2)
    junk = jnp.where(MASK[..., None], features, 9.0)
    for a, b in zip((logits, direction, azimuth), heads.apply(params, junk, MASK), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert CaptionHeads(num_labels=0).init_with_output(jax.random.key(0), features, MASK)[0][0] is None


@pytest.fixture(scope="module")
def coded(built):
    """An encoder with event codes that is otherwise `built`."""
    model = T5Encoder(**FIELDS, event_codes=4)
    params = model.init(jax.random.key(5), IDS, MASK)["params"] | built[1]["params"]
    return lambda *args, **more: model.apply({"params": params}, *args, **more), params


def test_event_codes_add_one_vector_mixed_by_probability(built, coded):
    apply, params = coded
    features, logits = apply(IDS, MASK, with_events=True)
    plain = built[0](built[1], IDS, MASK)
    logits_by_hand = masked_mean(plain, MASK) @ params["event"]["kernel"] + params["event"]["bias"]
    np.testing.assert_allclose(logits, logits_by_hand, atol=1e-5)
    code = jax.nn.softmax(logits_by_hand)[:, :3] @ params["event_table"]
    np.testing.assert_allclose(features, plain + code[:, None], atol=1e-5)
    np.testing.assert_array_equal(apply(IDS, MASK), features)


def test_a_caption_that_names_no_event_has_no_code(built, coded):
    apply, params = coded
    sure = params | {"event": {"kernel": 0 * params["event"]["kernel"], "bias": jnp.array([0.0, 0.0, 0.0, 50.0])}}
    features = T5Encoder(**FIELDS, event_codes=4).apply({"params": sure}, IDS, MASK)
    np.testing.assert_allclose(features, built[0](built[1], IDS, MASK), atol=1e-5)


def test_without_words_only_the_code_is_left(built, coded):
    apply, _ = coded
    features = apply(IDS, MASK, jnp.array([True, False]))
    np.testing.assert_array_equal(features[0], apply(IDS, MASK)[0])
    code = apply(IDS, MASK)[1] - built[0](built[1], IDS, MASK)[1]
    np.testing.assert_allclose(features[1], code, atol=1e-5)
    np.testing.assert_array_equal(features[1], jnp.broadcast_to(features[1, :1], features[1].shape))


@pytest.mark.parametrize("width", [0, 3])
def test_reader_tells_directions_and_none_and_masked_tokens_do_not_matter(width):
    features = jax.random.normal(jax.random.key(3), (*IDS.shape, 16))
    reader = DirectionReader(azimuths=36, queries=3, hidden=8, width=width)
    params = draw_params(reader, features, MASK)
    logits = reader.apply(params, features, MASK)
    assert logits.shape == (2, 37)
    junk = jnp.where(MASK[..., None], features, 9.0)
    np.testing.assert_allclose(reader.apply(params, junk, MASK), logits, atol=1e-5)
    assert float(jnp.max(jnp.abs(reader.apply(params, features[:, ::-1], MASK) - logits))) > 1e-3


@pytest.mark.parametrize(("width", "matters"), [(0, False), (3, True)])
def test_the_order_of_features_matters_to_a_reader_that_joins_them(width, matters):
    features = jax.random.normal(jax.random.key(3), (1, 6, 16))
    mask = jnp.ones((1, 6), bool)
    reader = DirectionReader(azimuths=36, queries=3, hidden=8, width=width)
    params = draw_params(reader, features, mask)
    change = jnp.abs(reader.apply(params, features[:, ::-1], mask) - reader.apply(params, features, mask)).max()
    assert (change > 1e-3) == matters


def test_direction_is_the_mean_around_the_peak():
    logits = jnp.full((3, 37), -30.0)
    logits = logits.at[0, jnp.array([0, 35])].set(0.0)  # 0 and 350 degrees alike
    logits = logits.at[1, 9].set(1.0).at[1, 27].set(0.9)  # 90, and less so 270
    logits = logits.at[2, 36].set(5.0).at[2, 18].set(0.0)  # "none"
    azimuth, named = read_direction(logits)
    np.testing.assert_allclose(azimuth, [355.0, 90.0, 180.0], atol=1e-3)
    assert named.tolist() == [True, True, False]
