import sys
import types

import numpy as np
import pytest

from dualspec_jax.clap_metrics import CLAP_RATE, ClapJudge


class _Model:
    """Stands in for CLAP: the audio feature is (mean power, 1), the text feature (number of letters, 1)."""

    @classmethod
    def from_pretrained(cls, path, local_files_only):
        assert local_files_only
        if "broken" in path:
            raise OSError("no weights")
        return cls()

    def eval(self):
        return self

    def get_audio_features(self, input_features):
        return np.stack([[np.mean(x**2), 1.0] for x in input_features])

    def get_text_features(self, input_ids):
        return np.stack([[float(len(x)), 1.0] for x in input_ids])


class _Processor(_Model):
    def __call__(self, audio=None, text=None, sampling_rate=None, return_tensors=None, padding=None):
        assert audio is None or sampling_rate == CLAP_RATE
        return {"input_features": audio} if text is None else {"input_ids": text}


class _NoGrad:
    __enter__ = lambda self: None
    __exit__ = lambda self, *args: None


@pytest.fixture
def libraries(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(no_grad=_NoGrad, Tensor=type("Tensor", (), {})))
    transformers = types.SimpleNamespace(ClapModel=_Model, ClapProcessor=_Processor)
    monkeypatch.setitem(sys.modules, "transformers", transformers)


def test_score_is_the_cosine_of_the_louder_ear_and_the_text(libraries, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    clap = ClapJudge(tmp_path)
    waveforms = np.zeros((2, 16000, 2), np.float32)
    waveforms[0, :, 1], waveforms[1, :, 0] = 1.0, 0.0
    audio, text = clap.embed_audio(waveforms, 16000), clap.embed_text(["x", "xx"])
    np.testing.assert_allclose(audio, [[0.5**0.5, 0.5**0.5], [0.0, 1.0]], atol=1e-2)
    np.testing.assert_allclose(clap.scores(waveforms, 16000, ["x", "xx"]), np.sum(audio * text, axis=1))


def test_missing_model_or_library_is_told(libraries, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no config\.json there"):
        ClapJudge(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="not a CLAP model"):
        ClapJudge(tmp_path / "broken")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[clap\]'"):
        ClapJudge(tmp_path / "broken")


def test_a_small_clap_model_made_here_is_read_by_transformers(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from tokenizers import ByteLevelBPETokenizer

    torch.manual_seed(0)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words = ByteLevelBPETokenizer()
    words.train_from_iterator(["a dog barking", "rain on a roof"] * 20, vocab_size=300, special_tokens=special)
    words.save_model(str(tmp_path))
    vocabulary = str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    tokenizer = transformers.RobertaTokenizer(*vocabulary, model_max_length=64)
    extractor = transformers.ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad")
    text = dict(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    audio = dict(patch_embeds_hidden_size=8, depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1], hidden_size=64)
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=16)
    transformers.ClapModel(config).save_pretrained(tmp_path)
    transformers.ClapProcessor(extractor, tokenizer).save_pretrained(tmp_path)

    clap = ClapJudge(tmp_path)
    waveforms = 0.1 * np.random.default_rng(0).standard_normal((2, 16000, 2)).astype(np.float32)
    embeddings = clap.embed_audio(waveforms, 16000), clap.embed_text(["a dog barking", "rain"])
    for embedding in embeddings:
        assert embedding.shape == (2, 16)
        np.testing.assert_allclose(np.linalg.norm(embedding, axis=-1), 1.0, rtol=1e-6)
    assert np.abs(embeddings[1][0] - embeddings[1][1]).max() > 1e-3
    scores = clap.scores(waveforms, 16000, ["a dog barking", "rain"])
    assert np.all(np.abs(scores) <= 1.0)
