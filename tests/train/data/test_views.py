"""Views of images: the same at any size, other than their image, and in its units."""

from typing import Any

import numpy as np
import pytest

from train.data import views
from train.data.views import recoloured, view_of


def ramps(dtype: str = "float32", bands: int = 3) -> Any:
    """Two images [96, 96, bands], as a source has them: one gets brighter downwards, one across."""
    down = np.broadcast_to(np.linspace(20, 180, 96)[:, None, None], (96, 96, bands))
    tint = np.linspace(0.5, 1, bands)
    return [{"image": (x * tint).astype(dtype)} for x in (down, down.transpose(1, 0, 2))]


@pytest.mark.parametrize("mixed", [False, True])
def test_a_view_is_the_same_at_any_size(mixed: bool) -> None:
    for view in range(8):
        large, small = (view_of(ramps(), 0, n, view, seed=0, mixed=mixed) for n in (64, 32))
        halved = large.reshape(32, 2, 32, 2, 3).mean((1, 3))
        np.testing.assert_allclose(small[2:-2, 2:-2], halved[2:-2, 2:-2], atol=1.5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("bands", [1, 3, 5])
def test_views_have_the_images_type_and_units(dtype: str, bands: int) -> None:
    source = ramps(dtype, bands)
    whole = view_of(source, 0, 64, 0, seed=0, mixed=True)
    np.testing.assert_array_equal(whole, view_of(source, 0, 64, 0, seed=1))
    many = [view_of(source, 0, 64, view, seed=0, mixed=True) for view in range(1, 40)]
    assert {(x.dtype, x.shape) for x in many} == {(whole.dtype, whole.shape)}
    assert len({x.tobytes() for x in many}) == 39
    means = np.array([x.mean() for x in many])
    assert 0.6 * whole.mean() < means.mean() < 1.2 * whole.mean()
    assert means.max() > 1.3 * means.min()


def test_half_of_the_views_have_another_image_in_them() -> None:
    """Brightness changes down the one image, and across the other."""
    across = [
        np.ptp(view_of(ramps(), 0, 64, view, seed=0, mixed=True)[..., 0].mean(0)) > 1
        for view in range(1, 101)
    ]
    assert 35 < sum(across) < 65
    plain = (view_of(ramps(), 0, 64, view, seed=0)[..., 0] for view in range(1, 101))
    assert all(np.ptp(x.mean(0)) < 1 for x in plain)


def test_integers_are_clipped_and_do_not_wrap_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_BRIGHTNESS", (5.0, 5.0))
    white = [{"image": np.full((16, 16, 3), 250, np.uint8)}] * 2
    # What is mixed is no brighter than an image can be.
    assert recoloured(white[0]["image"], np.random.default_rng(0)).max() == 255
    for view in range(1, 10):
        assert view_of(white, 0, 8, view, seed=0, mixed=True).min() == 255  # type: ignore[arg-type]


def test_a_recoloured_image_keeps_its_shapes() -> None:
    """Each band is, by itself, brighter where the image is; a grey image differs by its tint."""
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.uniform(50, 100, (8, 8, 1)), 3, axis=-1).astype(np.float32)
    ratio = recoloured(grey, rng) / grey
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[0, 0], ratio.shape), rtol=1e-6)
    assert np.ptp(ratio[0, 0]) > 0
    assert np.abs(np.log(ratio)).max() <= 0.8
