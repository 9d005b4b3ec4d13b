"""Coverage-guided fuzzing with atheris: `make fuzz`, or

    python tests/fuzz/coverage.py [--seconds 300] [--corpus runs/fuzz/corpus]

It runs in rounds, each a process of its own on the corpus of those before: atheris 3.0 loses the
result of every comparison of arrays, so that a process grows by 100 kB a run.

The first byte chooses what the rest is: a blob, the body of a blob that gets a right checksum, the
payload of a blob whose whole header is right, a codec file, or a refiner file.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import atheris

import coder

with atheris.instrument_imports(include=["coder"]):
    from coder import BlobError, FileError
    from coder.format.blob import unpack

ROUND = 20_000
GOLDEN = Path(__file__).parent.parent / "golden"
CASES = [
    (coder.load(path.with_suffix(".codec.safetensors")), path.read_bytes())
    for path in sorted(GOLDEN.glob("*.blob"))
]


def sealed(body: bytes) -> bytes:
    """A blob with a right checksum."""
    return body + zlib.crc32(body).to_bytes(4, "little")


def one_input(data: bytes) -> None:
    """Anything but a typed error, or a second blob of the same symbols, is a crash."""
    if not data:
        return
    kind, rest = data[0] % 5, data[1:]
    if kind >= 3:
        with contextlib.suppress(FileError):
            (coder.from_bytes if kind == 3 else coder.Refiner.from_bytes)(rest)
        return
    codec, blob = CASES[data[0] // 5 % len(CASES)]
    if kind == 1:
        rest = sealed(rest)
    elif kind == 2:
        header = 9 if codec.quality > 127 else 8
        rest = sealed(blob[:header] + rest)
    try:
        symbols, grid = codec.decode_symbols(rest)
    except BlobError:
        return
    one = codec.at(unpack(rest)[0].rate_index)
    if one.encode_symbols(symbols, grid) != rest:
        raise AssertionError("two blobs decode to the same symbols")


def write_corpus(folder: Path) -> None:
    """The golden blobs, codec files and refiner files, as a start."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (codec, blob) in enumerate(CASES):
        header = 9 if codec.quality > 127 else 8
        inputs = (blob, blob[:-4], blob[header:-4], codec.to_bytes())
        for kind, data in enumerate(inputs):
            (folder / f"golden-{i}-{kind}").write_bytes(bytes([5 * i + kind]) + data)
    for i, path in enumerate(sorted(GOLDEN.glob("*.refiner.safetensors"))):
        (folder / f"golden-{i}-4").write_bytes(bytes([4]) + path.read_bytes())


def fuzz(corpus: Path, seconds: float) -> None:
    """Rounds until the time is over; ends the process with the fuzzer's status if one finds."""
    write_corpus(corpus)
    start, runs = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        command = [sys.executable, __file__, "--corpus", str(corpus)]
        environment = os.environ | {"NEC_FUZZ_ROUND": "1"}
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        runs += ROUND
    last = next(line for line in reversed(done.stderr.splitlines()) if "cov:" in line)
    print(f"{runs:,d} runs in {time.monotonic() - start:.0f} s, no crash; {last.split('exec')[0]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", type=Path, default=Path("runs/fuzz/corpus"))
    parser.add_argument("--seconds", type=float, default=300)
    arguments = parser.parse_args()
    if "NEC_FUZZ_ROUND" not in os.environ:
        fuzz(arguments.corpus, arguments.seconds)
        sys.exit()
    options = [f"-runs={ROUND}", "-max_len=4096", "-rss_limit_mb=4096", "-timeout=5"]
    options += ["-malloc_limit_mb=512", f"-artifact_prefix={arguments.corpus}-"]
    atheris.Setup([sys.argv[0], *options, str(arguments.corpus)], one_input)
    atheris.Fuzz()
