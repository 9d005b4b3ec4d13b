"""`QualityLadder.quality_for`: the quality that fits a sample on average."""

import numpy as np
import pytest
import transform_cases

import coder
from coder import InputError

Y = transform_cases.smooth_embeddings(3, 24)
CODEC = coder.fit(Y)
GRID = Y.shape[1:3]
SAMPLE = Y[:8].reshape(8, -1, Y.shape[-1])


def measured(quality: int) -> tuple[float, float]:
    blobs = [CODEC.encode(one, GRID, quality=quality) for one in SAMPLE]
    errors = [np.mean(np.square(CODEC.decode(b) - y)) for b, y in zip(blobs, SAMPLE, strict=True)]
    return float(np.mean([len(blob) for blob in blobs])), float(np.mean(errors))


@pytest.mark.parametrize("quality", [0, 3, 7, CODEC.num_qualities - 1])
def test_it_is_the_last_that_fits(quality):
    size, error = measured(quality)
    found = CODEC.quality_for(SAMPLE, GRID, max_bytes=size)
    assert measured(found)[0] == size
    assert found == CODEC.num_qualities - 1 or measured(found + 1)[0] > size
    found = CODEC.quality_for(SAMPLE, GRID, max_mse=error * (1 + 1e-6))
    assert measured(found)[1] == error
    assert found == 0 or measured(found - 1)[1] > error


def test_a_target_out_of_reach_is_an_error():
    with pytest.raises(InputError, match="bytes per embedding at quality 0, the lowest"):
        CODEC.quality_for(SAMPLE, GRID, max_bytes=3)
    with pytest.raises(InputError, match=r"is .* at quality .*, the highest, and 0 is allowed"):
        CODEC.quality_for(SAMPLE, GRID, max_mse=0)


@pytest.mark.parametrize("targets", [{}, {"max_bytes": 100, "max_mse": 1}])
def test_one_target_is_needed(targets):
    with pytest.raises(InputError, match="give one of max_bytes and max_mse"):
        CODEC.quality_for(SAMPLE, GRID, **targets)


def test_a_target_is_a_number():
    for wrong in (-1, float("nan"), "8"):
        with pytest.raises(InputError, match="give a number that is not negative"):
            CODEC.quality_for(SAMPLE, GRID, max_bytes=wrong)  # type: ignore[arg-type]
