"""A few seconds of what `make fuzz` does for minutes."""

from fuzz.mutate import run, run_refiners


def test_mutants_of_golden_blobs_end_in_typed_errors():
    outcomes = run(6000, seed=11)
    assert outcomes.total() == 6000
    assert {"CorruptBlob", "WrongCodec", "UnsupportedVersion", "TruncatedBlob"} <= set(outcomes)
    assert outcomes["forged, decoded to something"]


def test_mutants_of_golden_refiners_end_in_typed_errors_or_refine():
    outcomes = run_refiners(3000, seed=12)
    assert outcomes["FileError"] > 1500
    assert outcomes["refines"] > 100
