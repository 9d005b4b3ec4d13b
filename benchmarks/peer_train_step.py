"""PyTorch's side of `benchmarks.train_step`; runs in an environment of its own.

transformers' ViTMAE, CompressAI's EntropyBottleneck between its halves, and AdamW. What the paper
trains has gradients: patch embedding, class token, last block and norm of the encoder; embedding,
mask token, first block, norm and prediction of the decoder; the density.
"""

import json
import sys

import torch
import transformers as tf
from compressai.entropy_models import EntropyBottleneck
from peer import best_seconds  # beside this file, which runs as a script


def build(case: dict) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Model and bottleneck, frozen as the paper's are."""
    config = tf.ViTMAEConfig(
        hidden_size=case["width"],
        num_hidden_layers=case["depth"],
        num_attention_heads=case["heads"],
        intermediate_size=4 * case["width"],
        decoder_hidden_size=case["decoder_width"],
        decoder_num_hidden_layers=case["decoder_depth"],
        decoder_num_attention_heads=case["decoder_heads"],
        decoder_intermediate_size=4 * case["decoder_width"],
        image_size=case["image_size"],
        patch_size=case["patch"],
        layer_norm_eps=1e-6,
    )
    model = tf.ViTMAEForPreTraining(config)
    frozen = [model.vit.layers[:-1], model.decoder.decoder_layers[1:]]
    for part in frozen:
        part.requires_grad_(False)
    return model, EntropyBottleneck(case["width"])


def patchify(x: torch.Tensor, patch: int) -> torch.Tensor:
    """[B, 3, H, W] -> [B, T, patch * patch * 3], as MAE orders pixels."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)


def main() -> None:
    """Print the seconds of the fastest step."""
    case = json.loads(sys.argv[1])
    torch.set_num_threads(case["threads"])
    torch.manual_seed(0)
    model, bottleneck = build(case)
    trained = [p for part in (model, bottleneck) for p in part.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    side = case["image_size"]
    images = torch.randint(0, 256, (case["batch"], 3, side, side)).float()

    def step() -> None:
        x = images / 127.5 - 1.0
        encoded = model.vit(x)
        y = encoded.last_hidden_state
        _, likelihoods = bottleneck(y.transpose(1, 2).unsqueeze(-1), training=True)
        bits = -torch.log2(likelihoods).mean()
        medians = bottleneck._get_medians()[:, :, 0].T
        rounded = torch.round(y - medians) + medians
        y_hat = y + (rounded - y).detach()
        predicted = model.decoder(y_hat, encoded.ids_restore).logits
        error = ((predicted - patchify(x, case["patch"])) ** 2).mean(-1)
        mse = (error * encoded.mask).sum() / encoded.mask.sum()
        loss = 10.0 * mse + bits
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        loss.item()

    step()
    print(json.dumps({"seconds": best_seconds(step, case["seconds"])}))


if __name__ == "__main__":
    main()
