"""What the public API refuses, and how it says what to do instead."""

import dataclasses
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import random_images

import nec_jax
from coder import BlobError, CorruptBlob, InputError, TruncatedBlob, WrongCodec
from nec_jax.api import check_images

SIDES = [64, 224]


@pytest.fixture(scope="module")
def blobs(model) -> list[bytes]:
    return nec_jax.encode(model, random_images(0, 2))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 64, 64, 4), np.uint8), "4 channels, the model takes 3: red, green, blue"),
        (np.zeros((2, 250, 64, 3), np.uint8), "side 250 is not a multiple of the patch 16: pad or"),
        (
            np.zeros((2, 64, 8, 3), np.uint8),
            "side 8 is not a multiple of the patch 16: pad or crop",
        ),
        (np.zeros((2, 64, 64, 3), np.uint16), "uint16, the model takes uint8 .*: rescale and cast"),
        (
            np.zeros((2, 64, 64, 3)),
            "float64, the model takes uint8 from 0 to 255: rescale and cast",
        ),
        (np.zeros((0, 64, 64, 3), np.uint8), "empty batch: pass at least one image"),
        (np.zeros((64, 64, 3), np.uint8), r"shape \(64, 64, 3\): pass a batch \[B, H, W, C\]"),
        (np.zeros((2, 0, 0, 3), np.uint8), "side 0 is not a multiple of the patch 16"),
    ],
)
@pytest.mark.parametrize("function", [nec_jax.encode, nec_jax.embed, nec_jax.latents])
def test_images_that_break_the_input_contract_are_refused(model, function, images, message):
    with pytest.raises(InputError, match=message):
        function(model, images)


def test_floats_must_be_finite_and_in_range(model):
    config = dataclasses.replace(model.config, dtype="float32", value_range=(0.0, 1.0))
    images = (random_images(0, 2) / 255).astype(np.float32)
    assert check_images(config, images)[1] == (4, 4)
    for bad in (np.nan, np.inf, -np.inf):
        broken = images.copy()
        broken[1, 2, 3, 1] = bad
        message = r"1 of 24576 values of images are NaN or infinity, the first at \(1, 2, 3, 1\)"
        with pytest.raises(InputError, match=message):
            nec_jax.encode(dataclasses.replace(model, config=config), broken)
        # Under a mask, it is missing all the same.
        with pytest.raises(InputError, match=r"1 of 24576 values of images are masked.*1, 2, 3, 1"):
            nec_jax.encode(dataclasses.replace(model, config=config), np.ma.masked_invalid(broken))
    images[0, 0, 0, 0], images[1, 0, 0, 0] = -0.25, 1.5
    with pytest.raises(
        InputError, match=r"range from -0\.25 to 1\.5, the model takes float32 from 0 to 1"
    ):
        nec_jax.encode(dataclasses.replace(model, config=config), images)


def test_a_model_without_a_codec_says_how_to_get_one(bare_model):
    images = random_images(0, 1)
    for call in (
        lambda: nec_jax.encode(bare_model, images),
        lambda: nec_jax.embed(bare_model, images),
        lambda: nec_jax.embed_traced(bare_model, jnp.asarray(images)),
        lambda: nec_jax.decode(bare_model, [b""]),
    ):
        with pytest.raises(InputError, match=r"no codec: adapt it with `nec comp"):
            call()
    assert nec_jax.latents(bare_model, images).shape == (1, 17, 48)


def test_blobs_of_another_model_are_refused(model, blobs):
    offsets = np.nextafter(model.codec.offsets, np.float32(9))
    other = dataclasses.replace(model, codec=dataclasses.replace(model.codec, offsets=offsets))
    with pytest.raises(WrongCodec, match="load the model or codec it was made with"):
        nec_jax.decode(other, blobs)
    # Other weights alone are no other codec.
    weights = jax.tree.map(lambda x: 2 * x, model.weights)
    twin = dataclasses.replace(model, weights=weights)
    np.testing.assert_array_equal(nec_jax.decode(twin, blobs), nec_jax.decode(model, blobs))


