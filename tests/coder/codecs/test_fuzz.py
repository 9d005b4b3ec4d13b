"""A few seconds of what `make fuzz` does for minutes."""

from fuzz.mutate import run


def test_mutants_of_golden_blobs_end_in_typed_errors():
    outcomes = run(6000, seed=11)
    assert outcomes.total() == 6000
    assert {"CorruptBlob", "WrongCodec", "UnsupportedVersion", "TruncatedBlob"} <= set(outcomes)
    assert outcomes["forged, decoded to something"]
