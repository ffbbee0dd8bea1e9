"""FlexTok's decoding with one row for all identical registers, beside a row for each: speed and difference.

    python eval/bench/flextok_decode.py                     # d12-d12 as published, prefixes of 8, 64 and 256: minutes
    python eval/bench/flextok_decode.py --tiny --json f.json    # a small model: seconds, and its ratios say little

The plain path is the published computation: every register its row (256 patches and 256 registers), the conditional and
the unconditional pass one after the other, and the modulation computed for each. The fast one is what ``decode``
does. Both are this library's code on the same random weights, which are filled everywhere: with those of a fresh
model, whose modulation is zero, any two paths would agree.

How it measures: on the CPU, with one thread, from tokens to latents with guidance (the autoencoder behind it is the same
for both and is left out). Calls alternate between the two (A B B A ...); a ratio is the median of plain time / fast time
over the pairs, by processor time. The difference is the largest between their latents.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
import torch
from torch import Tensor

from vistok.layers.kl_autoencoder import KlAutoencoderConfig
from vistok.models.flextok import FlexTok
from vistok.models.flextok_config import FlexTokConfig, RegisterTransformerSize
from vistok.tokens import Tokens

from alternate import alternate

_TOLERANCE = 1e-5
_TINY_SIZE = RegisterTransformerSize(width=64, depth=2, head_dim=32)
_TINY = FlexTokConfig(
    vae=KlAutoencoderConfig(latent_channels=4, block_channels=(32, 32)),
    grid_size=(8, 8),
    num_tokens=128,
    encoder=_TINY_SIZE,
    decoder=_TINY_SIZE,
)


@torch.no_grad()
def make_model(config: FlexTokConfig) -> FlexTok:
    """A model with random weights everywhere, also where fresh ones are zero."""
    model = FlexTok(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.decoder.named_parameters():
        parameter.normal_(generator=generator)
        if parameter.ndim > 1 and "pos_embed" not in name:
            parameter.mul_(1.0 / math.sqrt(parameter[0].numel()))
        elif name.endswith("bias"):
            parameter.mul_(0.02)
    return model


def compare(model: FlexTok, length: int, *, steps: int, repeats: int) -> dict[str, float]:
    """Ratio of times and largest difference of latents for one image of ``length`` tokens."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(math.prod(model.codebook_size), (1, length), generator=generator)
    tokens = Tokens(ids=ids, codebook_size=model.codebook_size)

    def run(fast: bool) -> Tensor:
        return model.decode_latents(tokens, steps=steps, fast=fast)

    fast, plain = run(True), run(False)  # also warms up
    difference = float((fast - plain).abs().max())
    ratio, seconds = alternate(lambda: run(True), lambda: run(False), repeats)
    size = float(plain.abs().max())
    return {"tokens": length, "ratio": ratio, "seconds_fast": seconds, "difference": difference, "largest_value": size}


def main() -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2, help="Euler steps of a call (default: 2; all cost the same)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of calls for each ratio (default: 5)")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try the script")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = make_model(_TINY if args.tiny else FlexTokConfig())
    rows = []
    print(f"{'tokens':>7}{'ratio':>8}{'seconds':>9}{'difference':>12}", flush=True)
    for length in (8, 64, model.num_tokens):
        row = compare(model, length, steps=args.steps, repeats=args.repeats)
        rows.append(row)
        print(f"{length:>7}{row['ratio']:>8.2f}{row['seconds_fast']:>9.2f}{row['difference']:>12.1e}", flush=True)
    worst = max(row["difference"] for row in rows)
    if args.json:
        content = {
            "model": "tiny" if args.tiny else "flextok_d12_d12",
            "ratio_at_8_tokens": rows[0]["ratio"],
            "ratio_at_64_tokens": rows[1]["ratio"],
            "max_abs_difference": worst,
            "threads": 1,
            "steps": args.steps,
            "repeats": args.repeats,
            "torch": torch.__version__,
            "rows": rows,
        }
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if not worst <= _TOLERANCE:
        print(f"error: latents differ by {worst:.2e}, allowed is {_TOLERANCE:.0e}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
