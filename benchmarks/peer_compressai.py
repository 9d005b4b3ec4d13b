"""CompressAI's side of `benchmarks.coder`; runs in an environment of its own.

Calls the C++ rANS as CompressAI's `EntropyModel.compress` and `decompress` do for each image:
symbols, indexes, cumulative tables of 16 bits, lengths and offsets from tensors to Python lists,
and the decoded list to a tensor. `bare_*` is the C++ call alone, with all lists made beforehand.
"""

import json
import sys
import time

import numpy as np
import torch
from compressai import ans
from compressai._CXX import pmf_to_quantized_cdf


def main() -> None:
    """Print times and bytes as one line of JSON."""
    problem = np.load(sys.argv[1])
    repeats = int(sys.argv[2])
    torch.set_num_threads(1)
    ends = np.cumsum(problem["sizes"])
    pmfs = np.split(problem["pmf"], ends[:-1])
    # CompressAI appends the tail mass as one more symbol, its escape.
    rows = [pmf_to_quantized_cdf([*pmf.tolist(), 1e-9], 16) for pmf in pmfs]
    width = max(len(row) for row in rows)
    cdf = torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.int32)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    offsets = torch.tensor([-(len(pmf) // 2) for pmf in pmfs], dtype=torch.int32)
    symbols = torch.tensor(np.ascontiguousarray(problem["symbols"].T))
    indexes = torch.arange(len(symbols), dtype=torch.int32)[:, None].expand(symbols.shape)
    outputs = torch.empty(symbols.shape)
    encoder, decoder = ans.RansEncoder(), ans.RansDecoder()

    def tables() -> tuple[list, list, list]:
        return (
            cdf.tolist(),
            lengths.reshape(-1).int().tolist(),
            offsets.reshape(-1).int().tolist(),
        )

    def encode() -> bytes:
        return encoder.encode_with_indexes(
            symbols.reshape(-1).int().tolist(), indexes.reshape(-1).int().tolist(), *tables()
        )

    def decode() -> None:
        values = decoder.decode_with_indexes(blob, indexes.reshape(-1).int().tolist(), *tables())
        outputs[:] = torch.tensor(values, dtype=outputs.dtype).reshape(outputs.shape)

    blob = encode()
    decode()
    if not torch.equal(outputs.int(), symbols):
        raise RuntimeError("the peer's round trip is not exact")
    lists = (symbols.reshape(-1).tolist(), indexes.reshape(-1).tolist(), *tables())
    runs = {
        "peer_encode_ms": encode,
        "peer_decode_ms": decode,
        "bare_encode_ms": lambda: encoder.encode_with_indexes(*lists),
        "bare_decode_ms": lambda: decoder.decode_with_indexes(blob, *lists[1:]),
    }
    row = {"peer_bytes": len(blob)}
    for name, run in runs.items():
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        row[name] = 1e3 * min(times)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
