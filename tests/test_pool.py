import numpy as np
import pytest
from coder_cases import Y, laplace_embeddings, small_codec

import coder
from coder import blob


@pytest.fixture(scope="module")
def pool():
    with coder.Pool(small_codec(), workers=2) as pool:
        yield pool


def test_a_pool_codes_as_the_codec_does(pool):
    codec = small_codec()
    for images, grid in ((17, (2, 3)), (1, (2, 3)), (40, (4, 4)), (3, (1, 1))):
        y = laplace_embeddings(1, images, grid[0] * grid[1] + 1, np.array([0.1, 1, 30]))
        blobs = pool.encode(y, grid)
        assert blobs == [codec.encode(image, grid) for image in y]
        y_hat = pool.decode(blobs)
        assert y_hat.dtype == np.float32
        np.testing.assert_array_equal(y_hat, [codec.decode(blob) for blob in blobs])


def test_a_pool_says_which_blob_is_damaged_and_goes_on(pool):
    blobs = pool.encode(np.stack([Y] * 9), (1, 2))
    broken = [*blobs[:4], blobs[4][:-1] + b"\0", *blobs[5:]]
    with pytest.raises(coder.CorruptBlob, match=r"blob 4: .*checksum"):
        pool.decode(broken)
    # A frame that is sound around a payload that is not: found by a worker.
    header, words = blob.unpack(blobs[0])
    forged = blob.pack(header, np.append(words, [7, 7]).astype(np.uint32))
    with pytest.raises(coder.CorruptBlob, match="blob 8: damaged payload"):
        pool.decode([*blobs[:8], forged])
    np.testing.assert_array_equal(pool.decode(blobs)[0], small_codec().decode(blobs[0]))


def test_a_pool_refuses_what_is_no_batch(pool):
    with pytest.raises(coder.InputError, match="batch"):
        pool.encode(Y, (1, 2))
    with pytest.raises(coder.InputError, match="NaN"):
        pool.encode(np.full((2, 3, 3), np.nan), (1, 2))
    with pytest.raises(coder.InputError, match="0 grids"):
        pool.decode([])
    other = small_codec().encode(Y[:2], (1, 1))
    with pytest.raises(coder.InputError, match="2 grids"):
        pool.decode([other, small_codec().encode(Y, (1, 2))])
