"""Random mutations of valid blobs: each must end in a typed error or in what was encoded.

    python tests/fuzz/mutate.py [--count 1000000] [--seed 0]

After the blobs, a tenth of that number of mutants of refiner files are read (`run_refiners`).

Every golden blob is mutated in turn. Half of the mutants get a right checksum, as a hostile writer
would give them: those may decode to anything of an allowed shape, provided that encoding it gives
the same bytes. A mutant fails the run if it raises anything but a `BlobError`, takes longer than
a set time, needs more memory than a set bound, or returns a wrong embedding.
"""

import argparse
import collections
import resource
import sys
import time
import zlib
from pathlib import Path

import numpy as np

import coder
from coder import BlobError, EmbeddingCodec, FileError, InputError
from coder.format import container
from coder.format.blob import unpack
from coder.refiner import REFINER

GOLDEN = Path(__file__).parent.parent / "golden"
SECONDS = 2.0
BYTES_PER_ELEMENT = 40  # of the largest embedding that a codec allows
FIXED_BYTES = 64 << 20


def flip_bits(blob, rng, _):
    """One to eight flipped bits."""
    for _ in range(int(rng.integers(1, 9))):
        bit = int(rng.integers(8 * len(blob)))
        blob[bit // 8] ^= 1 << bit % 8


def set_bytes(blob, rng, _):
    """A run of random, 0 or 255 bytes."""
    start, run = int(rng.integers(len(blob))), int(rng.integers(1, 9))
    value = rng.choice([0, 255, -1])
    for i in range(start, min(start + run, len(blob))):
        blob[i] = int(rng.integers(256)) if value < 0 else int(value)


def cut(blob, rng, _):
    """Bytes missing, anywhere."""
    start = int(rng.integers(len(blob)))
    del blob[start : start + int(rng.integers(1, len(blob) - start + 1))]


def insert(blob, rng, _):
    """Bytes too many, anywhere."""
    at = int(rng.integers(len(blob) + 1))
    blob[at:at] = rng.bytes(int(rng.integers(1, 9)))


def splice(blob, rng, other):
    """The start of one blob, the end of another."""
    blob[int(rng.integers(len(blob))) :] = other[int(rng.integers(len(other))) :]


def renumber(blob, rng, _):
    """Another quality, height or width: small, large, in too many bytes."""
    numbers = [b"\0", b"\1", b"\x40", b"\x7f", b"\x80\x02", b"\x80\x80\x04", b"\xff" * 4 + b"\x0f"]
    numbers += [b"\x80\0", b"\x80" * 5 + b"\1", b"\x80\x80\x80\x80\x80\x80\x01"]
    start = int(rng.integers(5, 8))
    blob[start : start + 1] = numbers[int(rng.integers(len(numbers)))]


MUTATIONS = (flip_bits, set_bytes, cut, insert, splice, renumber)


def run(count: int, seed: int) -> collections.Counter:
    """Outcomes of `count` mutants; raises on the first that is not as it should be."""
    rng = np.random.default_rng(seed)
    cases = []
    for path in sorted(GOLDEN.glob("*.blob")):
        codec = coder.load(path.with_suffix(".codec.safetensors"))
        cases.append((codec, path.read_bytes()))
        codec.decode(cases[-1][1])
    whole = {blob for _, blob in cases}
    largest = max(codec.channels * codec.max_tokens for codec, _ in cases)
    bound = resident_bytes() + FIXED_BYTES + BYTES_PER_ELEMENT * largest
    outcomes, slowest = collections.Counter(), 0.0
    for i in range(count):
        codec, blob = cases[i % len(cases)]
        mutant = bytearray(blob)
        for _ in range(int(rng.integers(1, 3))):
            kind = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
            if mutant:
                kind(mutant, rng, cases[int(rng.integers(len(cases)))][1])
        resealed = i // len(cases) % 2 == 1
        if resealed:
            mutant[-4:] = zlib.crc32(mutant[:-4]).to_bytes(4, "little")
        start = time.perf_counter()
        try:
            symbols, grid = codec.decode_symbols(bytes(mutant))
        except BlobError as error:
            outcomes[type(error).__name__] += 1
        else:
            if bytes(mutant) in whole:  # perhaps that of another file with the same codec
                outcomes["unchanged after all"] += 1
            elif not resealed:
                raise AssertionError(f"mutant {i} decoded: {mutant.hex()}")
            elif again(codec, bytes(mutant), symbols, grid) != mutant:
                raise AssertionError(f"mutant {i} is a second blob of its symbols: {mutant.hex()}")
            else:
                outcomes["forged, decoded to something"] += 1
        seconds = time.perf_counter() - start
        slowest = max(slowest, seconds)
        if seconds > SECONDS:
            raise AssertionError(f"mutant {i} took {seconds:.1f} s: {mutant.hex()}")
        if resident_bytes() > bound:
            raise AssertionError(f"mutant {i} or one before needed > {bound >> 20} MiB")
    sys.stdout.write(
        f"slowest {1e3 * slowest:.0f} ms; at most {resident_bytes() >> 20} MiB resident, "
        f"bound {bound >> 20} MiB\n"
    )
    return outcomes


def run_refiners(count: int, seed: int) -> collections.Counter:
    """Outcomes of `count` mutants of refiner files: each ends in a FileError, or refines.

    Half of them are whole files with a right digest, whose tensors or codecs are wrong.
    """
    rng = np.random.default_rng(seed)
    golden = [path.read_bytes() for path in sorted(GOLDEN.glob("*.refiner.safetensors"))]
    outcomes, slowest = collections.Counter(), 0.0
    for i in range(count):
        data = golden[i % len(golden)]
        if i // len(golden) % 2:
            tensors, content = (dict(part) for part in container.from_bytes(data, REFINER))
            name = str(rng.choice(sorted(tensors)))
            change = CHANGES[int(rng.integers(len(CHANGES)))]
            change(tensors, content, name, rng)
            mutant = container.to_bytes(REFINER, tensors, content)
        else:
            array = bytearray(data)
            for _ in range(int(rng.integers(1, 3))):
                if array:
                    MUTATIONS[int(rng.integers(len(MUTATIONS)))](array, rng, golden[-1])
            mutant = bytes(array)
        start = time.perf_counter()
        try:
            refiner = coder.Refiner.from_bytes(mutant)
        except FileError:
            outcomes["FileError"] += 1
        else:
            if mutant in golden:
                outcomes["unchanged after all"] += 1
            elif i // len(golden) % 2 == 0:
                raise AssertionError(f"mutant {i} of a refiner was read: {mutant.hex()}")
            outcomes[refined(refiner)] += 1
        slowest = max(slowest, time.perf_counter() - start)
    if slowest > SECONDS:
        raise AssertionError(f"a mutant of a refiner took {slowest:.1f} s")
    return outcomes


def refined(refiner: coder.Refiner) -> str:
    """What comes of using a refiner that could be read, with each codec that it names."""
    y_hat, outcome = np.ones((7, refiner.channels), np.float32), "refines no codec"
    for fingerprint in refiner.codecs:
        try:
            with np.errstate(all="ignore"):
                y = refiner.refine(y_hat, (2, 3), bytes.fromhex(fingerprint))
        except (InputError, ValueError):  # ValueError: the name of the codec is no fingerprint
            continue
        if y.shape != y_hat.shape or y.dtype != np.float32 or not (y[0] == 1).all():
            raise AssertionError(f"{refiner} returns {y.dtype} {y.shape}")
        outcome = "refines"
    return outcome


def reshape(tensors, _, name, rng):
    """Another shape, of the same numbers or fewer."""
    values = tensors[name].ravel()
    shapes = [(), (0,), values.shape, (1, values.size), (values.size, 1), (values.size // 2,)]
    shape = shapes[int(rng.integers(len(shapes)))]
    tensors[name] = np.resize(values, shape) if values.size else np.zeros(shape, values.dtype)


def retype(tensors, _, name, rng):
    """Another type."""
    kinds = ("f2", "f4", "f8", "i4", "u1", "?")
    tensors[name] = tensors[name].astype(kinds[int(rng.integers(len(kinds)))])


def extremes(tensors, _, name, rng):
    """Numbers that are very large or small, zero, negative, NaN or infinite."""
    values = tensors[name].copy()
    if values.dtype.kind == "i":
        edges = [0, -1, np.iinfo(values.dtype).max, 1]
    else:
        most = np.finfo(values.dtype).max
        edges = [0, -1, most, -most, 1e-7, np.nan, np.inf]
    if values.size:
        values.flat[int(rng.integers(values.size))] = edges[int(rng.integers(len(edges)))]
    tensors[name] = values


def forget(tensors, content, name, rng):
    """A tensor that is lost, or has another name; or a key of `content` that nobody knows."""
    values = tensors.pop(name)
    if rng.integers(2):
        tensors["more"] = values
    elif rng.integers(2):
        tensors[name] = values
        content["more"] = 1


def other_codecs(_, content, __, rng):
    """Codecs of qualities that there are not, or no codecs."""
    kinds: list = [-2, 2, 1 << 40, 1.0, True, None, "0", [0], {}]
    whole: list = [None, [], {}, {"": 0}, {"zz": 0}, {"00": 0}, "codecs"]
    if rng.integers(2):
        content["codecs"] = whole[int(rng.integers(len(whole)))]
        return
    codecs = dict(content["codecs"])
    name = sorted(codecs)[int(rng.integers(len(codecs)))]
    codecs[name] = kinds[int(rng.integers(len(kinds)))]
    content["codecs"] = codecs


CHANGES = (reshape, retype, extremes, forget, other_codecs)


def again(codec: EmbeddingCodec, blob: bytes, symbols: np.ndarray, grid: tuple[int, int]) -> bytes:
    """The blob of the symbols of a blob, at its quality."""
    return codec.at(unpack(blob)[0].rate_index).encode_symbols(symbols, grid)


def resident_bytes() -> int:
    """The most memory this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run and print counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    outcomes = run(arguments.count, arguments.seed)
    outcomes += run_refiners(arguments.count // 10, arguments.seed)
    for name, number in outcomes.most_common():
        print(f"{number:10,d} {name}")
    print(
        f"{outcomes.total():10,d} mutants in {time.perf_counter() - start:.0f} s, all as expected"
    )


if __name__ == "__main__":
    main()
