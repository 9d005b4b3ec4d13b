"""Baselines: real bytes, what is lost, and what depends on what."""

import imagecodecs
import numpy as np
import pytest
from model_cases import random_images
from transform_cases import GRID, ladder
from transform_cases import embeddings as smooth

from coder import InputError
from train.studies import baselines


def embeddings(seed: int, count: int) -> np.ndarray:
    """[count, 17, 24]: channels of very different ranges, one constant."""
    rng = np.random.default_rng(seed)
    scale = np.geomspace(0.01, 10, 24)
    scale[5] = 0
    return (rng.normal(size=(count, 17, 24)) * scale + np.linspace(-3, 3, 24)).astype(np.float32)


def natural(count: int, side: int = 96, bands: int = 3) -> np.ndarray:
    """uint8 images [count, side, side, bands] with smooth structure, as photographs have."""
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(count, side, side, bands))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    spectrum = np.fft.fft2(noise, axes=(1, 2)) / (frequency + 0.01)[..., None] ** 1.5
    x = np.fft.ifft2(spectrum, axes=(1, 2)).real
    x = (x - x.mean((1, 2), keepdims=True)) / x.std((1, 2), keepdims=True)
    return np.clip(128 + 45 * x, 0, 255).astype(np.uint8)


def psnr(image: np.ndarray, decoded: np.ndarray) -> float:
    peak = np.iinfo(image.dtype).max
    return 10 * np.log10(peak**2 / np.mean((image.astype(float) - decoded) ** 2))


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
def test_channel_quantisation_errs_by_half_a_step_and_clips_outside(bits: int):
    y, calibration = embeddings(0, 6), embeddings(1, 50)
    coded = baselines.uqe_channel(y, bits, calibration)
    low, high = calibration.min((0, 1)), calibration.max((0, 1))
    half = (high - low) / (2**bits - 1) / 2
    error = np.abs(coded.values - np.clip(y, low, high))
    assert (error <= half * (1 + 1e-4) + 1e-5).all()
    assert coded.values.dtype == np.float32
    assert coded.codec_bytes == 2 * 4 * 24
    for d in range(24):
        assert len(np.unique(coded.values[..., d])) <= 2**bits


@pytest.mark.parametrize("bits", [2, 8])
def test_published_quantisation_errs_by_half_a_step_of_its_batch(bits: int):
    y = embeddings(0, 10)
    coded = baselines.uqe(y, bits, batch=4)
    for start in (0, 4, 8):
        part = y[start : start + 4]
        half = (part.max() - part.min()) / (2**bits - 1) / 2
        error = np.abs(coded.values[start : start + 4] - part)
        assert error.max() <= half * (1 + 1e-4) + 1e-5
        assert error.max() > 0.9 * half
    assert coded.codec_bytes == 0


def test_published_quantisation_depends_on_neighbours_and_the_fair_one_does_not():
    y, calibration = embeddings(0, 4), embeddings(1, 50)
    neighbours = np.concatenate([y[:1], 100 * y[1:]])
    for code, equal in (
        (lambda v: baselines.uqe_channel(v, 3, calibration), True),
        (lambda v: baselines.uqe(v, 3), False),
    ):
        one, other = code(y), code(neighbours)
        assert np.array_equal(one.values[0], other.values[0]) is equal
        assert (one.bytes_per_image[0] == other.bytes_per_image[0]) is np.bool_(equal)


def test_one_outlier_channel_ruins_the_published_quantisation_only():
    y = embeddings(0, 8)
    y[..., 23] *= 100
    ordinary = slice(0, 12)

    def lost(coded: baselines.Coded) -> float:
        error = np.mean((coded.values - y)[..., ordinary] ** 2, (0, 1))
        return float(np.median(error / np.maximum(y[..., ordinary].var((0, 1)), 1e-12)))

    assert lost(baselines.uqe(y, 5)) > 1 > 0.1 > lost(baselines.uqe_channel(y, 5, y))


