"""Codecs of coefficients: the table of each, the order of coding, and what their files store."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from coder.arrays import frozen, immutable
from coder.codecs.base import EmbeddingCodec, check_limits
from coder.entropy import RowCoder, Tables
from coder.errors import CodecError, FileError, InputError
from coder.refiner import Refiner, check_refiner
from coder.transform import Transform

NOT_CODED = 255
"""In a layout: these coefficients are not coded, and decode to zero."""
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


class CoefficientCodec(EmbeddingCodec):
    """What codecs of coefficients share, whether of one quality or of many.

    Attributes:
      transform: embeddings to coefficients and back.
      layout: uint8 [.., K, columns], the table of a component in each column; 255 for none.
      shifts: float32 [T], one per table.
      STEPS: the name of the attribute, and of the tensor in a file, that holds the steps.
      SUFFIX: the end of the name of a transform in a file.
    """

    transform: Transform
    layout: NDArray[np.uint8]
    shifts: NDArray[np.float32]
    STEPS: ClassVar[str]
    SUFFIX: ClassVar[str]

    def _settle(self) -> NDArray[np.float32]:
        """Check the settings and make them immutable; returns the steps, an immutable copy.

        Raises CodecError if the settings do not fit together.
        """
        steps = immutable(self.STEPS, np.atleast_1d(getattr(self, self.STEPS)), "<f4")
        if not np.finfo(np.float32).tiny <= steps.min() <= steps.max() < 2.0**30:
            raise CodecError(f"{self.STEPS}: give positive, normal float32 below 2^30")
        expected = (self.transform.components, self.transform.width)
        if self.STEPS == "steps":
            expected = (steps.size, *expected)
        layout, tables = self.layout, len(self.tables)
        if layout.dtype != np.uint8 or layout.shape != expected:
            raise CodecError(
                f"a layout is uint8 {list(expected)}, not {layout.dtype} {list(layout.shape)}"
            )
        if tables > NOT_CODED:
            raise CodecError(f"{tables} tables: at most {NOT_CODED}")
        if layout[layout != NOT_CODED].max(initial=0) >= tables:
            raise CodecError(f"the layout names a table outside 0 .. {tables - 1}")
        shifts = immutable("shifts", self.shifts, "<f4")
        if shifts.size != tables or not np.abs(shifts).max() <= 0.4:
            raise CodecError("each table needs a shift from -0.4 to 0.4")
        object.__setattr__(self, "layout", frozen(layout))
        object.__setattr__(self, "shifts", shifts)
        check_limits(self)
        return steps

    def with_refiner(self, refiner: Refiner | None) -> Self:
        """This codec with a refiner, or with none. Raises InputError for that of another codec."""
        if refiner is not None:
            check_refiner(refiner)
            refiner.check_channels(self.channels)
            if not self.is_served_by(refiner):
                raise InputError(
                    "the refiner belongs to another codec: fit or load one for this codec"
                )
        return replace(self, refiner=refiner)  # type: ignore[type-var]

    def is_served_by(self, refiner: Refiner) -> bool:
        """Whether a refiner refines what this codec decodes, at all of its qualities."""
        if refiner.channels != self.channels:
            return False
        index = refiner.codecs.get(self.fingerprint.hex())
        if self.num_qualities == 1:
            return index is not None and index >= 0
        if index is not None:
            return True
        # A ladder with another default quality has a fingerprint of its own.
        ones = [self.at(quality).fingerprint.hex() for quality in range(self.num_qualities)]
        return all(refiner.codecs.get(one, -1) >= 0 for one in ones)

    @property
    def channels(self) -> int:
        """D."""
        return self.transform.channels

    @property
    def class_token(self) -> bool:
        """Whether a class token is coded before the grid."""
        return self.transform.class_mean is not None

    def to_parts(self) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """Named tensors and JSON content: what a file, or a model's file, stores of a codec."""
        own = {name: getattr(self, name) for name in ("layout", "shifts", self.STEPS)}
        own[self.STEPS] = np.array(own[self.STEPS], "<f4", ndmin=1)
        tensors = self.transform.to_tensors() | self.tables.to_tensors() | own
        return tensors, self._content(TRANSFORMS[self.transform.spatial] + self.SUFFIX)

    @classmethod
    def from_parts(cls, tensors: Mapping[str, NDArray], content: Mapping[str, Any]) -> Self:
        """The codec that `to_parts` described. Raises FileError or CodecError on anything else."""
        own = {"layout", "shifts", cls.STEPS, *Tables.TENSORS}
        if not own <= set(tensors):
            raise FileError(f"a codec has tensors {sorted(own)}, not {sorted(tensors)}")
        if tensors[cls.STEPS].ndim != 1:  # one step would fit too
            raise FileError(f"{cls.STEPS} must have one dimension, also for one quality")
        spatial = content["transform"].startswith(TRANSFORMS[True])
        rest = {name: tensors[name] for name in set(tensors) - own}
        settings: dict[str, Any] = {
            "transform": Transform.from_tensors(rest, spatial=spatial),
            "tables": Tables(*(tensors[name] for name in Tables.TENSORS)),
            "max_tokens": content["max_tokens"],
            "quality": content["rate_index"],
        }
        return cls(**settings, **{name: tensors[name] for name in own - {*Tables.TENSORS}})


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
