import numpy as np
import pytest

from dualspec_jax import distribution_metrics as sets


def test_frechet_distance_of_gaussians_is_exact():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    a, b = np.array([4.0, 1.0, 0.25, 9.0, 0.0]), np.array([1.0, 1.0, 4.0, 0.0, 16.0])
    means = rng.normal(size=(2, 5))
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)  # covariances that commute
    found = sets.frechet_distance_gaussian(means[0], (turn * a) @ turn.T, means[1], (turn * b) @ turn.T)
    assert found == pytest.approx(expected, rel=1e-7)  # the root of a zero is known to 1e-8
    assert sets.frechet_distance_gaussian(means[0], np.eye(5), means[0], np.eye(5)) == pytest.approx(0.0, abs=1e-12)


def test_frechet_distance_of_covariances_that_do_not_commute():
    a, b = np.array([[2.0, 1.0], [1.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 4.0]])
    product = a @ b  # 2 x 2: tr sqrt(P) = sqrt(tr P + 2 sqrt(det P))
    trace_root = np.sqrt(np.trace(product) + 2.0 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(a) + np.trace(b) - 2.0 * trace_root
    assert sets.frechet_distance_gaussian(np.zeros(2), a, np.zeros(2), b) == pytest.approx(expected, rel=1e-10)


def test_extrapolated_frechet_distance_is_nearer_with_few_clips():
    rng = np.random.default_rng(1)
    shift = np.zeros(16)
    shift[0] = 1.0  # the true distance is 1
    pairs = [(rng.normal(size=(60, 16)), rng.normal(size=(60, 16)) + shift) for _ in range(5)]
    plain = np.mean([sets.frechet_distance(a, b) for a, b in pairs])
    better = np.mean([sets.frechet_distance(a, b, extrapolate=True) for a, b in pairs])
    assert plain > 1.6  # biased upwards
    assert abs(better - 1.0) < 0.5 * abs(plain - 1.0)


def test_kernel_distance_is_unbiased():
    """In one dimension the distance is a sum over moments: 1, 3, 3, 1 times the squares of their differences."""
    m = 0.5
    moments = lambda shift: np.array([1.0, shift, 1.0 + shift**2, 3.0 * shift + shift**3])
    expected = np.sum([1.0, 3.0, 3.0, 1.0] * (moments(0.0) - moments(m)) ** 2)
    rng = np.random.default_rng(0)
    found = [sets.kernel_distance(rng.normal(size=(8, 1)), m + rng.normal(size=(6, 1))) for _ in range(6000)]
    assert np.mean(found) == pytest.approx(expected, abs=4.0 * np.std(found) / 6000**0.5)
    alike = [sets.kernel_distance(rng.normal(size=(8, 1)), rng.normal(size=(6, 1))) for _ in range(6000)]
    assert abs(np.mean(alike)) < 4.0 * np.std(alike) / 6000**0.5
    assert np.mean(found) > np.mean(alike) + 0.5


def test_frechet_distance_refuses_too_few_or_unlike_clips():
    with pytest.raises(ValueError, match="at least 2"):
        sets.frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="at least 8"):
        sets.frechet_distance(np.zeros((7, 3)), np.zeros((9, 3)), extrapolate=True)
    with pytest.raises(ValueError, match="at least 34"):  # more clips than dimensions in every subset
        sets.frechet_distance(np.zeros((33, 16)), np.zeros((50, 16)), extrapolate=True)
    with pytest.raises(ValueError, match=r"must be \[n, D\]"):
        sets.frechet_distance(np.zeros((9, 3)), np.zeros((9, 4)))


def test_inception_score_bounds():
    assert sets.inception_score(np.eye(7)) == pytest.approx(7.0, rel=1e-6)
    assert sets.inception_score(np.full((9, 4), 0.25)) == pytest.approx(1.0)


def test_kl_of_known_distributions():
    assert sets.kl_divergence([0.5, 0.5], [0.25, 0.75]) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    p = sets.softmax(np.array([1000.0, 1000.0, -1000.0]))
    np.testing.assert_allclose(p, [0.5, 0.5, 0.0], atol=1e-12)


def test_label_kl_rises_when_captions_are_shuffled():
    real = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]])
    made = np.array([[0.85, 0.15], [0.1, 0.9]])
    right = sets.label_kl(real, ["a", "a", "b"], made, ["a", "b"])
    wrong = sets.label_kl(real, ["a", "a", "b"], made, ["b", "a"])
    np.testing.assert_allclose(right, 0.0, atol=1e-12)
    assert np.all(wrong > 1.0)
    assert np.isnan(sets.label_kl(real, ["a", "a", "b"], made, ["c", "b"])[0])
