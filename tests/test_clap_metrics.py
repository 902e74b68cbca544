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
