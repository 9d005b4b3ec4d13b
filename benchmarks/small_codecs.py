"""Codecs for few vectors: bytes of codec and payload together, and where they are.

    python -m benchmarks.small_codecs VECTORS [--counts 100 417 2000]

VECTORS is a .npy file float [N, D]. For each count, codecs are fitted to so many of them, evenly
spread: one for these vectors alone, and one for many, as `coder.fit(count=)` makes them. At equal
squared error of these vectors: the bytes of the codec of one quality and of the payload (as the
tables estimate it), with the loss of variance that the file's quality has.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import coder

MANY = 1 << 40
LOST = (0.1, 0.03, 0.01, 0.003)


def measured(codec: coder.QualityLadder, y: NDArray[np.float32]) -> NDArray[np.float64]:
    """[R, 3]: the variance lost, and bytes of codec and payload, of each quality."""
    grid, rows = (len(y), 1), []
    spread = float(np.square(y - y.mean(0)).sum())
    for one in map(codec.at, range(codec.num_qualities)):
        q = one.quantise(y, grid)
        lost = float(np.square(one.dequantise(q, grid) - y).sum()) / spread
        rows.append((lost, one.codec_bytes, one.estimate_bits(q, grid) / 8))
    return np.array(rows)


def parts(codec: coder.TransformCodec) -> str:
    """The bytes of the tensors of a codec file."""
    tensors, _ = codec.to_parts()
    return ", ".join(
        f"{name} {tensor.nbytes:,}"
        for name, tensor in sorted(tensors.items(), key=lambda one: -one[1].nbytes)
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 417, 2000])
    arguments = parser.parse_args()
    values = np.load(arguments.vectors, mmap_mode="r")
    print("| vectors | lost | codec for them | payload | codec for many | payload | total |")
    print("| ---: " * 7 + "|")
    for count in arguments.counts:
        y = np.asarray(values[np.arange(count) * len(values) // count], np.float32)
        ladders = [coder.fit(y, count=number) for number in (count, MANY)]
        curves = [measured(codec, y)[::-1] for codec in ladders]
        for lost in LOST:
            at = [
                [float(np.interp(np.log(lost), np.log(c[:, 0]), c[:, i])) for i in (1, 2)]
                for c in curves
            ]
            cells = " | ".join(f"{value:,.0f}" for pair in at for value in pair)
            print(f"| {count:,} | {lost:.1%} | {cells} | {sum(at[0]) / sum(at[1]) - 1:+.0%} |")
        print(f"  {count:,}, at the default quality: {parts(ladders[0].at())}")


if __name__ == "__main__":
    main()