@pytest.mark.parametrize("images", [4, 33])
def test_sizes_are_those_of_bytes_that_decode_back(images: int):
    y = embeddings(0, images)
    coded = baselines.float32(y)
    np.testing.assert_array_equal(coded.values, y)
    for array, size in zip(y, coded.bytes_per_image, strict=True):
        stream = imagecodecs.blosc_encode(array, level=3, compressor="zstd", shuffle="bitshuffle")
        assert size == len(stream)
        # A Blosc header tells its version, the item size, and the sizes before and after.
        assert stream[3] == 4
        assert int.from_bytes(stream[4:8], "little") == array.nbytes
        assert int.from_bytes(stream[12:16], "little") == len(stream)
        assert imagecodecs.blosc_decode(stream) == array.tobytes()
    assert coded.bytes_per_image.shape == (images,)
    low, span = y[:32].min(), y[:32].max() - y[:32].min()
    symbols = np.rint((y[0].astype(np.float64) - low) / (span / 7)).astype(np.uint8)
    stream = imagecodecs.blosc_encode(symbols, level=3, compressor="zstd", shuffle="bitshuffle")
    assert baselines.uqe(y, 3).bytes_per_image[0] == len(stream) + 8


def test_fewer_bits_are_fewer_bytes():
    y = np.random.default_rng(0).normal(size=(3, 197, 64)).astype(np.float32)
    codes = [lambda v, b=b: baselines.uqe_channel(v, b, v) for b in (2, 3, 5, 8)]
    codes += [baselines.float16, baselines.float32]
    sizes = [code(y).bytes_per_image.mean() for code in codes]
    assert sizes == sorted(sizes)
    # The bit shuffle packs: b-bit symbols take no more than b bits and some framing.
    assert sizes[0] < 2 / 8 * y[0].size + 100


