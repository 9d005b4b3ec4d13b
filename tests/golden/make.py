"""Wrote the golden files, once for each format version: `python tests/golden/make.py`.

A case is `NAME.codec.safetensors`, `NAME.blob` and `NAME.symbols.npy` (int32 [n, D or K]). Files
that are there are never written again: a codec or blob that has to change means a new format
version. `REFINER.refiner.safetensors` is a refiner. `NAME.refined.npy` (float32 [n, D]) is the
embedding that it makes of the blob NAME; readers agree with it to 1e-5 of its largest magnitude.
"""

import io
import sys
from pathlib import Path

import numpy as np

from coder import EmbeddingCodec, QualityLadder, Refiner, ScalarCodec, Tables, load
from coder.codecs import NOT_CODED
from coder.entropy import quantise_pmf
from coder.transform import Transform

HERE = Path(__file__).parent
INT32 = np.iinfo(np.int32)


def pseudo_random(count: int, seed: int) -> np.ndarray:
    """Integers below 2^31 from a linear congruential generator: the same with every NumPy."""
    values = np.empty(count, np.int64)
    for i in range(count):
        seed = (seed * 1103515245 + 12345) % (1 << 31)
        values[i] = seed
    return values


def codec(tables: list[tuple[int, np.ndarray]], grid: list[int], class_token=None, **settings):
    """A codec of (minimum, pmf with the escape last), its layouts, and settings."""
    weights = [quantise_pmf(pmf) for _, pmf in tables]
    low = [low for low, _ in tables]
    return ScalarCodec(
        np.linspace(-1, 1, len(grid), dtype=np.float32),
        np.full(len(grid), 0.5, np.float32),
        Tables(
            np.array(low, np.int32),
            np.array([w.size for w in weights], np.int32),
            np.concatenate(weights),
        ),
        np.array(grid),
        None if class_token is None else np.array(class_token),
        **settings,
    )


