"""The commands whose options stand beside the code that they drive: data sets, training, measures, generation, search."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vistok.cli.options import DATA_HELP, MODEL_HELP, chosen_device, command, say
from vistok.errors import VistokError


def add_job_commands(commands: Any) -> None:
    """Add them to the subparsers."""
    from vistok.report.compare_command import add_compare_arguments, run_compare
    from vistok.report.complexity_command import add_complexity_arguments, run_complexity
    from vistok.report.generate_command import add_generate_arguments, run_generate
    from vistok.report.search_command import add_search_arguments, run_search
    from vistok.report.tokenize_command import add_tokenize_arguments, run_tokenize
    from vistok.serve.command import add_serve_arguments, run_serve

    sub = command(
        commands,
        "tokenize",
        _job(run_tokenize),
        "a data set of pictures to token shards, for training generators; resumes where it stopped",
        "vistok tokenize --model runs/titok_tiny/final --data emoji: --views flip --out outputs/tokens",
    )
    add_tokenize_arguments(sub, model_help=MODEL_HELP, data_help=DATA_HELP)

    sub = command(
        commands,
        "train",
        _train,
        "run a training configuration; resumes where it stopped",
        "vistok train configs/titok/tiny.yaml steps=200 optimizer.lr=1e-3\n"
        "  accelerate launch train/tokenizer.py configs/titok/tiny.yaml     # several processes",
    )
    sub.add_argument("config", type=Path, help="a YAML file; see configs/")
    sub.add_argument("overrides", nargs="*", help="a.b=value, read as YAML")
    sub.add_argument("--no-resume", action="store_true", help="start anew; the run's checkpoints are removed")
    sub.add_argument("--dry-run", action="store_true", help="two small steps on random pictures, offline")

    sub = command(commands, "eval", None, "measure models", "vistok eval recon --model runs/tiny/final --data emoji:")
    _add_measures(sub.add_subparsers(metavar="WHAT", required=True))

    text = "results side by side, beside published figures; refuses to mix protocols"
    add_compare_arguments(command(commands, "compare", _job(run_compare), text, "vistok compare a.json b.json"))

    sub = command(
        commands,
        "generate",
        _job(run_generate),
        "images out of a generator: any number, balanced over classes or prompts, resumable",
        "vistok generate --model vistok_writer --prompt 'sparkling heart' --num 16 --out outputs/hearts\n"
        "  vistok generate --model rar_b.imagenet --classes 'golden retriever,tench' --per-condition 8 --out outputs/rar_b\n"
        "  vistok generate --model runs/digit_ar_tiny/final --tokenizer runs/titok_tiny/final --out outputs/samples",
    )
    add_generate_arguments(sub, model_help=MODEL_HELP)

    sub = command(
        commands,
        "search",
        _job(run_search),
        "test-time search: the best of many candidates for each class or prompt, and scores against cost; resumable",
        "vistok search --model runs/digit_ar_tiny/final --method best_of_n --method beam --budgets 1,8,32 --out outputs/search",
    )
    add_search_arguments(sub, model_help=MODEL_HELP)

    sub = command(
        commands,
        "complexity",
        _job(run_complexity),
        "how many tokens each picture needs; sorts them from simple to complex",
        "vistok complexity photos/ --model runs/karl_tiny/final --target-error 0.05,0.1 --out outputs/complexity",
    )
    add_complexity_arguments(sub, model_help=MODEL_HELP)

    text = "a page to play with: cut tokens, count them, generate and search"
    add_serve_arguments(
        command(commands, "serve", _job(run_serve), text, "vistok serve --port 7860"), model_help=MODEL_HELP
    )

    command(commands, "doctor", _doctor, "check this installation", "vistok doctor")

    sub = command(
        commands,
        "demo",
        _demo,
        "reconstruct, count tokens, generate, search and fine-tune with the models that come along; one report",
        "vistok demo my_photos/ --out outputs/demo",
    )
    sub.add_argument("pictures", nargs="*", type=Path, help="your own pictures, files or folders, to be in the report")
    sub.add_argument("--out", type=Path, default=Path("outputs/demo"), help="folder of the report (%(default)s)")
    sub.add_argument(
        "--train",
        action="store_true",
        help="from nothing: trains a tokenizer and a generator on emoji, some four minutes",
    )
    sub.add_argument("--quick", action="store_true", help="a few steps only: shows that all of it runs")


def _add_measures(measures: Any) -> None:
    from vistok.metrics.command import add_reconstruction_arguments, run_reconstruction
    from vistok.metrics.generation_command import add_generation_arguments, run_generation
    from vistok.metrics.reference_command import add_reference_arguments, run_reference
    from vistok.metrics.results_command import (
        add_protocols_arguments,
        add_self_check_arguments,
        run_check,
        run_protocols,
    )
    from vistok.report.curve_command import add_curve_arguments, run_curve

    sub = command(
        measures,
        "recon",
        _job(run_reconstruction),
        "reconstruction: PSNR, SSIM, LPIPS, Frechet distance, codebook, speed",
        "vistok eval recon --model titok_s128.imagenet --data folder:imagenet/val --json-file result.json",
    )
    add_reconstruction_arguments(sub, model_help=MODEL_HELP, data_help=DATA_HELP)

    sub = command(
        measures,
        "curve",
        _job(run_curve),
        "quality against tokens and bytes, beside JPEG, WebP and AVIF",
        "vistok eval curve --model runs/a/final --model runs/b/final --data emoji: --out outputs/curve",
    )
    add_curve_arguments(sub, model_help=MODEL_HELP, data_help=DATA_HELP)

    sub = command(
        measures,
        "gen",
        _job(run_generation),
        "generated images: the Fréchet distance from a reference (gFID)",
        "vistok eval gen outputs/samples --reference folder:imagenet/val --json-file result.json",
    )
    add_generation_arguments(sub, data_help=DATA_HELP)

    sub = command(
        measures,
        "reference",
        _job(run_reference),
        "statistics of pictures, as vistok, pytorch-fid, clean-fid and ADM read them",
        "vistok eval reference folder:imagenet/val --size 256 --images --out imagenet256_val.npz",
    )
    add_reference_arguments(sub, data_help=DATA_HELP)

    example = "vistok eval protocols adm-50k clean-fid"
    add_protocols_arguments(command(measures, "protocols", _job(run_protocols), "named ways to measure", example))
    text = "what must hold of an evaluator, tried on this machine"
    add_self_check_arguments(command(measures, "self-check", _job(run_check), text, "vistok eval self-check"))


def _job(run: Callable[..., dict[str, Any]]) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """A command that calls ``run`` with the options, and what it takes of device, ``say`` and ``progress``."""
    taken = inspect.signature(run).parameters

    def job(args: argparse.Namespace) -> dict[str, Any]:
        given: dict[str, Any] = {}
        if "device" in taken:
            given["device"] = chosen_device(args.device)
        if "say" in taken:
            given["say"] = lambda text: say(args, text)
        if "progress" in taken:
            given["progress"] = not args.json
        return run(args, **given)

    return job


def _train(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.training import train

    result = train(args.config, args.overrides, resume=not args.no_resume, dry_run=args.dry_run)
    say(args, f"step {result.step}; {'dry run: nothing was kept' if args.dry_run else result.folder}")
    return {"step": result.step, "folder": str(result.folder), "metrics": result.metrics}


def _doctor(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.doctor import examine

    report = examine()
    for line in report["lines"]:
        say(args, line)
    return report


def _demo(args: argparse.Namespace) -> dict[str, Any]:
    from vistok.demo import run_demo, run_training_demo

    if args.train:
        if args.pictures:
            raise VistokError("demo --train is of the embedded emoji alone; leave your pictures out, or --train")
        return run_training_demo(args.out, quick=args.quick)
    return run_demo(args.out, pictures=args.pictures, quick=args.quick)