def test_float16_rounds():
    y = embeddings(0, 3)
    coded = baselines.float16(y)
    assert coded.values.dtype == np.float32
    np.testing.assert_array_equal(coded.values, y.astype(np.float16).astype(np.float32))
    with pytest.raises(InputError, match="use float32"):
        baselines.float16(y + np.float32(1e5))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_raw_pixels_are_lossless(dtype):
    images = (natural(3) // 8).astype(dtype)  # noise fills the lowest bits of natural images
    if dtype == np.uint16:
        images = images * dtype(13)
    coded = baselines.raw_zstd(images)
    assert coded.values.dtype == dtype
    np.testing.assert_array_equal(coded.values, images)
    assert (coded.bytes_per_image < images[0].nbytes).all()
    flat = baselines.raw_zstd(np.zeros_like(images))
    assert flat.bytes_per_image.max() < 200


def test_jpeg2000_keeps_to_the_ratio_and_more_of_it_is_less():
    images = natural(3)
    errors = []
    for ratio in (8, 20, 50):
        coded = baselines.jpeg2000(images, ratio)
        limit = images[0].nbytes / ratio
        assert coded.values.dtype == np.uint8
        assert coded.values.shape == images.shape
        assert (coded.bytes_per_image <= limit).all()
        assert (coded.bytes_per_image > 0.9 * limit).all()
        errors.append(psnr(images, coded.values))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 28


def test_an_unreachable_ratio_is_counted_as_it_is():
    coded = baselines.jpeg2000(natural(2), 1e5)
    assert (coded.bytes_per_image > natural(2)[0].nbytes / 1e5).all()
    assert coded.bytes_per_image.max() < 200


def test_jpeg2000_images_do_not_depend_on_each_other():
    images = natural(4)
    whole, alone = baselines.jpeg2000(images, 20), baselines.jpeg2000(images[2:3], 20)
    np.testing.assert_array_equal(whole.values[2], alone.values[0])
    assert whole.bytes_per_image[2] == alone.bytes_per_image[0]


@pytest.mark.parametrize(("dtype", "bands"), [(np.uint8, 1), (np.uint16, 1), (np.uint16, 3)])
def test_jpeg2000_of_other_images(dtype, bands):
    images = natural(2, bands=bands).astype(dtype)
    if dtype == np.uint16:
        images = images * dtype(257)
    coded = baselines.jpeg2000(images, 20)
    assert coded.values.dtype == dtype
    assert coded.values.shape == images.shape
    assert (coded.bytes_per_image <= images[0].nbytes / 20).all()
    assert psnr(images, coded.values) > 20


def test_comments_are_all_that_is_left_out_of_a_codestream():
    image = natural(1)[0]
    stream = bytes(imagecodecs.jpeg2k_encode(image, 35, codecformat="J2K", reversible=False))
    shorter = baselines.without_comments(stream)
    assert b"OpenJPEG" in stream
    assert b"OpenJPEG" not in shorter
    assert len(stream) - len(shorter) == 2 + int.from_bytes(
        stream[stream.index(b"\xff\x64") + 2 :][:2], "big"
    )
    np.testing.assert_array_equal(
        imagecodecs.jpeg2k_decode(shorter), imagecodecs.jpeg2k_decode(stream)
    )
    assert baselines.without_comments(shorter) == shorter


Y, IMAGES = embeddings(0, 2), random_images(0, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: baselines.uqe(Y, 0), "bits is 0: give 1 to 8"),
        (lambda: baselines.uqe_channel(Y, 9, Y), "bits is 9"),
        (lambda: baselines.uqe(Y, 2, batch=0), "batch is 0"),
        (lambda: baselines.uqe(Y[0], 2), r"pass finite ones, \[N, n, D\]"),
        (lambda: baselines.float32(np.full((1, 2, 3), np.nan, np.float32)), "finite"),
        (lambda: baselines.uqe_channel(Y, 2, Y[..., :3]), "calibration has 3 channels, y 24"),
        (lambda: baselines.raw_zstd(IMAGES[0]), r"pass \[N, H, W, C\]"),
        (lambda: baselines.jpeg2000(IMAGES[..., :2], 10), "takes 1 or 3 bands"),
        (lambda: baselines.jpeg2000(IMAGES[0], 10), "takes 1 or 3 bands"),
        (lambda: baselines.jpeg2000(IMAGES.astype(np.float32), 10), "takes uint8 or uint16"),
        (lambda: baselines.jpeg2000(IMAGES, 1), "ratio is 1: give raw bytes over coded bytes"),
        (lambda: baselines.jpeg2000(IMAGES, np.nan), "ratio is nan"),
    ],
)
def test_what_cannot_be_coded_is_refused_with_a_remedy(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_fitted_transform_counts_real_blobs_and_its_codec():
    codec, y = ladder(True).at(6), smooth(True)
    coded = baselines.coded_by(y, codec, GRID)
    np.testing.assert_array_equal(coded.values, codec.dequantise(codec.quantise(y, GRID), GRID))
    np.testing.assert_array_equal(coded.bytes_per_image, [len(codec.encode(v, GRID)) for v in y])
    assert coded.codec_bytes == len(codec.to_bytes())


def test_the_untrained_codec_of_channels_errs_by_half_a_step_at_most():
    y = smooth(True)
    codec = baselines.per_channel(y, 2.0, 1)
    coded = baselines.coded_by(y, codec, GRID)
    steps = y.std((0, 1)) / 2
    assert np.abs((coded.values - y) / steps).max() < 0.5 + 1e-4
    finer = baselines.coded_by(y, baselines.per_channel(y, 8.0, 1), GRID)
    assert finer.bytes_per_image.sum() > 1.2 * coded.bytes_per_image.sum()
    assert codec.class_layout is not None  # class tokens have tables of their own
    assert not set(codec.class_layout) & set(codec.grid_layout)
