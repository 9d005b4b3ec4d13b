"""Codecs of coefficients: the table of each, the order of coding, and what their files store."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coder.codecs.base import EmbeddingCodec
from coder.entropy import RowCoder, Tables
from coder.errors import CodecError, FileError
from coder.transform import Transform

NOT_CODED = 255
"""In a layout: these coefficients are not coded, and decode to zero."""
TENSORS = ("layout", "minimum", "sizes", "weights", "shifts")
TRANSFORMS = ("klt", "klt-dct")
"""Names of transforms in a file: over channels alone, or over channels and places."""
# Slack above the expected bits: twice them, or one bit per coefficient if that is less; and 256
# bits for the frame and for chance.
_TIMES, _BITS, _CHANCE = 2.0, 1.0, 256


def renumbered(layout: NDArray[np.uint8], used: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A layout with each table number replaced by its index in `used`."""
    numbers = np.full(NOT_CODED + 1, NOT_CODED, np.uint8)
    numbers[used] = np.arange(used.size)
    return numbers[layout]


def check_layout(
    layout: NDArray[np.uint8], transform: Transform, tables: Tables, shifts: NDArray[np.float32]
) -> None:
    """Raise CodecError unless a layout [..., K, columns] fits the transform, tables and shifts."""
    if layout.dtype != np.uint8 or layout.shape[-2:] != (transform.components, transform.width):
        raise CodecError(
            f"a layout is uint8 [.., {transform.components}, {transform.width}], not "
            f"{layout.dtype} {list(layout.shape)}"
        )
    if len(tables) > NOT_CODED:
        raise CodecError(f"{len(tables)} tables: at most {NOT_CODED}")
    named = layout[layout != NOT_CODED]
    if named.size and named.max() >= len(tables):
        raise CodecError(f"the layout names a table outside 0 .. {len(tables) - 1}")
    if shifts.size != len(tables) or not np.abs(shifts).max() <= 0.4:
        raise CodecError("each table needs a shift from -0.4 to 0.4")


class CoefficientCodec(EmbeddingCodec):
    """What codecs of coefficients share, whether of one quality or of many.

    Attributes:
      transform: embeddings to coefficients and back.
      layout: uint8 [.., K, columns], the table of a component in each column; 255 for none.
      shifts: float32 [T], one per table.
    """

    transform: Transform
    layout: NDArray[np.uint8]
    shifts: NDArray[np.float32]

    @property
    def channels(self) -> int:
        """D."""
        return self.transform.channels

    @property
    def class_token(self) -> bool:
        """Whether a class token is coded before the grid."""
        return self.transform.class_mean is not None

    def _parts(
        self, steps: dict[str, NDArray], suffix: str = ""
    ) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """The result of `to_parts` with these steps; `suffix` is added to the transform's name."""
        tables = self.tables
        values = (self.layout, tables.minimum, tables.sizes, tables.weights, self.shifts)
        tensors = self.transform.to_tensors() | dict(zip(TENSORS, values, strict=True)) | steps
        return tensors, self._content(TRANSFORMS[self.transform.spatial] + suffix)


def open_parts(
    tensors: Mapping[str, NDArray], content: Mapping[str, Any], steps: str
) -> tuple[Transform, NDArray[np.uint8], Tables, NDArray[np.float32], int, int]:
    """Transform, layout, tables, shifts, max_tokens and rate_index from the parts of a file.

    Args:
      steps: the tensor that must be there as well.

    Raises:
      FileError, CodecError: parts are missing, unknown, or wrong.
    """
    own = {*TENSORS, steps}
    spatial = content["transform"].startswith(TRANSFORMS[True])
    transform = Transform.from_tensors(
        {k: v for k, v in tensors.items() if k not in own}, spatial=spatial
    )
    if not own <= set(tensors):
        raise FileError(f"a codec has tensors {sorted(own)}, not {sorted(tensors)}")
    tables = Tables(tensors["minimum"], tensors["sizes"], tensors["weights"])
    return (
        transform,
        tensors["layout"],
        tables,
        tensors["shifts"],
        content["max_tokens"],
        content["rate_index"],
    )


class Plan(NamedTuple):
    """How to code the coefficients [n, K] of a grid, numbered in C order.

    Attributes:
      order: int32 [S], the coded coefficients: table by table, rising within a table.
      table: uint8 [S], the table of each.
      coder: codes them, one row per table.
      most_bits: the size in bits above which a blob is unusual: embeddings like those that the
        tables were fitted on seldom need more.
    """

    order: NDArray[np.int32]
    table: NDArray[np.uint8]
    coder: RowCoder
    most_bits: float


def make_plan(table: NDArray[np.uint8], tables: Tables) -> Plan:
    """The plan for coefficients whose tables are uint8 [n * K]."""
    order = np.argsort(table, kind="stable").astype(np.int32)
    counts = np.bincount(table, minlength=NOT_CODED + 1)[:NOT_CODED]
    used = np.flatnonzero(counts)
    order = order[: counts.sum()]
    coder = RowCoder(tables, used.astype(np.int32), counts[used])
    usual = float(sum(counts[k] * _entropy(tables.pmf(k)) for k in used.tolist()))
    most = usual + min(_TIMES * usual, _BITS * order.size) + _CHANCE
    return Plan(order, table[order], coder, most)


def _entropy(pmf: NDArray[np.float64]) -> float:
    return float(-(pmf * np.log2(pmf)).sum())
