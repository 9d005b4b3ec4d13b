"""CompressAI's side of `benchmarks.coder`; runs in an environment of its own.

Calls the C++ rANS as CompressAI's `EntropyBottleneck.compress` and `decompress` do: Python lists
of symbols and table indices, tables of 16 bits.
"""

import json
import sys
import time

import numpy as np
from compressai import ans
from compressai._CXX import pmf_to_quantized_cdf


def main() -> None:
    """Print times and bytes as one line of JSON."""
    problem = np.load(sys.argv[1])
    repeats = int(sys.argv[2])
    ends = np.cumsum(problem["sizes"])
    pmfs = np.split(problem["pmf"], ends[:-1])
    symbols = problem["symbols"]
    # CompressAI appends the tail mass as one more symbol, its escape.
    cdfs = [pmf_to_quantized_cdf([*pmf.tolist(), 1e-9], 16) for pmf in pmfs]
    lengths = [len(cdf) for cdf in cdfs]
    width = max(lengths)
    cdfs = [cdf + [0] * (width - len(cdf)) for cdf in cdfs]
    offsets = [-(len(pmf) // 2) for pmf in pmfs]
    flat = symbols.T.reshape(-1)
    indexes = np.repeat(np.arange(symbols.shape[1]), symbols.shape[0])

    def encode() -> bytes:
        encoder = ans.RansEncoder()
        return encoder.encode_with_indexes(flat.tolist(), indexes.tolist(), cdfs, lengths, offsets)

    blob = encode()

    def decode() -> list[int]:
        decoder = ans.RansDecoder()
        return decoder.decode_with_indexes(blob, indexes.tolist(), cdfs, lengths, offsets)

    if decode() != flat.tolist():
        raise RuntimeError("the peer's round trip is not exact")
    row = {"peer_bytes": len(blob)}
    for name, run in (("encode", encode), ("decode", decode)):
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        row[f"peer_{name}_ms"] = 1e3 * min(times)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
