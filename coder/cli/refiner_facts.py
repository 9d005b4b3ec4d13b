"""What the commands print of a refiner."""

from typing import Any

from coder.refiner import Refiner


def line(refiner: Refiner) -> str:
    """A refiner in a few words."""
    found = facts(refiner)
    return (
        f"refiner {found['fingerprint'][:8]}, {found['hidden_units']} hidden units, "
        f"{found['num_qualities']} qualities, {found['refiner_bytes']:,} bytes"
    )


def facts(refiner: Refiner) -> dict[str, Any]:
    """A refiner for JSON."""
    return {
        "fingerprint": refiner.fingerprint.hex(),
        "hidden_units": refiner.bias.shape[1],
        "num_qualities": refiner.gains.size,
        "refiner_bytes": refiner.refiner_bytes,
    }
