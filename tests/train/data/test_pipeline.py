"""Batches: deterministic, resumable, sharded; corrupt images replaced; the size rule."""

import json
import logging
import tracemalloc
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from nec_jax.images.record import CorruptImageError, DataError, Record
from nec_jax.images.size_rule import fit_to, random_crop, resize
from train.data import read_all, train_iterator


@dataclass(frozen=True)
class Grey:
    """Image i is all i, so that a pixel tells which image it came from."""

    count: int
    corrupt: frozenset[int] = frozenset()
    shape: tuple[int, int, int] = (9, 12, 3)
    dtype: str = "uint8"
    name: str = "grey"
    classes: tuple[str, ...] = ("even", "odd")
    mask_classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Record:
        if index in self.corrupt:
            raise CorruptImageError(f"cannot read image_{index}.png")
        image = np.full(self.shape, index, self.dtype)
        return {"id": f"image_{index}.png", "image": image, "label": index % 2}

    def files(self) -> list[tuple[str, Path]]:
        return [(f"image_{i}.png", Path(f"image_{i}.png")) for i in range(self.count)]


def epoch(source: Grey, count: int) -> list[int]:
    batches = train_iterator(source, batch=1, size=4, seed=0)
    return [int(next(batches)["image"][0, 0, 0, 0]) for _ in range(count)]


def textured(count: int = 7) -> Grey:
    class Textured(Grey):
        def __getitem__(self, index: int, /) -> Record:
            rng = np.random.default_rng(index)
            return {"id": str(index), "image": rng.integers(0, 256, self.shape, np.uint8)}

    return Textured(count, shape=(20, 24, 3))


def take(count: int, seed: int = 0, **kwargs) -> np.ndarray:
    batches = train_iterator(textured(), batch=4, size=16, seed=seed, **kwargs)
    return np.stack([next(batches)["image"] for _ in range(count)])


def test_same_seed_same_batches_whatever_the_threads():
    first = take(5)
    assert first.shape == (5, 4, 16, 16, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, take(5, threads=0))
    assert not np.array_equal(first, take(5, seed=1))


def test_resuming_equals_going_on():
    batches = train_iterator(textured(), batch=4, size=16, seed=3)
    for _ in range(3):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    resumed = train_iterator(textured(), batch=4, size=16, seed=3)
    resumed.set_state(state)
    for _ in range(4):
        np.testing.assert_array_equal(next(batches)["image"], next(resumed)["image"])


def test_each_epoch_is_every_image_once_in_a_new_order():
    seen = epoch(Grey(50), 100)
    assert sorted(seen[:50]) == sorted(seen[50:]) == list(range(50))
    assert seen[:50] != seen[50:]
    assert seen[:50] != list(range(50))


def test_the_batches_of_processes_make_up_that_of_one():
    whole = train_iterator(textured(), batch=6, size=16, seed=0)
    parts = [
        train_iterator(textured(), batch=2, size=16, seed=0, process_index=i, process_count=3)
        for i in range(3)
    ]
    for _ in range(4):  # across the end of an epoch
        together = np.concatenate([next(part)["image"] for part in parts])
        np.testing.assert_array_equal(next(whole)["image"], together)
    # A state means the same whatever the number of processes.
    assert {str(part.get_state()) for part in parts} == {str(whole.get_state())}


@pytest.mark.parametrize(("index", "count"), [(2, 2), (3, 2), (-1, 2), (0, 0), (1, 1)])
def test_a_process_that_there_is_not_is_refused(index: int, count: int):
    with pytest.raises(DataError, match=f"process {index} of {count}: they are counted from 0"):
        train_iterator(
            textured(), batch=2, size=16, seed=0, process_index=index, process_count=count
        )


def test_without_augmentation_an_image_is_fitted():
    batches = train_iterator(textured(1), batch=1, size=16, seed=0, augment=False)
    np.testing.assert_array_equal(next(batches)["image"][0], fit_to(textured()[0]["image"], 16))


def test_a_corrupt_image_is_named_once_and_the_next_takes_its_place(
    caplog: pytest.LogCaptureFixture,
):
    with caplog.at_level(logging.WARNING):
        seen = epoch(Grey(10, corrupt=frozenset({3, 4, 9})), 30)
    whole = epoch(Grey(10), 30)
    assert seen == [{3: 5, 4: 5, 9: 0}.get(i, i) for i in whole]
    assert caplog.text.count("image_3.png") == 1


def test_only_corrupt_images_end_in_an_error_not_in_a_loop():
    broken = Grey(4, corrupt=frozenset(range(4)))
    with pytest.raises(ValueError, match=r"none of the 4 images of grey .*image_\d\.png"):
        epoch(broken, 1)
    with pytest.raises(ValueError, match="none of the 4 images"):
        read_all(broken, 4)


