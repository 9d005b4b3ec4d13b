"""Makes the parity fixtures from the live originals: transformers, timm, open_clip, CompressAI.

    python tests/parity/make.py OUT [--seed N] [--every-timm]

Runs in an environment that has them (`make parity` makes it), not in the project's own. Each case
is a folder with a checkpoint as its project writes it, `options.json` for
`nec_jax.convert_checkpoint`, and `expected.safetensors` with images and what the original makes of
them. All parameters are random: biases, norms, positions, class tokens too. Names of projects that
are in no package (Facebook's MAE, SatMAE, Prithvi, the NEC authors', DINOv2 as released) are put on
tensors of transformers' ViTMAE and DINOv2, which are the same functions.
"""

import argparse
from pathlib import Path

import torch
from every_timm import every_timm
from originals_mae import mae_cases, nec_cases, prithvi_case, resized_mae_case, satmae_cases
from originals_vit import (
    clip_cases,
    dino_cases,
    released_dino_cases,
    resized_cases,
    timm_cases,
    vit_case,
)
from safetensors.torch import save_file


def resizing_case(out: Path, g: torch.Generator) -> None:
    """How each project resizes positions, by the call that it makes."""
    grid = torch.randn(1, 5, 7, 7, generator=g)
    interpolate = torch.nn.functional.interpolate
    expected = {"positions": grid[0].permute(1, 2, 0).reshape(49, 5)}
    for side in (3, 4, 7, 10, 16):
        factor = (side + 0.1) / 7
        results = {
            "bicubic": interpolate(grid, size=(side, side), mode="bicubic"),
            "antialiased": interpolate(grid, size=(side, side), mode="bicubic", antialias=True),
            "dinov2": interpolate(grid, scale_factor=(factor, factor), mode="bicubic"),
        }
        for how, result in results.items():
            expected[f"{how}_{side}"] = result[0].permute(1, 2, 0).reshape(-1, 5)
    out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in expected.items()}, out / "resizing.safetensors")


MAKERS = (
    mae_cases,
    prithvi_case,
    nec_cases,
    clip_cases,
    dino_cases,
    timm_cases,
    resizing_case,
    released_dino_cases,
    vit_case,
    satmae_cases,
    resized_cases,
    resized_mae_case,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every-timm", action="store_true", help="all of timm's as well: minutes")
    arguments = parser.parse_args()
    g = torch.Generator().manual_seed(arguments.seed)
    torch.manual_seed(arguments.seed)
    with torch.no_grad():
        for make in MAKERS:
            make(arguments.out, g)
            print(f"{make.__name__} done", flush=True)
        if arguments.every_timm:
            every_timm(arguments.out / "every-timm", g)


if __name__ == "__main__":
    main()