def test_damaged_blobs_and_things_that_are_no_list_of_blobs_are_refused(model, blobs):
    with pytest.raises(CorruptBlob):
        nec_jax.decode(model, [blobs[0], blobs[1][:-1]])
    with pytest.raises(TruncatedBlob):
        nec_jax.decode(model, [blobs[0][:5]])
    singles: list[Any] = [blobs[0], bytearray(blobs[0]), memoryview(blobs[0])]
    for single in singles:
        with pytest.raises(InputError, match="wrap a single one in a list"):
            nec_jax.decode(model, single)
    for nothing in ([], (), iter([]), np.array([], object)):
        with pytest.raises(InputError, match="no blobs to decode"):
            nec_jax.decode(model, nothing)
    wrong: list[Any] = [
        ("text", "wrap a single one in a list"),
        (None, "blobs are of type NoneType: pass a list"),
        (7, "blobs are of type int: pass a list"),
        (["text"], "a blob is bytes, as encode returns it, not str"),
        ([None], "a blob is bytes, as encode returns it, not NoneType"),
        ([np.zeros(9)], "a blob is bytes, as encode returns it, not ndarray"),
        (np.array(blobs), r"blobs are an array of \|S.*pass a list of byte strings"),
        (np.zeros((2, 9), np.uint8), "blobs are an array of uint8"),
    ]
    for value, message in wrong:
        with pytest.raises(InputError, match=message):
            nec_jax.decode(model, value)


def test_blobs_come_in_anything_that_holds_them(model, blobs):
    expected = nec_jax.decode(model, blobs)
    of_objects = np.empty(2, object)
    of_objects[:] = blobs
    for same in (
        tuple(blobs),
        (blob for blob in blobs),
        map(memoryview, blobs),
        [bytearray(blob) for blob in blobs],
        [np.frombuffer(blob, np.uint8) for blob in blobs],
        of_objects,
    ):
        np.testing.assert_array_equal(nec_jax.decode(model, same), expected)


@pytest.mark.parametrize("function", [nec_jax.encode, nec_jax.embed, nec_jax.latents])
def test_masked_images_are_refused_and_a_mask_of_nothing_is_none(model, function):
    images = random_images(0, 2)
    mask = np.zeros(images.shape, bool)
    mask[1, 5] = True
    message = r"192 of 24576 values of images are masked, the first at \(1, 5, 0, 0\)"
    with pytest.raises(InputError, match=message):
        function(model, np.ma.array(images, mask=mask))
    same, usual = function(model, np.ma.array(images)), function(model, images)
    np.testing.assert_array_equal(same, usual)
    with pytest.raises(InputError, match="images are of type generator, which is not an array"):
        function(model, (image for image in images))
    with pytest.raises(InputError, match="images are not an array"):
        function(model, [images[0], images[1][:32]])


def test_blobs_of_two_image_sizes_are_decoded_apart(model):
    blobs = [nec_jax.encode(model, random_images(0, 1, side))[0] for side in SIDES]
    with pytest.raises(InputError, match=r"grids \[\(4, 4\), \(14, 14\)\]: decode each size apart"):
        nec_jax.decode(model, blobs)


@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_a_coding_batch_that_is_no_count_is_refused(model, value):
    with pytest.raises(ValueError, match="coding_batch"):
        nec_jax.encode(model, random_images(0, 1), coding_batch=value)


def test_encode_and_embed_refuse_to_be_traced_and_say_what_to_use(model):
    images = random_images(0, 1)
    for function in (nec_jax.encode, nec_jax.embed, nec_jax.latents):
        name = f"{function.__name__} runs on the host.*nec_jax.embed_traced"
        for traced in (
            lambda f=function: jax.jit(f)(model, images),  # both are tracers
            lambda f=function: jax.jit(lambda x: f(model, x))(images),
            lambda f=function: jax.jit(lambda p: f(p, images))(model),
            lambda f=function: jax.jit(lambda: f(model, images))(),  # neither is
            lambda f=function: jax.vmap(lambda x: f(model, x[None]))(jnp.asarray(images)),
        ):
            with pytest.raises(InputError, match=name):
                traced()


def test_importing_without_jax_says_what_to_install():
    script = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('jax', 'jaxlib', 'flax'):\n"
        "            raise ImportError(f'{name} is blocked')\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "import coder\n"
        "try:\n"
        "    import nec_jax\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "nec-jax[train]" in done.stdout
    assert "import coder" in done.stdout


def test_a_blob_that_cannot_be_decoded_is_named_by_its_place(model):
    good = nec_jax.encode(model, random_images(0, 1))[0]
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    for bad, error in ((b"", TruncatedBlob), (flipped, BlobError), (3, InputError)):
        for place in (0, 2):
            blobs: list[Any] = [good, good]
            blobs.insert(place, bad)
            with pytest.raises(error, match=f"^blob {place}: "):
                nec_jax.decode(model, blobs)