def test_read_all_keeps_the_order_and_reports_what_it_skipped():
    split = read_all(Grey(10, corrupt=frozenset({3, 8})), 4)
    kept = [0, 1, 2, 4, 5, 6, 7, 9]
    assert split.images.shape == (8, 4, 4, 3)
    assert split.images[:, 0, 0, 0].tolist() == kept
    assert split.labels is not None
    assert split.labels.tolist() == [i % 2 for i in kept]
    assert split.masks is None
    assert split.ids == [f"image_{i}.png" for i in kept]
    assert split.skipped == ["cannot read image_3.png", "cannot read image_8.png"]


def test_a_limit_takes_an_evenly_spread_subset():
    assert read_all(Grey(100), 4, limit=4).images[:, 0, 0, 0].tolist() == [0, 25, 50, 75]
    assert len(read_all(Grey(3), 4, limit=9).ids) == 3
    with pytest.raises(ValueError, match="limit is 0"):
        read_all(Grey(3), 4, limit=0)


def test_images_of_different_bands_are_named():
    class Mixed(Grey):
        def __getitem__(self, index: int, /) -> Record:
            return {"id": f"{index}.tif", "image": np.zeros((4, 4, 3 + index), np.uint8)}

    with pytest.raises(DataError, match=r"\d\.tif has . bands of uint8, but \d\.tif has ."):
        read_all(Mixed(2), 4)


def test_an_image_of_other_bands_or_dtype_in_the_stream_is_named():
    class Mixed(Grey):
        def __getitem__(self, index: int, /) -> Record:
            if index == 5:
                return {"id": "odd.tif", "image": np.zeros(self.shape, self.dtype)}
            return {"id": f"{index}.png", "image": np.zeros((9, 12, 3), np.uint8)}

    for odd in (Mixed(8, shape=(9, 12, 4)), Mixed(8, dtype="uint16")):
        for augment in (True, False):
            batches = train_iterator(odd, batch=2, size=4, seed=0, augment=augment)
            with pytest.raises(DataError, match=r"odd\.tif has .*: keep them in folders of their"):
                list(islice(batches, 4))


def test_a_check_sees_every_image_as_it_was_read():
    seen: list[str] = []

    def check(record: Record) -> None:
        seen.append(record["id"])
        assert record["image"].shape == (9, 12, 3)
        if record["id"] == "image_7.png":
            raise DataError(f"{record['id']} is too bright")

    batches = train_iterator(Grey(8), batch=1, size=4, seed=0, check=check)
    with pytest.raises(DataError, match=r"image_7\.png is too bright"):
        list(islice(batches, 8))
    assert len(seen) > 1


@pytest.mark.parametrize("kind", ["NaN", "infinity", "masked"])
def test_missing_pixels_of_any_source_are_skipped_by_name(kind: str):
    class Gaps(Grey):
        def __getitem__(self, index: int, /) -> Record:
            image = np.zeros(self.shape, np.float32)
            if index == 2:
                image[3, 4, 1] = {"NaN": np.nan, "infinity": np.inf, "masked": -9999}[kind]
                if kind == "masked":
                    image = np.ma.masked_equal(image, -9999)
            return {"id": f"{index}.tif", "image": image}

    split = read_all(Gaps(4), 4)
    assert split.ids == ["0.tif", "1.tif", "3.tif"]
    assert split.places == (0, 1, 3)
    assert f"2.tif: 1 of 108 pixels are missing in at least one band ({kind})" in split.skipped[0]
    assert "row 3, column 4" in split.skipped[0]
    batches = train_iterator(Gaps(4), batch=4, size=4, seed=0)
    assert np.isfinite(next(batches)["image"]).all()


def test_labels_and_masks_of_some_images_are_those_of_none():
    class Some(Grey):
        def __getitem__(self, index: int, /) -> Record:
            record: Record = {"id": str(index), "image": np.zeros((4, 4, 3), np.uint8)}
            if index != 2:
                record["label"] = index
                record["mask"] = np.full((4, 4), index, np.uint8)
            return record

    split = read_all(Some(5), 4)
    assert (split.labels, split.masks) == (None, None)
    assert (split.unlabelled, split.unmasked) == ("2", "2")
    split = read_all(Some(2), 4)
    assert split.labels is not None
    assert split.masks is not None
    assert (split.unlabelled, split.unmasked) == ("", "")
    assert split.take(np.array([False, True])).places == (1,)


@pytest.mark.parametrize("shape", [(242, 257, 3), (257, 242, 3), (256, 256, 3), (64, 63, 12)])
@pytest.mark.parametrize("size", [224, 32])
def test_fit_to_gives_a_square_of_any_image(shape: tuple[int, int, int], size: int):
    image = np.random.default_rng(0).integers(0, 4000, shape).astype(np.uint16)
    assert fit_to(image, size).shape == (size, size, shape[2])
    assert fit_to(image, size).dtype == np.uint16


