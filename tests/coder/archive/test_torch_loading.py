"""PyTorch's DataLoader reads an archive through `coder.open`, in worker processes."""

import os
import subprocess

import numpy as np
import pytest
from archive_cases import BAD, COUNT, written

import coder

TORCH = os.environ.get("NEC_TORCH_PYTHON")
# As docs/consumer.md has it, and then what came out.
PROGRAM = """
import sys

import numpy as np
import torch
from torch.utils.data import DataLoader, StackDataset, Subset

import coder




if __name__ == "__main__":
    path, out, method = sys.argv[1:]
    embeddings = coder.open(path)
    labels = torch.from_numpy(embeddings.labels).long()
    usable = (embeddings.valid & (embeddings.labels >= 0)).nonzero()[0]
    pairs = Subset(StackDataset(embeddings, labels), usable.tolist())
    if method != "none":
        embeddings[usable[:9]]  # threads of zarr, which a fork does not copy
    loader = DataLoader(
        pairs, batch_size=5, shuffle=True, num_workers=2 * (method != "none"),
        multiprocessing_context=None if method == "none" else method,
        generator=torch.Generator().manual_seed(0),
    )
    assert all(y.dtype == torch.float32 and len(y) == len(t) for y, t in loader)
    parts = list(loader)
    np.savez(out, y=torch.cat([y for y, _ in parts]), t=torch.cat([t for _, t in parts]))
    try:
        list(DataLoader(StackDataset(embeddings, labels), 5, num_workers=1,
                        multiprocessing_context=None if method == "none" else method))
    except coder.InputError as error:
        assert "image 0 has no embedding: no image: 0.png" in str(error), error
    else:
        raise AssertionError("an image without an embedding was read")
    assert not {"jax", "nec_jax"} & set(sys.modules)
"""


@pytest.mark.skipif(TORCH is None, reason="`make test-torch` sets NEC_TORCH_PYTHON")
@pytest.mark.parametrize("method", ["none", "fork", "spawn"])
def test_a_data_loader_reads_pairs(tmp_path, method):
    written(tmp_path / "a.zarr", BAD)
    (tmp_path / "program.py").write_text(PROGRAM)
    call = [str(TORCH), "-W", "error", "program.py", "a.zarr", "found.npz", method]
    subprocess.run(call, check=True, cwd=tmp_path, timeout=300)
    found = np.load(tmp_path / "found.npz")
    good = [i for i in range(COUNT) if i not in BAD]
    assert sorted(found["t"].tolist()) == good  # the label of an image is its number
    assert found["t"].tolist() != good
    np.testing.assert_array_equal(found["y"], coder.open(tmp_path / "a.zarr")[found["t"]])
