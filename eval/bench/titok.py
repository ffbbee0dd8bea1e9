"""Encode and decode of TiTok beside a plain PyTorch implementation with the same weights: speed and peak memory.

    python eval/bench/titok.py                                   # S-128 and L-32, batches of 1 and 4: half an hour
    python eval/bench/titok.py --models titok_s128.imagenet --batch-sizes 1 --repeats 5 --json speed.json

The plain implementation, in this file, is what one writes first from the paper: nn.MultiheadAttention blocks in
[L, B, D] layout that compute every position, an einsum for the distances to the codebook, and a pixel decoder that pads
before each convolution. Weights are random, and the same on both sides; ids must come out equal and images within 1e-4.

How it measures: on the CPU, with one thread, through the public encode and decode with all their checks. Calls alternate
between the two (A B B A ...), and a column "speed" is the median of plain / our processor time over the pairs: above 1,
ours is faster. Peak memory is that of a fresh process which imports, loads the weights from a file, encodes and decodes once;
"memory" is our peak / the plain one's: below 1, ours needs less. Other work on the machine spoils the figures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alternate import alternate

_TOLERANCE = 1e-4
_SIDES = ("ours", "plain")


# The plain implementation, with the published names of its tensors.


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:  # [L, B, D]
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class _Side(nn.Module):
    """What encoder and decoder have in common: a class token, positions and a transformer."""

    def __init__(self, width: int, depth: int, heads: int, num_patches: int, num_tokens: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(1, width))
        self.positional_embedding = nn.Parameter(torch.zeros(num_patches + 1, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.zeros(num_tokens, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleList(_Block(width, heads) for _ in range(depth))

    def run(self, patches: Tensor, latents: Tensor) -> Tensor:
        """Patches [B, P, D] and latents [B, N, D] to the features of [class, patches, latents]."""
        cls = self.class_embedding.expand(len(patches), 1, -1)
        patches = torch.cat([cls, patches], dim=1) + self.positional_embedding
        latents = latents + self.latent_token_positional_embedding
        x = self.ln_pre(torch.cat([patches, latents], dim=1)).permute(1, 0, 2)  # [L, B, D]
        for block in self.transformer:
            x = block(x)
        return x.permute(1, 0, 2)


class _SameConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        pad = self.kernel_size[0] // 2
        return super().forward(F.pad(x, [pad] * 4) if pad else x)


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class _ResBlock(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, before, eps=1e-6), nn.GroupNorm(32, width, eps=1e-6)
        self.conv1 = _SameConv(before, width, 3, bias=False)
        self.conv2 = _SameConv(width, width, 3, bias=False)
        if before != width:
            self.nin_shortcut = _SameConv(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv1(_silu(self.norm1(x)))
        branch = self.conv2(_silu(self.norm2(branch)))
        return branch + (self.nin_shortcut(branch) if hasattr(self, "nin_shortcut") else x)


class _PixelDecoder(nn.Module):
    def __init__(self, base: int, multipliers: tuple[int, ...], num_blocks: int, code_dim: int) -> None:
        super().__init__()
        widths = [base * multiplier for multiplier in multipliers]
        self.conv_in = _SameConv(code_dim, widths[-1], 3)
        self.mid = nn.ModuleList(_ResBlock(widths[-1], widths[-1]) for _ in range(num_blocks))
        self.up = nn.ModuleList()
        for level, (before, width) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True)):
            self.up.append(nn.Module())
            self.up[-1].block = nn.ModuleList(_ResBlock(width if i else before, width) for i in range(num_blocks))
            if level:
                self.up[-1].upsample_conv = _SameConv(width, width, 3)
        self.norm_out = nn.GroupNorm(32, base, eps=1e-6)
        self.conv_out = _SameConv(base, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.mid:
            x = block(x)
        for level in reversed(range(len(self.up))):
            for block in self.up[level].block:
                x = block(x)
            if level:
                x = self.up[level].upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(_silu(self.norm_out(x)))


class PlainTiTok(nn.Module):
    """A published two-stage TiTok (VQ, legacy layout, soft pixel decoding) of the given sizes."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        width, depth, heads = sizes["encoder"]
        width_out, depth_out, heads_out = sizes["decoder"]
        self.grid, num_tokens = sizes["grid"], sizes["num_tokens"]
        self.latent_tokens = nn.Parameter(torch.zeros(num_tokens, width))
        self.encoder = _Side(width, depth, heads, self.grid**2, num_tokens)
        self.encoder.patch_embed = nn.Conv2d(3, width, sizes["patch"], sizes["patch"])
        self.encoder.conv_out = nn.Conv2d(width, sizes["code_dim"], 1)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(sizes["codebook"], sizes["code_dim"])})
        self.decoder = _Side(width_out, depth_out, heads_out, self.grid**2, num_tokens)
        self.decoder.mask_token = nn.Parameter(torch.zeros(1, 1, width_out))
        self.decoder.decoder_embed = nn.Linear(sizes["code_dim"], width_out)
        self.decoder.ffn = nn.Sequential(
            nn.Conv2d(width_out, 2 * width_out, 1), nn.Tanh(), nn.Conv2d(2 * width_out, sizes["pixel_codebook"], 1)
        )
        base, multipliers, num_blocks, code_dim = sizes["pixel_decoder"]
        self.pixel_quantize = nn.ModuleDict({"embedding": nn.Embedding(sizes["pixel_codebook"], code_dim)})
        self.pixel_decoder = _PixelDecoder(base, multipliers, num_blocks, code_dim)

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] to ids [B, N]."""
        patches = self.encoder.patch_embed(images).flatten(2).permute(0, 2, 1)
        x = self.encoder.run(patches, self.latent_tokens.expand(len(images), -1, -1))
        x = self.encoder.ln_post(x[:, self.grid**2 + 1 :])  # [B, N, D]
        batch, num_tokens, width = x.shape
        x = self.encoder.conv_out(x.reshape(batch, width, num_tokens, 1))  # the legacy layout: no transposition
        z = F.normalize(x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), dim=-1)
        rows = F.normalize(self.quantize["embedding"].weight, dim=-1)
        distances = (z**2).sum(dim=1, keepdim=True) + (rows**2).sum(dim=1) - 2 * torch.einsum("bd,dn->bn", z, rows.T)
        return distances.argmin(dim=1).view(batch, num_tokens)

    def decode(self, ids: Tensor) -> Tensor:
        """Ids [B, N] to images [B, 3, H, W], not clamped."""
        latents = self.decoder.decoder_embed(F.normalize(self.quantize["embedding"](ids), dim=-1))
        masks = self.decoder.mask_token.repeat(len(ids), self.grid**2, 1)
        x = self.decoder.ln_post(self.decoder.run(masks, latents)[:, 1 : self.grid**2 + 1])
        logits = self.decoder.ffn(x.permute(0, 2, 1).reshape(len(ids), -1, self.grid, self.grid))
        vectors = torch.einsum("nkhw,kc->nchw", logits.softmax(dim=1), self.pixel_quantize["embedding"].weight)
        return self.pixel_decoder(vectors)


# The stages: each runs in a process of its own, so that the peaks are its own.


def _prepare(folder: Path, name: str) -> None:
    """Write random weights for both sides, of a scale that keeps signals alive from end to end, and the sizes."""
    from vistok.hub import create_model, save_published

    torch.manual_seed(0)
    model = create_model(name)
    if (model.config.head, model.config.quantizer, model.config.legacy_layout) != ("vqgan", "vq", True):
        sys.exit(
            f"error: {name} is not a published two-stage TiTok (head vqgan), and the plain side is written for these"
        )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=math.prod(parameter.shape[1:]) ** -0.5)
    model.save_pretrained(folder / "ours")
    save_published(model, folder / "plain.safetensors")
    config, vqgan = model.config, model.config.vqgan
    sides = {side: [*vars(config.size(side)).values()] for side in ("encoder", "decoder")}
    sizes = {"grid": model.grid_size, "num_tokens": config.num_tokens, "patch": config.patch_size}
    codes = {"codebook": config.codebook_size, "code_dim": config.code_dim, "pixel_codebook": vqgan.codebook_size}
    pixel_decoder = [vqgan.base_channels, vqgan.multipliers, vqgan.num_blocks, vqgan.code_dim]
    (folder / "sizes.json").write_text(json.dumps(sides | sizes | codes | {"pixel_decoder": pixel_decoder}))


def _load(side: str, folder: Path) -> nn.Module:
    if side == "ours":
        from vistok import from_pretrained

        return from_pretrained(folder / "ours")
    from safetensors.torch import load_file

    model = PlainTiTok(json.loads((folder / "sizes.json").read_text()))
    model.load_state_dict(load_file(folder / "plain.safetensors"))
    return model.eval()


def _images(batch_size: int, sizes: dict[str, Any]) -> Tensor:
    side = sizes["grid"] * sizes["patch"]
    return torch.rand(batch_size, 3, side, side, generator=torch.Generator().manual_seed(1))


def _peak(side: str, folder: Path, batch_size: int) -> float:
    """MiB at the most, from the start of the process to the end of one encode and one decode."""
    images = _images(batch_size, json.loads((folder / "sizes.json").read_text()))
    model = _load(side, folder)
    model.decode(model.encode(images))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _time(folder: Path, batch_size: int, repeats: int) -> dict[str, float]:
    """Check that both sides agree, then the median over pairs of plain time / our time."""
    images = _images(batch_size, json.loads((folder / "sizes.json").read_text()))
    ours, plain = (_load(side, folder) for side in _SIDES)
    tokens, ids = ours.encode(images), plain.encode(images)
    if not torch.equal(tokens.ids, ids):
        sys.exit(f"error: {int((tokens.ids != ids).sum())} of {ids.numel()} ids differ")
    error = float((ours.decode(tokens, clamp=False) - plain.decode(ids)).abs().max())
    if not error <= _TOLERANCE:
        sys.exit(f"error: images differ by {error:.2e}, allowed is {_TOLERANCE:.0e}")
    encode, _ = alternate(lambda: ours.encode(images), lambda: plain.encode(images), repeats)
    decode, _ = alternate(lambda: ours.decode(tokens), lambda: plain.decode(ids).clamp_(0.0, 1.0), repeats)
    return {"encode": encode, "decode": decode, "max_error": error}


def _in_own_process(stage: str, *arguments: object) -> Any:
    command = [sys.executable, __file__, "--stage", stage, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout or "null")


def _run_stage(stage: str, folder: str, *rest: str) -> Any:
    torch.set_num_threads(1)
    with torch.no_grad():
        if stage == "prepare":
            return _prepare(Path(folder), rest[0])
        if stage == "time":
            return _time(Path(folder), int(rest[0]), int(rest[1]))
        return _peak(stage, Path(folder), int(rest[0]))


def main() -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["titok_s128.imagenet", "titok_l32.imagenet"], metavar="NAME")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4], metavar="B")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of calls for each figure (default: 9)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    parser.add_argument("--stage", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(_run_stage(*args.stage)))
        return 0
    rows = []
    print(f"{'model':<24}{'batch':>6}{'encode speed':>14}{'decode speed':>14}{'memory':>9}", flush=True)
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            _in_own_process("prepare", folder, name)
            for batch_size in args.batch_sizes:
                speed = _in_own_process("time", folder, batch_size, args.repeats)
                peaks = {side: _in_own_process(side, folder, batch_size) for side in _SIDES}
                row = {"model": name, "batch_size": batch_size, **speed, "memory": peaks["ours"] / peaks["plain"]}
                rows.append(row | {f"peak_mib_{side}": round(peak) for side, peak in peaks.items()})
                print(
                    f"{name:<24}{batch_size:>6}{row['encode']:>14.2f}{row['decode']:>14.2f}{row['memory']:>9.2f}",
                    flush=True,
                )
    if args.json:
        content = {"threads": 1, "repeats": args.repeats, "torch": torch.__version__, "rows": rows}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
