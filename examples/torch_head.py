"""Train a classifier in PyTorch on an archive of embeddings, with and without a decoder block.

    python examples/torch_head.py ARCHIVE.zarr [--block BLOCK.safetensors] [--epochs 40]

Needs torch and nec-jax's base install, no JAX. ARCHIVE is an archive of `nec encode`, with
labels; BLOCK is a file of `nec_jax.export_decoder_block` for the same model. Every fifth image is
held out. Images without a label or an embedding are left out. The block helps most at the lowest
qualities: see docs/consumer.md.
"""

import argparse
from collections.abc import Callable

import numpy as np
import safetensors
import torch
from torch import nn
from torch.nn import functional as F

from coder import CodecError, archive


def decoder_block(path: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Decoded embeddings [B, n, D] -> features of the grid's tokens [B, T, W]."""
    with safetensors.safe_open(path, "pt") as file:
        t = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = file.metadata()
    heads, epsilon = int(facts["heads"]), float(facts["epsilon"])

    def dense(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, t[f"{name}.weight"], t[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], epsilon)

    def features(y_hat: torch.Tensor) -> torch.Tensor:
        x = dense(y_hat, "embed") + t["positions"]
        b, n, w = x.shape
        qkv = dense(norm(x, "block.norm1"), "block.attn.qkv")
        q, k, v = qkv.reshape(b, n, 3, heads, w // heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, w)
        x = x + dense(attended, "block.attn.proj")
        hidden = F.gelu(dense(norm(x, "block.norm2"), "block.mlp.fc1"))
        x = x + dense(hidden, "block.mlp.fc2")
        return norm(x, "norm")[:, int(facts["class_token"]) :]

    return features


class AttentionHead(nn.Module):
    """One learned query attends to the tokens; a linear layer classifies what it gathers."""

    def __init__(self, width: int, classes: int, heads: int = 4):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, T, W] -> logits [B, K]."""
        tokens = self.norm(tokens)
        query = self.query.expand(len(tokens), -1, -1)
        gathered = self.attention(query, tokens, tokens, need_weights=False)[0][:, 0]
        return self.classifier(torch.cat([gathered, tokens.mean(1)], dim=1))


def train(tokens: torch.Tensor, labels: torch.Tensor, epochs: int, seed: int) -> float:
    """Held-out accuracy, percent, of a head trained on four fifths of the images."""
    torch.manual_seed(seed)
    held_out = torch.arange(len(labels)) % 5 == 4
    x, y = tokens[~held_out], labels[~held_out]
    x_test = (tokens[held_out] - x.mean((0, 1))) / (x.std((0, 1)) + 1e-6)
    x = (x - x.mean((0, 1))) / (x.std((0, 1)) + 1e-6)
    head = AttentionHead(x.shape[-1], int(labels.max()) + 1)
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 2e-3, total_steps=epochs * -(-len(x) // 64)
    )
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(head(x[batch]), y[batch], label_smoothing=0.1).backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        right = head.eval()(x_test).argmax(1) == labels[held_out]
    return 100 * right.float().mean().item()


def main() -> None:
    """Print held-out accuracy over three seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("archive", help="archive of labelled images, of nec encode")
    parser.add_argument("--block", help="decoder block, a file of nec_jax.export_decoder_block")
    parser.add_argument("--epochs", type=int, default=40, help="passes over the data (40)")
    options = parser.parse_args()
    group = archive.open_archive(options.archive)
    use, numbers = archive.labelled(group)
    if left_out := np.count_nonzero(~use):
        print(f"{left_out} images are left out: they have no label, or are not valid")
    embedding = archive.read_array(group, "embedding")[use]
    y_hat = torch.from_numpy(embedding.reshape(len(embedding), -1, embedding.shape[-1]))
    labels = torch.from_numpy(numbers[use].astype(np.int64))
    held_out = np.arange(len(labels)) % 5 == 4
    if not held_out.any() or len(labels[~held_out].unique()) < 2:
        raise SystemExit(f"{options.archive}: {len(labels)} labelled images are too few")
    inputs = {"tokens": y_hat}
    if options.block:
        if "class_token" in group:
            class_token = archive.read_array(group, "class_token")[use]
            y_hat = torch.cat([torch.from_numpy(class_token)[:, None], y_hat], dim=1)
        features = decoder_block(options.block)
        with torch.no_grad():
            inputs["decoder block"] = torch.cat([features(part) for part in y_hat.split(128)])
    for name, tokens in inputs.items():
        scores = [train(tokens, labels, options.epochs, seed) for seed in range(3)]
        spread = max(scores) - min(scores)
        print(
            f"{name}: accuracy of {np.mean(scores):.1f} % on held-out images (spread {spread:.1f})"
        )


if __name__ == "__main__":
    try:
        main()
    except CodecError as error:
        raise SystemExit(f"error: {error}") from error
