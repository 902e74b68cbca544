import numpy as np

from dualspec_jax.ops.coding import COHERENCE_ERROR, HIGH, LEVEL_ERROR, LOW, decode_stft_features, encode_stft_features


def draw(seed=0, n=5000):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.uniform(LOW, HIGH, (n, 2)), rng.uniform(-1, 1, (n, 2))], axis=1).astype(np.float32)


def test_errors_stay_within_the_documented_bounds():
    features = draw()
    code = encode_stft_features(features)
    assert code.dtype == np.uint8 and code.shape == features.shape
    error = np.abs(decode_stft_features(code) - features)
    assert error[:, :2].max() <= LEVEL_ERROR + 1e-5
    assert error[:, 2:].max() <= COHERENCE_ERROR + 1e-5
    assert error[:, :2].max() > 0.9 * LEVEL_ERROR  # the bounds are tight


def test_values_outside_are_clipped():
    extreme = np.array([[-20.0, 20.0, -1.01, 1.01]], np.float32)
    np.testing.assert_allclose(decode_stft_features(encode_stft_features(extreme)), [[LOW, HIGH, -1.0, 1.0]], atol=1e-6)


def test_codes_survive_a_round_trip():
    codes = np.tile(np.arange(256, dtype=np.uint8)[:, None], (1, 4))
    again = encode_stft_features(decode_stft_features(codes))
    np.testing.assert_array_equal(again[:, :2], codes[:, :2])
    np.testing.assert_array_equal(again[1:, 2:], codes[1:, 2:])  # 0 and 1 both mean -1


def test_no_coherence_is_exact():
    zero = np.zeros((1, 4), np.float32)
    np.testing.assert_array_equal(decode_stft_features(encode_stft_features(zero))[:, 2:], 0.0)


def test_any_leading_shape():
    features = draw(n=24).reshape(2, 3, 4, 4)
    assert decode_stft_features(encode_stft_features(features)).shape == (2, 3, 4, 4)
