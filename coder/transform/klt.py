"""The transform of a grid of tokens: it decorrelates the channels, then the places.

    c = DCT((y - mean) / scale) @ analysis        y_hat = mean + scale * IDCT(c @ basis)

`basis` [K, D] has nearly orthonormal rows (principal components, stored in bytes); `analysis` is
its pseudo-inverse, so that coefficients of a reconstruction are found again. The DCT is the
orthonormal DCT-II over the blocks of `coder.transform.frequencies`. A class token passes only the
channels' part, with its own mean and scale.

Only the coded parts of the products are computed, which are few at low qualities. Embeddings are
computed one at a time in float32, on the calling thread (`product`). So on one machine the result
is bit-identical in any batch and for any number of BLAS threads; between machines it agrees to
1e-5.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coder.arrays import frozen, immutable, read_only
from coder.errors import CodecError, FileError
from coder.lazy_attribute import lazy_attribute
from coder.transform.dct import over_blocks, product
from coder.transform.dead_zone import MARGIN
from coder.transform.frequencies import BANDS, bands_of_grid

Parts = tuple[tuple[NDArray[np.intp], NDArray[np.float32]], ...]
"""For each column of a layout: its components [k], and what a matrix has for them."""


@dataclass(frozen=True, eq=False)
class Transform:
    """Embeddings of D channels <-> coefficients of K components.

    Attributes:
      mean: float32 [D], of the tokens of the grid.
      scale: float32 [D], > 0: the unit of error of each channel.
      basis: int8 [K, D].
      norms: float32 [K], > 0: the value of one unit in each row of `basis`.
      class_mean, class_scale: float32 [D], of the class token; None when it is not coded.
      spatial: whether the places of a grid are transformed too; false where tokens are unrelated.

    Raises:
      CodecError: shapes that do not fit together; numbers that are not positive or not finite;
        rows of the basis that are linearly dependent.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    basis: NDArray[np.int8]
    norms: NDArray[np.float32]
    class_mean: NDArray[np.float32] | None = None
    class_scale: NDArray[np.float32] | None = None
    spatial: bool = True

    def __post_init__(self) -> None:
        if (self.class_mean is None) != (self.class_scale is None):
            raise CodecError("a class token needs a mean and a scale of its own: one is missing")
        names = ["mean", "scale", "norms", *self._of_class_token()]
        for name in names:
            object.__setattr__(self, name, immutable(name, getattr(self, name), "<f4"))
        if self.basis.dtype != np.int8 or self.basis.ndim != 2:
            raise CodecError("a basis is int8 [components, channels]")
        components, channels = self.basis.shape
        if not 1 <= components <= channels:
            raise CodecError(f"{components} components of {channels} channels")
        for name in names:
            expected = components if name == "norms" else channels
            if (size := getattr(self, name).size) != expected:
                raise CodecError(f"{name} has {size} values, the basis needs {expected}")
        means, scales = (
            [getattr(self, name) for name in names if name.endswith(end)]
            for end in ("mean", "scale")
        )
        if min(part.min() for part in (*scales, self.norms)) < np.finfo(np.float32).tiny:
            raise CodecError("scales and norms must be positive, normal float32")
        with np.errstate(over="ignore"):
            largest = float(self.norms.max()) * float(np.max(scales)) * components
        # So that no decoded value is infinite: symbols are int32, rows int8.
        if not largest < 2.0**60 or np.abs(means).max() > 2.0**100:
            raise CodecError("scales, norms or means are too large for float32")
        object.__setattr__(self, "basis", frozen(self.basis))

    def to_tensors(self) -> dict[str, NDArray]:
        """The tensors that a file stores."""
        names = ["mean", "scale", "basis", "norms", *self._of_class_token()]
        return {name: getattr(self, name) for name in names}

    def _of_class_token(self) -> list[str]:
        return [] if self.class_mean is None else ["class_mean", "class_scale"]

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray], spatial: bool) -> "Transform":
        """The inverse of `to_tensors`. Raises FileError or CodecError."""
        needed = {"mean", "scale", "basis", "norms"}
        if set(tensors) - {"class_mean", "class_scale"} != needed:
            raise FileError(f"a transform has tensors {sorted(needed)}, not {sorted(tensors)}")
        return cls(**tensors, spatial=spatial)

    def columns(self, grid: tuple[int, int]) -> NDArray[np.uint8]:
        """The column of a layout for each token [n] of a grid: its band, or the class token's."""
        bands = bands_of_grid(*grid).ravel() if self.spatial else np.zeros(grid[0] * grid[1], "u1")
        if self.class_mean is None:
            return bands
        return np.concatenate([[np.uint8(BANDS)], bands])

    @property
    def width(self) -> int:
        """The number of columns of a layout: one per band, and one for a class token."""
        return BANDS + (self.class_mean is not None)

    @property
    def channels(self) -> int:
        """D, the number of channels."""
        return self.mean.size

    @property
    def components(self) -> int:
        """K, the number of components."""
        return self.norms.size

    @property
    def finest_step(self) -> float:
        """The step below which float32 holds decoded values too coarsely to be coded as before."""
        largest = np.abs(self.mean) + 32 * self.scale
        rounding = np.finfo(np.float32).eps * np.sqrt(np.mean((largest / self.scale) ** 2))
        return float(8 * rounding / MARGIN)

    def with_components(self, which: NDArray[np.integer]) -> "Transform":
        """The transform with only these components."""
        return replace(self, basis=self.basis[which], norms=self.norms[which])

    def forward(
        self, y: NDArray[np.float32], grid: tuple[int, int], parts: Parts | None = None
    ) -> NDArray[np.float32]:
        """Embedding float32 [n, D] -> coefficients [n, K], those of a block at its places.

        With `parts`, the result of `analyses`, coefficients that it leaves out are zero.
        """
        first = len(y) - grid[0] * grid[1]
        x = np.empty((len(y), self.channels), np.float32)
        if first:
            assert self.class_mean is not None
            assert self.class_scale is not None
            x[:first] = (y[:first] - self.class_mean) / self.class_scale
        np.subtract(y[first:], self.mean, out=x[first:])
        x[first:] /= self.scale
        if self.spatial:
            x[first:] = over_blocks(x[first:], grid, inverse=False)
        if parts is None:
            return product(x, self.analysis)
        c = np.zeros((len(y), self.components), np.float32)
        for tokens, (kept, matrix) in zip(self._tokens(grid), parts, strict=True):
            if len(kept):
                c[np.ix_(tokens, kept)] = product(x[tokens], matrix)
        return c

    def inverse(
        self, c: NDArray[np.float32], grid: tuple[int, int], parts: Parts | None = None
    ) -> NDArray[np.float32]:
        """Coefficients float32 [n, K] -> embedding [n, D]; `parts` is the result of `syntheses`."""
        first = len(c) - grid[0] * grid[1]
        y = np.zeros((len(c), self.channels), np.float32)
        if parts is None:
            y[first:] = product(c[first:], self.synthesis)
            if first:
                y[:first] = product(c[:first], self._class_synthesis)
        else:
            for tokens, (kept, matrix) in zip(self._tokens(grid), parts, strict=True):
                if len(kept):
                    y[tokens] = product(c[np.ix_(tokens, kept)], matrix)
        if self.spatial:
            y[first:] = over_blocks(y[first:], grid, inverse=True)
        y[first:] += self.mean
        if first:
            assert self.class_mean is not None
            y[:first] += self.class_mean
        return y

    def analyses(self, coded: NDArray[np.bool_]) -> Parts:
        """The parts of `analysis` for the components [K, columns] that are coded: [D, k] each."""
        kept = map(np.flatnonzero, coded.T)
        return tuple((k, _taken(self.analysis.T, k).T) for k in kept)

    def syntheses(self, coded: NDArray[np.bool_]) -> Parts:
        """The parts of `synthesis` for the components [K, columns] that are coded: [k, D] each."""
        wholes = [self.synthesis] * BANDS
        if self.class_mean is not None:
            wholes.append(self._class_synthesis)
        kept = map(np.flatnonzero, coded.T)
        return tuple((k, _taken(whole, k)) for k, whole in zip(kept, wholes, strict=True))

    def _tokens(self, grid: tuple[int, int]) -> list[NDArray[np.intp]]:
        """The tokens of each column of a layout."""
        columns = self.columns(grid)
        return [np.flatnonzero(columns == column) for column in range(self.width)]

    @lazy_attribute
    def synthesis(self) -> NDArray[np.float32]:
        """[K, D]: components to channels, in their units."""
        return read_only(self.basis * self.norms[:, None] * self.scale)

    @lazy_attribute
    def _class_synthesis(self) -> NDArray[np.float32]:
        assert self.class_scale is not None
        return read_only(self.basis * self.norms[:, None] * self.class_scale)

    @lazy_attribute
    def analysis(self) -> NDArray[np.float32]:
        """[D, K]: the pseudo-inverse of the basis, for channels in units of `scale`."""
        rows = self.basis * self.norms[:, None].astype(np.float64)
        products = rows @ rows.T
        # Nearly dependent rows would magnify rounding errors.
        if np.linalg.eigvalsh(products)[0] < 0.1 * np.diag(products).max():
            raise CodecError("rows of the basis are far from orthonormal")
        inverse = np.linalg.solve(products, rows)
        return read_only(np.ascontiguousarray(inverse.T, np.float32))


def _taken(rows: NDArray[np.float32], kept: NDArray[np.intp]) -> NDArray[np.float32]:
    return rows if len(kept) == len(rows) else rows[kept]
