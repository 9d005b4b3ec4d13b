"""TransformCodec: codes the coefficients of a decorrelating transform, at one quality."""

import warnings
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder.arrays import as_array, as_floats, as_grid, as_symbols, check_finite
from coder.codecs.base import OneQualityCodec
from coder.codecs.coefficients import NOT_CODED, CoefficientCodec, Plan, make_plan, renumbered
from coder.codecs.scalar_quantiser import UNITS
from coder.entropy import Tables
from coder.errors import CodecError, InputError, UnusualEmbedding
from coder.lazy_attribute import lazy_attribute
from coder.refiner import Refiner
from coder.transform import BANDS, Parts, Transform, cells_of

_FEW = 0.6  # fraction of coded (component, column) pairs below which products are done in parts
_PLANS, _LARGE = 16, 1 << 20  # plans that are kept, and the coefficients above which one is large


@dataclass(frozen=True, eq=False, repr=False)
class TransformCodec(CoefficientCodec, OneQualityCodec):
    """Code the coefficients of a `Transform`, K per token, each with the table of its kind.

    With table t, the symbol q decodes to `sign(q) * (|q| - shifts[t]) * step`. The encoder's dead
    zone and rounding follow from t (`coder.transform.dead_zone`).

    Attributes:
      transform: embeddings to coefficients and back.
      step: float32, > 0, the quantiser step of all coefficients.
      layout: uint8 [K, BANDS], the table of a component's coefficients in each band
        (`coder.transform.frequencies`); 255 where they are not coded. With a class token
        [K, BANDS + 1]: the last column is for the class token.
      tables: the integer probability tables, at most 255.
      shifts: float32 [T], -0.4 to 0.4.
      max_tokens, quality: as every codec's.

    Raises:
      CodecError: settings that do not fit together.
    """

    transform: Transform
    step: float
    layout: NDArray[np.uint8]
    tables: Tables
    shifts: NDArray[np.float32]
    max_tokens: int = 1 << 16
    quality: int = 0
    refiner: Refiner | None = None
    STEPS = "step"
    SUFFIX = ""

    def __post_init__(self) -> None:
        if np.size(self.step) != 1:
            raise CodecError("a codec of one quality has one step")
        object.__setattr__(self, "step", self._settle().item())
        # Only the last of the large plans is kept: they fill memory.
        for name, count in (("_plans", _PLANS), ("_large", 1)):
            object.__setattr__(self, name, lru_cache(count)(self._make_plan))

    @property
    def spatial(self) -> bool:
        """Whether the transform also runs over the places of the grid."""
        return self.transform.spatial

    @property
    def symbols_per_token(self) -> int:
        """K, one per component."""
        return self.transform.components

    def __repr__(self) -> str:
        return (
            f"<TransformCodec {self.fingerprint[:4].hex()}: {self.channels} channels, "
            f"{self.symbols_per_token} components, {len(self.tables)} tables, "
            f"quality {self.quality}>"
        )

    def warn_if_unusual(self, blob: bytes, grid: tuple[int, int], *, stacklevel: int) -> None:
        """Issue the warning of `encode` for a blob that it made of this grid."""
        if 8 * len(blob) > self._plan(as_grid(grid)).most_bits:
            warnings.warn(
                "an embedding needs far more bits than those that its codec was fitted on: is it "
                "from the same model, in the same units? If so, fit a codec on embeddings like it",
                UnusualEmbedding,
                stacklevel=stacklevel,
            )

    def quantise(self, y: ArrayLike, grid: tuple[int, int]) -> NDArray[np.int32]:
        """Embeddings float [..., n, D] -> symbols int32 [..., n, K], one embedding at a time.

        Raises:
          InputError: another shape, no floats, masked, NaN, infinity, or beyond int32.
        """
        values = as_array(y)
        grid = self._check_grid(values.shape[-2:], grid, self.channels)
        floats = as_floats(values)
        check_finite(floats, values)
        many = floats.reshape(-1, *values.shape[-2:])
        q = np.empty((*many.shape[:2], self.symbols_per_token), np.int32)
        for i, one in enumerate(many):
            q[i] = self._quantise(one, grid)
        return q.reshape(*values.shape[:-1], self.symbols_per_token)

    def dequantise(self, q: NDArray[np.int32], grid: tuple[int, int]) -> NDArray[np.float32]:
        """Symbols int32 [..., n, K] -> embeddings float32 [..., n, D], one at a time.

        Raises InputError: no integers, masked, or beyond int32.
        """
        symbols = as_symbols(q)
        many = symbols.reshape(-1, *symbols.shape[-2:])
        y = np.empty((*many.shape[:2], self.channels), np.float32)
        for i, one in enumerate(many):
            y[i] = self._dequantise(one, grid)
        return y.reshape(*symbols.shape[:-1], self.channels)

    def is_rewritable(self) -> bool:
        """Whether float32 holds decoded values precisely enough to be coded to the same symbols."""
        return self.step > self.transform.finest_step

    def split(self) -> tuple["TransformCodec", "TransformCodec | None"]:
        """As for every codec. Class tokens that are decoded together agree with others to 1e-5."""
        if not self.class_token:
            return self, None
        grid, own = self.layout[:, :BANDS], np.full_like(self.layout[:, :BANDS], NOT_CODED)
        own[:, 0] = self.layout[:, BANDS]
        whole = self.transform
        transform = replace(whole, class_mean=None, class_scale=None)
        alone = replace(transform, mean=whole.class_mean, scale=whole.class_scale, spatial=False)
        parts = ((transform, grid), (alone, own))
        first, second = (replace(self, transform=t, layout=layout).trimmed() for t, layout in parts)
        return first, replace(second, refiner=None)

    def trimmed(self) -> "TransformCodec":
        """This codec with only the components and tables that it uses, and at least one of each."""
        kept = np.flatnonzero((self.layout != NOT_CODED).any(1))
        kept = kept if kept.size else np.arange(1)
        layout = self.layout[kept]
        used = np.unique(layout[layout != NOT_CODED])
        used = used if used.size else np.arange(1, dtype=np.uint8)
        return replace(
            self,
            transform=self.transform.with_components(kept),
            layout=renumbered(layout, used),
            tables=self.tables.only(used),
            shifts=self.shifts[used],
        )

    def _plan(self, grid: tuple[int, int]) -> Plan:
        large = grid[0] * grid[1] * self.symbols_per_token > _LARGE
        return (self._large if large else self._plans)(grid)  # type: ignore[attr-defined]

    def _make_plan(self, grid: tuple[int, int]) -> Plan:
        return make_plan(self.layout.T[self.transform.columns(grid)].ravel(), self.tables)

    def cells(
        self, grid: tuple[int, int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """The rounding rule of each coefficient of a grid.

        Returns:
          Three arrays float32 [n, K], in units of the step: where magnitude 1 begins (infinity
          where nothing is coded); what to add to larger values before rounding them down; what to
          subtract from a magnitude to decode it.
        """
        table = self.layout.T[self.transform.columns(grid)]
        zone, rounding = self._cells
        parts = [np.append(values, last) for values, last in ((zone, np.inf), (rounding, 0))]
        index = np.minimum(table, len(self.tables))
        shift = np.append(self.shifts, np.float32(0))
        return tuple(values.astype(np.float32)[index] for values in (*parts, shift))  # type: ignore

    @lazy_attribute
    def _analyses(self) -> Parts | None:
        return None if self._few is None else self.transform.analyses(self._few)

    @lazy_attribute
    def _syntheses(self) -> Parts | None:
        return None if self._few is None else self.transform.syntheses(self._few)

    @property
    def _few(self) -> NDArray[np.bool_] | None:
        """Which pairs [K, columns] are coded; None if products in parts would not be faster."""
        coded = self.layout != NOT_CODED
        return coded if coded.mean() < _FEW else None

    @lazy_attribute
    def _cells(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """For each table: where magnitude 1 begins, and what to add before rounding down."""
        cells = [cells_of(self.tables, k, float(self.shifts[k])) for k in range(len(self.tables))]
        return np.array([zone for zone, _ in cells], "<f4"), np.array([r for _, r in cells], "<f4")

    def _quantise(self, y: NDArray[np.float32], grid: tuple[int, int]) -> NDArray[np.int32]:
        plan = self._plan(grid)
        zone, rounding = self._cells
        with np.errstate(over="ignore", invalid="ignore"):
            c = self.transform.forward(y, grid, self._analyses).reshape(-1)
            some = c[plan.order]
            size = np.abs(some)
            size /= np.float32(self.step)
        if size.size and not size.max() < 2.0**30:
            raise InputError(
                f"embeddings are too far from the codec's mean for int32 symbols: {UNITS}"
            )
        q = np.floor(size + rounding[plan.table])
        q[size < zone[plan.table]] = 0
        result = np.zeros(c.size, np.int32)
        result[plan.order] = np.copysign(q, some)
        return result.reshape(len(y), -1)

    def _dequantise(self, q: NDArray[np.int32], grid: tuple[int, int]) -> NDArray[np.float32]:
        plan = self._plan(grid)
        some = q.reshape(-1)[plan.order].astype(np.float32)
        some -= np.sign(some) * self.shifts[plan.table]
        some *= np.float32(self.step)
        c = np.zeros(q.size, np.float32)
        c[plan.order] = some
        return self.transform.inverse(c.reshape(q.shape), grid, self._syntheses)

    def _encode_words(self, q: NDArray[np.int32], grid: tuple[int, int]) -> NDArray[np.uint32]:
        plan = self._plan(grid)
        return plan.coder.encode(self._coded(q, plan))

    def _decode_words(self, words: NDArray[np.uint32], grid: tuple[int, int]) -> NDArray[np.int32]:
        plan = self._plan(grid)
        q = np.zeros((grid[0] * grid[1] + self.class_token, self.symbols_per_token), np.int32)
        q.reshape(-1)[plan.order] = plan.coder.decode(words)
        return q

    def estimate_bits(self, q: NDArray[np.int32], grid: tuple[int, int]) -> float:
        """Ideal code length in bits of symbols int32 [n, K] under the tables, without framing."""
        symbols = as_symbols(q)
        grid = self._check_grid(symbols.shape, grid, self.symbols_per_token)
        plan = self._plan(grid)
        return plan.coder.ideal_bits(self._coded(symbols, plan))

    @staticmethod
    def _coded(q: NDArray[np.int32], plan: Plan) -> NDArray[np.int32]:
        some = q.reshape(-1)[plan.order]
        if some.size < q.size and np.count_nonzero(some) != np.count_nonzero(q):
            raise InputError("symbols where the codec codes none must be zero")
        return some