def test_fit_to_keeps_pixels_and_crops_the_centre():
    image = np.arange(6 * 10 * 2, dtype=np.int16).reshape(6, 10, 2)
    mask = np.arange(60, dtype=np.uint8).reshape(6, 10)
    out, out_mask = fit_to(image, 6, mask)
    np.testing.assert_array_equal(out, image[:, 2:8])
    np.testing.assert_array_equal(out_mask, mask[:, 2:8])


@pytest.mark.parametrize("shape", [(8, 20_001, 13), (20_000, 7, 13), (1, 30_000, 1), (1, 1, 3)])
def test_fit_to_takes_memory_for_its_result_and_not_for_the_length(shape: tuple[int, int, int]):
    image = np.zeros(shape, np.uint16)
    centre = np.s_[(shape[0] - 1) // 2 : shape[0] // 2 + 1, (shape[1] - 1) // 2 : shape[1] // 2 + 1]
    image[centre] = 1000
    mask = image[..., 0].astype(np.uint8)
    tracemalloc.start()
    out, out_mask = fit_to(image, 64, mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (out.shape, out_mask.shape) == ((64, 64, shape[2]), (64, 64))
    assert peak < 50e6
    # What is in the middle stays in the middle.
    np.testing.assert_array_equal(out, out[::-1, ::-1])
    assert out[31, 31, 0] > 500


@pytest.mark.parametrize("shape", [(16, 128), (16, 127), (100, 33), (242, 257), (64, 500)])
@pytest.mark.parametrize("size", [16, 33, 64])
def test_fit_to_of_images_that_are_not_very_long_is_a_resize_then_a_crop(
    shape: tuple[int, int], size: int
):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    height, width = (round(side * size / min(shape)) for side in shape)
    whole = resize(image, height, width) if min(shape) != size else image
    top, left = (height - size) // 2, (width - size) // 2
    expected = whole[top : top + size, left : left + size]
    np.testing.assert_array_equal(fit_to(image, size), expected)


def test_an_image_without_pixels_is_an_error():
    with pytest.raises(DataError, match="0 x 5 px has no pixels"):
        fit_to(np.zeros((0, 5, 3), np.uint8), 4)
    for shape in ((0, 5, 3), (5, 5, 0), (5, 5)):
        source = Grey(2, shape=shape)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=r"image_\d\.png is an array \(\d, \d.*: an image is"):
            read_all(source, 4)
        with pytest.raises(DataError, match=r"image_\d\.png is an array"):
            next(train_iterator(source, batch=1, size=4, seed=0))


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 20_000, 3), (3, 1, 2)])
def test_tiny_and_thin_images_train(shape: tuple[int, int, int]):
    batches = train_iterator(Grey(3, shape=shape), batch=3, size=8, seed=0)
    assert next(batches)["image"].shape == (3, 8, 8, shape[2])
    assert sorted(read_all(Grey(3, shape=shape), 8).images[:, 0, 0, 0]) == [0, 1, 2]


def test_fit_to_resizes_a_mask_with_its_image_and_invents_no_class():
    mask = np.zeros((30, 50), np.uint8)
    mask[:15], mask[15:, :25] = 7, 255
    image = np.where(mask[..., None] == 7, 200, 0).astype(np.uint8)
    out, out_mask = fit_to(image, 10, mask)
    assert set(np.unique(out_mask)) == {0, 7, 255}
    np.testing.assert_array_equal(out[..., 0] > 100, out_mask == 7)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "float32"])
def test_resize_keeps_the_range_of_a_dtype(dtype: str):
    top = np.iinfo(dtype).max if dtype != "float32" else 1
    image = np.zeros((16, 16, 4), dtype)
    image[:, 8:] = top  # bicubic overshoots at this edge
    out = resize(image, 24, 24)
    assert out.dtype == dtype
    assert (out[:, 0] == 0).all()
    assert (out[:, -1] == top).all()


def test_bands_are_resized_as_rgb_is():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    wide = resize(image.astype(np.uint16), 24, 24)
    assert np.abs(wide.astype(int) - resize(image, 24, 24)).max() <= 2  # 8-bit passes round twice
    assert wide.dtype == np.uint16


def test_random_crops_stay_inside_and_differ():
    image = np.random.default_rng(0).random((40, 400, 5)).astype(np.float32)
    rng = np.random.default_rng(1)
    crops = [random_crop(image, 16, rng) for _ in range(4)]
    assert all(crop.shape == (16, 16, 5) for crop in crops)
    assert not np.array_equal(crops[0], crops[1])
    flat = np.full((13, 9, 12), 4000, np.uint16)
    assert (random_crop(flat, 8, rng) == 4000).all()