def peaked(size: int, event: float) -> np.ndarray:
    """A pmf whose middle entry has 1 - event, the others falling off from it."""
    pmf = 1.0 / (1 + np.abs(np.arange(size) - size // 2)) ** 2
    pmf[size // 2] = 0
    pmf *= event / pmf.sum()
    pmf[size // 2] = 1 - event
    return pmf


def draw(coded: ScalarCodec, tokens: int, seed: int, busy: int = 0) -> np.ndarray:
    """Symbols [n, D], each from its own table; `busy` of 64 are drawn from all its entries."""
    layouts = [coded.grid_layout] * tokens
    if coded.class_layout is not None:
        layouts.insert(0, coded.class_layout)
    return draw_from(coded.tables, np.stack(layouts), seed, busy)


def draw_from(tables: Tables, which: np.ndarray, seed: int, busy: int = 0) -> np.ndarray:
    """Symbols, each from the table that `which` [n, D] names; 0 where that is 255."""
    numbers = (pseudo_random(2 * which.size, seed) >> 7).reshape(*which.shape, 2).tolist()
    q = np.zeros(which.shape, np.int32)
    for (i, d), k in np.ndenumerate(which):
        if k == NOT_CODED:
            continue
        number, other = numbers[i][d]
        weights = tables.weights_of(int(k))
        if other % 64 < busy:
            index = number % weights.size
        else:
            index = int(np.searchsorted(np.cumsum(weights, dtype=np.int64), number, "right"))
        q[i, d] = tables.minimum[k] + index
    return q


def ladder(*, class_token: bool, spatial: bool) -> QualityLadder:
    """Two qualities of a Hadamard transform of eight channels, with tables of all kinds."""
    basis = np.array([[1]], np.int8)
    for _ in range(3):
        basis = np.block([[basis, basis], [basis, -basis]])
    line = np.arange(8, dtype=np.float32)
    transform = Transform(
        line - 3,
        (1 + line / 4).astype(np.float32),
        basis,
        np.full(8, 8**-0.5, np.float32),
        5 - line if class_token else None,
        (2 - line / 8).astype(np.float32) if class_token else None,
        spatial=spatial,
    )
    events = [2.0**-n for n in (1, 2, 5, 6, 9, 16)]
    weights = [quantise_pmf(peaked(2 * n + 6, event)) for n, event in enumerate(events)]
    tables = Tables(
        np.array([-(w.size // 2) for w in weights], np.int32),
        np.array([w.size for w in weights], np.int32),
        np.concatenate(weights),
    )
    columns = 8 + class_token
    chosen = (pseudo_random(16 * columns, 7) >> 10).reshape(2, 8, columns) % 8
    chosen[0, 2] = 7  # a component that the smaller quality leaves out
    layout = np.where(chosen < len(events), chosen, NOT_CODED).astype(np.uint8)
    shifts = np.array([0.0, 0.05, 0.1, -0.1, 0.2, 0.3])
    return QualityLadder(transform, np.array([1.5, 0.75]), layout, tables, shifts, 4096)


def cases():
    """name -> (codec, symbols, grid)"""
    sizes = [2, 3, 4, 5, 17, 64, 257, 1000, 5000]
    tables = [(-(s // 2), peaked(s, 0.6)) for s in sizes]
    coded = codec(tables, list(range(9)), list(range(9))[::-1])
    yield "sizes", coded, draw(coded, 20, 1, busy=8), (4, 5)

    tables = [(-1, peaked(4, 0.5)), (INT32.min, peaked(2, 0.5)), (INT32.max - 2, peaked(3, 0.5))]
    tables += [(0, peaked(5, 2.0**-9)), (-7, peaked(2, 2.0**-24))]
    coded = codec(tables, [0, 1, 2, 3, 4], max_tokens=9, quality=300)
    edges = [INT32.min, INT32.min + 1, -300, -2, -1, 0, 1, 2, 70_000, INT32.max - 1, INT32.max]
    chosen = pseudo_random(45, 5) // 1024 % len(edges)
    yield "escapes", coded, np.array(edges, np.int32)[chosen].reshape(9, 5), (1, 9)

    tables = [(0, peaked(2, 2.0**-24)), (3, peaked(2, 2.0**-24)), (-4, peaked(9, 2.0**-7))]
    coded = codec(tables, [0] * 20 + [1] * 20 + [2] * 8, [1] * 24 + [2] * 24)
    yield (
        "dead",
        coded,
        np.concatenate(
            [
                [coded.tables.minimum[coded.class_layout]],
                np.repeat([[0] * 20 + [3] * 20 + [0] * 8], 196, axis=0),
            ]
        ).astype(np.int32),
        (14, 14),
    )
    yield "woken", coded, draw(coded, 196, 9), (14, 14)

    tables = [(-2, peaked(6, 0.4)), (-3, peaked(8, 2.0**-6)), (0, peaked(2, 2.0**-20))]
    coded = codec(tables, [0, 1, 2, 1])
    yield "one-token", coded, draw(coded, 1, 3), (1, 1)

    events = [2.0**-n for n in (3, 5, 6, 9, 16)]
    coded = codec([(-4, peaked(10, event)) for event in events], [0, 1, 2, 3, 4, 2])
    q = draw(coded, 4096, 4)
    q[1000:1300, 2] = draw(coded, 300, 5, busy=40)[:, 2]
    yield "4096-tokens", coded, q, (64, 64)

    for name, grid, spatial, quality in (
        ("transform", (17, 6), True, None),
        ("ladder", (3, 3), True, 0),
        ("channels-alone", (70, 1), False, 1),
    ):
        whole = ladder(class_token=name != "channels-alone", spatial=spatial)
        one = whole.at(quality or 0)
        which = one.layout.T[one.transform.columns(grid)]
        coded = one if quality is None else whole
        yield name, coded, draw_from(one.tables, which, 6, busy=2), grid


REFINED = {"transform": "ladder", "ladder": "ladder", "channels-alone": "channels-alone"}
"""Cases with a transform, and the refiner of each."""


def refiners():
    """name -> refiner"""
    for name, spatial, hidden, around in (
        ("ladder", True, 6, 3),
        ("channels-alone", False, 5, 0),
    ):
        whole = ladder(class_token=spatial, spatial=spatial)
        d, r = whole.channels, whole.num_qualities
        m = d - 1
        shapes = {"basis": (d, m), "token": (m, hidden), "context": (2, around, hidden)}
        shapes |= {"bias": (r, hidden), "out": (hidden, m), "offset": (m,)}
        drawn = (pseudo_random(int(sum(np.prod(shape) for shape in shapes.values())), 8) >> 9) % 257
        parts, start = {}, 0
        for part, shape in shapes.items():
            # Exact in float16.
            values = (drawn[start : start + np.prod(shape)].reshape(shape) - 128) / 128
            parts[part] = values.astype(np.float32 if part in ("bias", "offset") else np.float16)
            start += np.prod(shape)
        codecs = {whole.fingerprint.hex(): -1}
        for quality in range(r):
            one = whole.at(quality)
            codecs |= {one.fingerprint.hex(): quality, one.split()[0].fingerprint.hex(): quality}
        line = np.arange(d, dtype=np.float32)
        settings = {"mean": line - 2, "scale": 2 + line / 8, "gains": np.array([0.75, 0.5], "f4")}
        settings |= {"inputs": np.array([2, m], "i4"), "outputs": np.array([m - 1, m], "i4")}
        yield name, Refiner(codecs, **settings, **parts)


def encoded(coded: EmbeddingCodec, symbols: np.ndarray, grid: tuple[int, int]) -> bytes:
    """The blob; of a ladder, that of the quality that has as many components."""
    qualities = (
        [coded.at(quality) for quality in range(coded.num_qualities)]
        if coded.num_qualities > 1
        else [coded.at()]
    )
    one = next(one for one in qualities if one.symbols_per_token == symbols.shape[1])
    return one.encode_symbols(symbols, grid)


def main() -> None:
    """Write what is missing."""
    for name, coded, symbols, grid in cases():
        paths = [HERE / f"{name}.{end}" for end in ("codec.safetensors", "blob", "symbols.npy")]
        if any(path.exists() for path in paths):
            sys.stdout.write(f"{name}: there already, left alone\n")
            continue
        coded.save(paths[0])
        blob = encoded(coded, symbols, grid)
        paths[1].write_bytes(blob)
        np.save(paths[2], symbols.astype("<i4"))
        sys.stdout.write(f"{name}: {len(blob)} bytes\n")
    made = dict(refiners())
    files = {HERE / f"{name}.refiner.safetensors": one.to_bytes() for name, one in made.items()}
    for name, refiner in REFINED.items():
        coded = load(HERE / f"{name}.codec.safetensors").with_refiner(made[refiner])
        y = coded.decode((HERE / f"{name}.blob").read_bytes(), refine=True)
        file = io.BytesIO()
        np.save(file, y)
        files[HERE / f"{name}.refined.npy"] = file.getvalue()
    for path, data in files.items():
        if path.exists():
            sys.stdout.write(f"{path.name}: there already, left alone\n")
            continue
        path.write_bytes(data)
        sys.stdout.write(f"{path.name}: {len(data)} bytes\n")


if __name__ == "__main__":
    main()
