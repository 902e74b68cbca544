import numpy as np
import pytest

from dualspec_jax.tokenizer import load_tokenizer, train_tokenizer

TEXTS = ["a dog barks at 237 degrees", "rain from -60° on my left", "An owl, at 10 o'clock."] * 30


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 800)


def test_whole_degrees_are_one_token_and_other_numbers_fall_apart(tokenizer):
    tokens = lambda text: tokenizer.backend.encode(text).tokens
    assert "237" in tokens("at 237 degrees") and "359" in tokens("359°") and "60" in tokens("-60 degrees")
    assert "1000" not in tokens("at 1000 degrees")
    assert {"37", "5"} <= set(tokens("37.5 degrees"))


def test_vocabulary_has_the_asked_size_at_most(tokenizer):
    assert 361 < tokenizer.vocab_size <= 800


def test_batch_is_padded_masked_and_ends_with_the_end_token(tokenizer):
    ids, mask = tokenizer.encode_batch(["rain", "a dog barks at 237 degrees"], 20)
    assert ids.shape == mask.shape == (2, 20) and ids.dtype == np.int32 and mask.dtype == bool
    for row, keep, text in zip(ids, mask, ["rain", "a dog barks at 237 degrees"], strict=True):
        assert keep.sum() == tokenizer.count(text) and keep[: keep.sum()].all()
        assert row[keep.sum() - 1] == tokenizer.end_id and np.all(row[~keep] == tokenizer.pad_id)


def test_empty_text_is_the_end_token_alone(tokenizer):
    ids, mask = tokenizer.encode_batch([""], 4)
    assert ids[0, 0] == tokenizer.end_id and mask.sum() == 1


def test_long_text_is_cut_before_the_end_token(tokenizer):
    ids, mask = tokenizer.encode_batch(["a dog " * 50], 8)
    assert mask.all() and ids[0, -1] == tokenizer.end_id


def test_case_does_not_matter(tokenizer):
    assert np.array_equal(*(tokenizer.encode_batch([t], 12)[0] for t in ("A DOG Barks", "a dog barks")))


def test_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.backend.save(str(tmp_path / "t.json"))
    again = load_tokenizer(tmp_path / "t.json")
    assert np.array_equal(again.encode_batch(TEXTS[:3], 20)[0], tokenizer.encode_batch(TEXTS[:3], 20)[0])


def test_stored_padding_and_truncation_are_ignored(tokenizer, tmp_path):
    backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    backend.enable_padding(length=20, pad_id=tokenizer.pad_id, pad_token="<pad>")
    backend.enable_truncation(4)
    backend.save(str(tmp_path / "t.json"))
    again = load_tokenizer(tmp_path / "t.json")
    assert again.count(TEXTS[0]) == tokenizer.count(TEXTS[0])
    assert np.array_equal(again.encode_batch(TEXTS[:3], 24)[0], tokenizer.encode_batch(TEXTS[:3], 24)[0])


def test_missing_broken_and_foreign_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_tokenizer(tmp_path / "t.json")
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        load_tokenizer(tmp_path / "t.json")


def test_small_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size = 400"):
        train_tokenizer(TEXTS, 400)
