import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dualspec_jax.picture import save_png, spectrogram_image


def _mel(t=20, m=128):
    mel = np.full((t, m, 2), -10.0, np.float32)
    mel[:, 5, 0] = 0.0  # left ear: a low tone
    return mel


def _brightness(image):
    return image.astype(float).sum(-1)


def test_left_ear_is_above_right_ear_and_low_is_at_the_bottom():
    image = spectrogram_image(_mel())
    assert image.dtype == np.uint8 and image.shape == (128 + 4 + 128, 20, 3)
    left, right = _brightness(image[:128]), _brightness(image[-128:])
    assert np.argmax(left[:, 3]) == 127 - 5
    assert right.max() == left.min()


def test_reference_is_on_the_left_with_its_own_colours():
    mel = _mel()
    quieter = mel.copy()
    quieter[:, 5, 0] = -5.0
    image = spectrogram_image(quieter, reference=mel)
    assert image.shape == (260, 20 + 4 + 20, 3)
    np.testing.assert_array_equal(image[:, :20], spectrogram_image(mel))
    assert _brightness(image[122, :1]) > _brightness(image[122, -1:]) > _brightness(image[10, -1:])


@pytest.mark.parametrize(("m", "height"), [(64, 128), (50, 150), (512, 512)])
def test_few_bands_are_enlarged(m, height):
    assert spectrogram_image(_mel(m=m)[..., :1]).shape[0] == height


@pytest.mark.parametrize("value", [0.0, np.nan, -np.inf])
def test_flat_or_broken_spectrograms_are_drawn(value):
    assert spectrogram_image(np.full((4, 128, 2), value)).shape == (260, 4, 3)


@pytest.mark.parametrize(("shape", "reference"), [((4, 64), None), ((4, 64, 2), (4, 32, 2)), ((4, 64, 2), (4, 64, 1))])
def test_wrong_shapes_are_refused(shape, reference):
    with pytest.raises(ValueError, match="spectrogram of shape"):
        spectrogram_image(np.zeros(shape), None if reference is None else np.zeros(reference))


def test_png_holds_the_image_and_no_partial_file_stays(tmp_path):
    image = spectrogram_image(_mel())
    path = tmp_path / "new" / "clip.png"
    save_png(path, image)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    with pytest.raises(TypeError):
        save_png(path, np.zeros((2, 2, 5)))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    assert [p.name for p in path.parent.iterdir()] == ["clip.png"]


def test_import_and_drawing_need_no_pyplot():
    code = (
        "import sys, numpy, dualspec_jax.picture as p; assert 'matplotlib' not in sys.modules;"
        "p.spectrogram_image(numpy.zeros((4, 8, 2))); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
