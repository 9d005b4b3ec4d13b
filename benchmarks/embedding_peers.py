"""Bytes of embeddings at equal error, by `coder.fit` and by what others use.

    python -m benchmarks.embedding_peers FILE.npz --name ENCODER --out FILE.csv
        [--kinds KIND ...] [--methods METHOD ...]

FILE.npz is made by `benchmarks.embedding_sets`. Everything is fitted to one part of a kind of
embeddings and measured on another:

- `mean tokens`, `class tokens` [N, D]: three fifths, the others;
- `tokens`: every second grid of tokens, the others;
- `raster`: three areas of Blue Marble, the three between them;
- `like TESSERA`: the raster in 128 principal components (if it has more channels), as int8 with a
  scale for each cell, largest magnitude / 127; `like AlphaEarth`: in 64, of length 1, as int8
  companded by a signed square root. What is compressed is the value that such a file means. These
  files are made here: the products' own cannot be had.

FILE.csv has a row for each setting of each method: bytes per vector of what was measured, all
together; bytes of what a decoder needs once; and the error as `coder.fitting.stated_error` states
it. `benchmarks.embedding_rates` makes the tables of it.
"""

import argparse
import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from coder.fitting import fit_measured, measure

Values = NDArray[np.floating]

MANY = 1 << 40
RUN = 256  # vectors in a blob
SIDE = 16  # cells of a side of a blob of a raster
PARTS = (8, 16, 32, 64, 128, 192)
BEST = 22  # level of zstd
CLIPS = (1.0, 0.7, 0.5, 0.35, 0.25)
MOST = 1 << 14  # vectors that codebooks are trained on
ROTATIONS = 16  # iterations that find the rotation of OPQ


