"""PyTorch's side of `benchmarks.encode`; runs in an environment of its own.

    peer_encode.py FOLDER CASE               # writes transformers' ViTMAE, random, as a checkpoint
    peer_encode.py FOLDER SECONDS THREADS    # times it with CompressAI's EntropyBottleneck

The second reads FOLDER/problem.npz: images, and the steps and pmfs of the embedding's channels.
"""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers as tf
from compressai._CXX import pmf_to_quantized_cdf
from compressai.entropy_models import EntropyBottleneck
from peer import best_seconds  # beside this file, which runs as a script

BATCHES = (1, 8, 16)  # batch sizes to try; the fastest counts


def make(folder: Path, case: dict) -> None:
    """Write a model whose encoder masks nothing."""
    config = tf.ViTMAEConfig(
        hidden_size=case["width"],
        num_hidden_layers=case["depth"],
        num_attention_heads=case["heads"],
        intermediate_size=4 * case["width"],
        image_size=case["image_size"],
        patch_size=case["patch"],
        layer_norm_eps=1e-6,
        mask_ratio=0.0,
    )
    torch.manual_seed(0)
    model = tf.ViTMAEModel(config)
    model.embeddings.position_embeddings.data.normal_(std=0.02)  # they are zero otherwise
    model.save_pretrained(folder)


def bottleneck_of(problem: dict[str, np.ndarray]) -> EntropyBottleneck:
    """CompressAI's bottleneck with the given pmfs in its 16 bits; it codes y / steps."""
    bottleneck = EntropyBottleneck(len(problem["steps"]))
    pmfs = np.split(problem["pmf"], np.cumsum(problem["sizes"])[:-1])
    # CompressAI appends the tail mass as one more symbol, its escape.
    rows = [pmf_to_quantized_cdf([*p.tolist(), float(problem["escape"])], 16) for p in pmfs]
    width = max(len(row) for row in rows)
    bottleneck._quantized_cdf = torch.tensor(
        [row + [0] * (width - len(row)) for row in rows], dtype=torch.int32
    )
    bottleneck._cdf_length = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    bottleneck._offset = torch.tensor(problem["first"], dtype=torch.int32)
    medians = torch.tensor(problem["offsets"] / problem["steps"])
    bottleneck.quantiles.data[:, 0, 1] = medians
    return bottleneck


@torch.inference_mode()
def best(folder: Path, seconds: float, threads: int) -> dict[str, float]:
    """Images per second, the batch size that gave them, and mean bytes."""
    torch.set_num_threads(threads)
    problem = dict(np.load(folder / "problem.npz"))
    model = tf.ViTMAEModel.from_pretrained(folder).eval()
    bottleneck = bottleneck_of(problem)
    gain = 1 / torch.tensor(problem["steps"])
    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    images = problem["images"]
    tokens = (model.config.image_size // model.config.patch_size) ** 2
    # The order of the patches is that of the noise.
    noise = torch.arange(tokens).float()[None]

    def encode(batch: int) -> list[bytes]:
        blobs = []
        for start in range(0, len(images), batch):
            x = torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2).float()
            y = model((x - mean) / std, noise=noise.expand(len(x), -1)).last_hidden_state
            blobs += bottleneck.compress((y * gain).transpose(1, 2).unsqueeze(-1))
        return blobs

    size = float(np.mean([len(blob) for blob in encode(8)]))
    share = seconds / len(BATCHES)
    times = {batch: best_seconds(functools.partial(encode, batch), share) for batch in BATCHES}
    batch = min(times, key=lambda batch: times[batch])
    return {"images_per_s": len(images) / times[batch], "batch": batch, "bytes": size}


def main() -> None:
    """Print one line of JSON."""
    tf.utils.logging.disable_progress_bar()
    folder = Path(sys.argv[1])
    if len(sys.argv) == 3:
        make(folder, json.loads(sys.argv[2]))
        print("{}")
    else:
        print(json.dumps(best(folder, float(sys.argv[2]), int(sys.argv[3]))))


if __name__ == "__main__":
    main()
