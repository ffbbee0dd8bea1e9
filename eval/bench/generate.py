"""Generation beside the same model without a cache, and beside a plain cached one: speed, tokens a second, what memory would allow.

    python eval/bench/generate.py                                       # GPT-B, 256 tokens, one CPU thread: about 10 minutes
    python eval/bench/generate.py --model rar_b.imagenet --json speed.json
    python eval/bench/generate.py --device cuda --dtype bfloat16 --compile

Ours is the public ``generate`` with all that belongs to it: guidance as one batch, draws, log-probabilities. Without a
cache, every token reads the class and all tokens before it in one pass of the same model, and the head reads the last
position only; draws are left out. That side is timed at five lengths along the way, and integrated by straight lines
between them. Weights are random. "no cache" is its seconds over ours: above 1, ours is faster. "plain cached" is the same for a cached
implementation as the released code is built (``plain_cached.py``), which first must choose the same tokens. "of bound" is
the share of the tokens a second that reading all weights and the filled cache once a token would allow, at the speed at
which this device reads a large tensor in the same run. On the CPU: one thread, processor time, fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
import torch
from plain_cached import plain_cached

from vistok.errors import VistokError
from vistok.generate.softmax import SoftmaxGenerator
from vistok.hub import create_model

from alternate import alternate

_READ_BYTES = 2**29


def _clock(device: torch.device) -> Callable[[], float]:
    """Seconds: of the processor, or on a GPU of the clock when all that was asked for is done."""
    if device.type == "cpu":
        return time.process_time

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised


def _seconds(function: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """The median over calls, after one that is not counted."""
    clock, times = _clock(device), []
    for _ in range(repeats + 1):
        start = clock()
        function()
        times.append(clock() - start)
    return statistics.median(times[1:])


def _check_equal(model: SoftmaxGenerator, beside: Callable[..., torch.Tensor]) -> None:
    """Both choose the same most likely tokens."""
    length = min(16, model.num_tokens)
    for scale in (1.0, 1.5):
        options = {
            "temperature": 0.0,
            "cfg_scale": scale,
            "cfg_schedule": "constant",
            "cfg_start": 0.0,
            "top_k": 0,
            "top_p": 1.0,
        }
        ours = model.generate(0, 2, seeds=0, length=length, **options).tokens.ids
        if not torch.equal(ours.cpu(), beside(0, 2, length=length, scale=scale, temperature=0.0).cpu()):
            raise VistokError("the plain implementation chooses other tokens: it is no baseline")


def _without_cache(model: SoftmaxGenerator, rows: int, length: int, points: int, repeats: int) -> float:
    """Seconds for ``length`` tokens: passes over growing sequences, a few of them timed."""
    labels = model.encode_condition([0] * rows)
    lengths = sorted({round(1 + index * (length - 1) / (points - 1)) for index in range(points)})
    ids = torch.zeros(rows, length, dtype=torch.int64, device=model.device)
    times = [
        _seconds(lambda n=n: model.logits(model.states(ids[:, :n], labels)[:, -1]), model.device, repeats)
        for n in lengths
    ]
    total = times[0]
    for low, high, before, after in zip(lengths, lengths[1:], times, times[1:], strict=False):
        steps = high - low  # the passes after ``low``, up to and with ``high``
        total += steps * (before + after) / 2 + (after - before) / 2
    return total


def _bytes_a_token(model: SoftmaxGenerator, rows: int, length: int) -> float:
    """Weights but for the embeddings, of which a token reads one row, and half of the cache: its mean filling."""
    weights = sum(
        parameter.numel() * parameter.element_size()
        for name, parameter in model.named_parameters()
        if "embed" not in name
    )
    cache = model.new_cache(1)
    row = 2 * cache.keys.numel() * cache.keys.element_size() * length / cache.max_length
    return weights + rows * row / 2


def _bandwidth(device: torch.device, dtype: torch.dtype) -> float:
    """Bytes a second at which a large tensor is read: the faster of a product with a vector and a sum."""
    large = torch.ones(_READ_BYTES // dtype.itemsize // 1024, 1024, dtype=dtype, device=device)
    vector = torch.ones(1024, dtype=dtype, device=device)
    fastest = min(_seconds(read, device, 5) for read in (lambda: torch.mv(large, vector), large.sum))
    return large.numel() * dtype.itemsize / fastest


@torch.no_grad()
def main() -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt_b_bl_256.imagenet", metavar="NAME")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4], metavar="B")
    parser.add_argument("--guidance", nargs="+", type=float, default=[1.0, 1.75], metavar="SCALE")
    parser.add_argument("--length", type=int, help="tokens (default: all)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--points", type=int, default=5, help="lengths at which the other side is timed (default: 5)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--compile", action="store_true", help="compile the steps; on CUDA each is one replayed graph")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    model = create_model(args.model, device=device)
    if not isinstance(model, SoftmaxGenerator):
        parser.error(f"{args.model} is no generator of this kind")
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    length = args.length or model.num_tokens
    beside = plain_cached(model)
    if beside is not None:
        _check_equal(model, beside)  # in float32: half precision makes ties, which the two may break differently
    model.to(dtype)
    if args.compile:
        model.compile_steps()
    bandwidth = _bandwidth(device, dtype)
    rows = []
    print(
        f"{'rows':>6}{'guidance':>10}{'tokens/s':>10}{'no cache':>10}{'plain cached':>14}{'of bound':>10}", flush=True
    )
    for count in args.rows:
        for scale in args.guidance:
            batch = count * (2 if scale != 1.0 else 1)

            def generate(count: int = count, scale: float = scale) -> None:
                model.generate(0, count, seeds=0, length=length, cfg_scale=scale)

            def generate_plain(count: int = count, scale: float = scale) -> None:
                beside(0, count, length=length, scale=scale)

            if args.compile:
                generate()  # programs of this batch are made here, and not counted
            ratio = None
            if beside is None:
                ours = _seconds(generate, device, args.repeats)
            else:
                ratio, ours = alternate(generate, generate_plain, args.repeats, clock=_clock(device))
            plain = _without_cache(model, batch, length, args.points, args.repeats)
            bound = count * bandwidth / _bytes_a_token(model, batch, length)
            row = {
                "rows": count,
                "guidance": scale,
                "tokens_per_second": count * length / ours,
                "beside_no_cache": plain / ours,
                "beside_plain_cached": ratio,
                "of_bound": count * length / ours / bound,
            }
            rows.append(row)
            print(
                f"{count:>6}{scale:>10g}{row['tokens_per_second']:>10.1f}{row['beside_no_cache']:>10.1f}"
                f"{'-' if ratio is None else f'{ratio:.2f}':>14}{row['of_bound']:>10.0%}",
                flush=True,
            )
    print(f"this device reads {bandwidth / 1e9:.1f} GB/s")
    if args.json:
        settings = {name: getattr(args, name) for name in ("model", "device", "dtype", "compile", "repeats", "points")}
        content = settings | {"length": length, "bandwidth": bandwidth, "torch": torch.__version__, "rows": rows}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