@dataclass
class Embeddings:
    """Embeddings to fit to, and pieces [N, D] or [h, w, D] that are coded each by itself."""

    fit: Values
    pieces: list[Values]

    @property
    def vectors(self) -> Values:
        """What is measured, [N, D]."""
        return np.concatenate([piece.reshape(-1, piece.shape[-1]) for piece in self.pieces])

    @property
    def sample(self) -> Values:
        """What is fitted to, [M, D]."""
        return self.fit.reshape(-1, self.fit.shape[-1])

    def cut(self, y: Values) -> list[Values]:
        """Vectors [N, D] as the pieces that they come from."""
        sizes = [piece.size // piece.shape[-1] for piece in self.pieces]
        parts = np.split(y, np.cumsum(sizes)[:-1])
        return [
            part.reshape(*piece.shape[:-1], -1)
            for part, piece in zip(parts, self.pieces, strict=True)
        ]


class Coded(NamedTuple):
    """A setting: its bytes, the bytes that a decoder needs once, and decoded vectors [N, D]."""

    setting: str
    size: int
    once: int
    y_hat: Values


def transform(data: Embeddings) -> Iterator[Coded]:
    """`coder.fit`, in blobs of 256 vectors or of 16 x 16 cells."""
    ladder, _ = fit_measured(data.fit, count=MANY)
    for quality in range(ladder.num_qualities):
        codec, size, decoded = ladder.at(quality), 0, []
        for piece in data.pieces:
            y_hat = np.empty_like(piece)
            for place in blocks(piece):
                part = piece[place]
                grid = part.shape[:2] if part.ndim == 3 else (len(part), 1)
                blob = codec.encode_quietly(part.reshape(-1, part.shape[-1]), grid)
                size += len(blob)
                y_hat[place] = codec.decode(blob).reshape(part.shape)
            decoded.append(y_hat.reshape(-1, piece.shape[-1]))
        yield Coded(f"quality {quality}", size, codec.codec_bytes, np.concatenate(decoded))


def blocks(piece: Values) -> Iterator[Any]:
    """The parts of a piece that have a blob each."""
    if piece.ndim == 2:
        yield from (np.s_[start : start + RUN] for start in range(0, len(piece), RUN))
        return
    for row in range(0, piece.shape[0], SIDE):
        for column in range(0, piece.shape[1], SIDE):
            yield np.s_[row : row + SIDE, column : column + SIDE]


def packed(symbols: NDArray) -> int:
    """Bytes of symbols [N, k] by zstd, in the better of two orders."""
    import imagecodecs

    orders = np.ascontiguousarray(symbols), np.ascontiguousarray(symbols.T)
    return min(len(imagecodecs.zstd_encode(order.tobytes(), level=BEST)) for order in orders)


def rounded(y: Values, sample: Values, levels: int) -> tuple[NDArray[np.int8], Values]:
    """Integers up to +-`levels` by one step for each channel, and what they mean.

    The step clips where the squared error of the sample is least.
    """
    largest = np.maximum(np.abs(sample).max(0), 1e-30)
    losses = [
        np.square(_nearest(sample, largest * c / levels, levels)[1] - sample).sum(0) for c in CLIPS
    ]
    clip = np.array(CLIPS, np.float32)[np.argmin(losses, axis=0)]
    return _nearest(y, largest * clip / levels, levels)


def _nearest(y: Values, step: Values, levels: int) -> tuple[NDArray[np.int8], Values]:
    q = np.clip(np.rint(y / step), -levels, levels).astype(np.int8)
    return q, q * step


def integers(data: Embeddings) -> Iterator[Coded]:
    """int8, int6, .., each channel by its own scale, and zstd."""
    y, sample = data.vectors, data.sample
    mean = sample.mean(0)
    for bits in (8, 6, 5, 4, 3, 2):
        q, y_hat = rounded(y - mean, sample - mean, 2 ** (bits - 1) - 1)
        yield Coded(f"int{bits}", packed(q), 8 * y.shape[1], y_hat + mean)


def principal(sample: Values) -> tuple[Values, Values]:
    """The mean [D] and principal components [D, D] as columns, the largest first."""
    mean = sample.mean(0, dtype=np.float64)
    centred = sample - mean
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return mean.astype(np.float32), vectors[:, ::-1].astype(np.float32)


def pca_integers(data: Embeddings) -> Iterator[Coded]:
    """Principal components as int8 or int4, each by its own scale, and zstd."""
    y, sample = data.vectors, data.sample
    mean, vectors = principal(sample)
    for k in [k for k in (4, 8, 16, 32, 64, 128, 256, 512) if k < y.shape[1]] + [y.shape[1]]:
        basis = vectors[:, :k]
        c, of_sample = (y - mean) @ basis, (sample - mean) @ basis
        for bits in (8, 4):
            q, c_hat = rounded(c, of_sample, 2 ** (bits - 1) - 1)
            once = 4 * (basis.size + 2 * k + y.shape[1])
            yield Coded(f"{k} components, int{bits}", packed(q), once, c_hat @ basis.T + mean)


def quantisers(data: Embeddings, make: Callable[[int, int], str]) -> Iterator[Coded]:
    """Product quantisers of faiss, of 8 bits a part, some parts of which divide the channels."""
    import faiss

    faiss.omp_set_num_threads(1)  # its threads wait for one another where cores are busy
    y, sample = data.vectors, data.sample
    d = y.shape[1]
    sample = np.ascontiguousarray(sample[:: -(-len(sample) // MOST)])
    for parts in [parts for parts in PARTS if d % parts == 0 and parts < d]:
        index: Any = faiss.index_factory(d, make(d, parts))
        if make is optimised:
            rotation: Any = faiss.downcast_VectorTransform(index.chain.at(0))
            rotation.niter = ROTATIONS
        index.train(sample)
        codes = index.sa_encode(y)
        once = 4 * (256 * d + (d * d if make is optimised else 0))
        yield Coded(f"{parts} bytes", codes.size, once, index.sa_decode(codes))


def plain(d: int, parts: int) -> str:
    """Product quantisation (Jegou 2011)."""
    return f"PQ{parts}x8np"


def optimised(d: int, parts: int) -> str:
    """Product quantisation after a rotation that is learned (Ge 2013)."""
    return f"OPQ{parts}_{d},PQ{parts}x8np"


def binary(data: Embeddings) -> Iterator[Coded]:
    """The signs of each channel, less its mean."""
    y, sample = data.vectors, data.sample
    mean = sample.mean(0)
    size = np.abs(sample - mean).mean(0)
    q = np.packbits(y > mean, axis=1)
    once = 8 * y.shape[1]
    yield Coded("1 bit", min(q.size, packed(q)), once, np.where(y > mean, mean + size, mean - size))


def error_bounded(
    data: Embeddings, code: Callable[[Values, float], tuple[int, Values]]
) -> Iterator[Coded]:
    """A compressor of arrays by an absolute error; the order of dimensions that takes least."""
    y = data.vectors
    spread = float(np.sqrt(np.square(y - y.mean(0)).mean()))
    for tolerance in spread * 2.0 ** np.arange(3.5, -7, -0.5):
        size, decoded = 0, []
        for piece in data.pieces:
            orders = [(0, 1, 2), (2, 0, 1)] if piece.ndim == 3 else [(0, 1), (1, 0)]
            found = []
            for order in orders:
                one, y_hat = code(np.ascontiguousarray(piece.transpose(order)), tolerance)
                found.append((one, np.asarray(y_hat).transpose(np.argsort(order))))
            one, y_hat = min(found, key=lambda pair: pair[0])
            size += one
            decoded.append(y_hat.reshape(-1, piece.shape[-1]))
        yield Coded(f"{tolerance / spread:.4f} deviations", size, 0, np.concatenate(decoded))


def sz3(y: Values, tolerance: float) -> tuple[int, Values]:
    """SZ3 (Liang 2023), absolute error."""
    import imagecodecs

    data = imagecodecs.sz3_encode(y, mode="abs", abs=tolerance)
    return len(data), imagecodecs.sz3_decode(data, shape=y.shape, dtype="float32")


def zfp(y: Values, tolerance: float) -> tuple[int, Values]:
    """ZFP (Lindstrom 2014), absolute error."""
    import imagecodecs

    data = imagecodecs.zfp_encode(y, mode="a", level=cast(Any, tolerance))
    return len(data), imagecodecs.zfp_decode(data)


def pca_images(
    data: Embeddings,
    code: Callable[[NDArray[np.float64], float], tuple[int, NDArray]],
    steps: list[float],
) -> Iterator[Coded]:
    """Principal components as grey images, all in one unit, by a codec of images; rasters only."""
    y, sample = data.vectors, data.sample
    if data.pieces[0].ndim == 2:
        return
    mean, vectors = principal(sample)
    pieces = data.cut((y - mean) @ vectors)
    deviations = ((sample - mean) @ vectors).std(0)
    for step in steps:
        size, decoded = 0, []
        for piece in pieces:
            c_hat = np.zeros_like(piece)
            # Components that vary by less than half a step would cost more than they give.
            for i in np.flatnonzero(deviations > step * deviations[0] / 2):
                one, c_hat[..., i] = code(piece[..., i].astype(np.float64), step * deviations[0])
                size += one
            decoded.append(c_hat.reshape(-1, piece.shape[-1]) @ vectors.T + mean)
        yield Coded(
            f"step {step:.5f}", size, 4 * vectors.size + 4 * len(mean), np.concatenate(decoded)
        )


def jpeg(c: NDArray[np.float64], step: float) -> tuple[int, NDArray]:
    """JPEG of 8 bits, from the least value to the largest, at the quality for a step."""
    import imagecodecs

    low, high = c.min(), c.max()
    unit = max(high - low, 1e-30) / 255
    # The steps of quality 50 are about 16 of 255; below that, they grow by 50 / quality.
    ratio = step / unit / 16
    quality = 100 - 50 * ratio if ratio < 1 else 50 / ratio
    data = imagecodecs.jpeg8_encode(
        np.rint((c - low) / unit).astype(np.uint8), level=int(np.clip(quality, 1, 100))
    )
    return len(data) + 8, imagecodecs.jpeg8_decode(data) * unit + low


def jpeg2000(c: NDArray[np.float64], step: float) -> tuple[int, NDArray]:
    """JPEG 2000, lossy: 16 bits around zero, at the noise of a step."""
    import imagecodecs

    unit = max(np.abs(c).max(), 1e-30) / 32767
    noise = step / np.sqrt(12) / unit
    data = imagecodecs.jpeg2k_encode(
        (np.rint(c / unit) + 32768).astype(np.uint16),
        level=cast(Any, float(20 * np.log10(65535 / noise))),
        reversible=False,
        codecformat="j2k",
    )
    return len(data) + 4, (imagecodecs.jpeg2k_decode(data).astype(np.float64) - 32768) * unit


STEPS = list(2.0 ** -np.arange(-1, 9, 0.5))

METHODS: dict[str, Callable[[Embeddings], Iterator[Coded]]] = {
    "coder.fit": transform,
    "int + zstd": integers,
    "PCA + int + zstd": pca_integers,
    "PQ": lambda data: quantisers(data, plain),
    "OPQ": lambda data: quantisers(data, optimised),
    "binary": binary,
    "SZ3": lambda data: error_bounded(data, sz3),
    "ZFP": lambda data: error_bounded(data, zfp),
    "PCA + JPEG": lambda data: pca_images(data, jpeg, STEPS),
    "PCA + JPEG 2000": lambda data: pca_images(data, jpeg2000, STEPS),
}


def raster(y: Values) -> Embeddings:
    """Areas of Blue Marble, every second of which is fitted to."""
    areas = np.split(y, 6, axis=1)
    return Embeddings(np.stack(areas[::2]), areas[1::2])


def like_tessera(data: Embeddings) -> Embeddings:
    """In at most 128 channels, as int8 with a scale for each cell."""

    def quantised(y: Values) -> Values:
        step = np.maximum(np.abs(y).max(-1, keepdims=True), 1e-30) / np.float32(127)
        return (np.rint(y / step).astype(np.int8) * step).astype(np.float32)

    return _projected(data, 128, quantised)


def like_alphaearth(data: Embeddings) -> Embeddings:
    """In at most 64 channels, of length 1, as int8 companded by a signed square root."""

    def quantised(y: Values) -> Values:
        y = y / np.maximum(np.linalg.norm(y, axis=-1, keepdims=True), 1e-30)
        q = np.clip(np.rint(np.sign(y) * np.sqrt(np.abs(y)) * 127.5), -127, 127)
        return (np.sign(q) * np.square(q / 127.5)).astype(np.float32)

    return _projected(data, 64, quantised)


def _projected(
    data: Embeddings, channels: int, quantised: Callable[[Values], Values]
) -> Embeddings:
    mean, vectors = principal(data.sample)
    basis = vectors[:, :channels]
    # A rotation, so that channels are as alike as those of a network.
    k = basis.shape[1]
    basis = basis @ np.linalg.qr(np.random.default_rng(0).normal(size=(k, k)))[0].astype(np.float32)
    return Embeddings(
        quantised((data.fit - mean) @ basis), [quantised((y - mean) @ basis) for y in data.pieces]
    )


def kinds(found: dict[str, NDArray]) -> Iterator[tuple[str, Embeddings]]:
    """What is measured of the embeddings of an encoder."""
    for name in ("mean_tokens", "class_tokens"):
        y = found[name]
        if y.shape[1]:
            chosen = np.arange(len(y)) % 5 < 3
            yield name.replace("_", " "), Embeddings(y[chosen], [y[~chosen]])
    y = found["tokens"]
    yield "tokens", Embeddings(y[::2], list(y[1::2]))
    areas = raster(found["raster"])
    yield "raster", areas
    yield "like TESSERA", like_tessera(areas)
    yield "like AlphaEarth", like_alphaearth(areas)


def measured(encoder: str, kind: str, method: str, data: Embeddings) -> list[dict[str, Any]]:
    """A row for each setting of a method."""
    y, rows = data.vectors, []
    for coded in METHODS[method](data):
        error = measure(y, coded.y_hat)
        row = {
            "encoder": encoder,
            "kind": kind,
            "channels": y.shape[1],
            "method": method,
            "setting": coded.setting,
            "bytes": f"{coded.size / len(y):.4f}",
            "once": coded.once,
            "relative_rms": f"{error.relative_rms:.5f}",
            "cosine": f"{error.mean_cosine:.6f}",
            "recall": f"{error.recall_at_10:.4f}",
        }
        print(*row.values(), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Write the file, a method at a time; what it has already is not measured again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    with np.load(arguments.file) as file:
        found = dict(file)
    known = set()
    if arguments.out.exists():
        with arguments.out.open(newline="") as file:
            known = {(row["encoder"], row["kind"], row["method"]) for row in csv.DictReader(file)}
    for kind, data in kinds(found):
        for method in arguments.methods:
            if (arguments.name, kind, method) in known:
                continue
            if arguments.kinds and kind not in arguments.kinds:
                continue
            rows = measured(arguments.name, kind, method, data)
            if not rows:
                continue
            with arguments.out.open("a", newline="") as out:
                writer = csv.DictWriter(out, list(rows[0]))
                if not known:
                    writer.writeheader()
                writer.writerows(rows)
            known.add((arguments.name, kind, method))


if __name__ == "__main__":
    main()
