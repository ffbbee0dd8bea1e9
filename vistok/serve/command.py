"""``vistok serve``: its options, and the server."""

from __future__ import annotations

import argparse
from typing import Any


def add_serve_arguments(parser: argparse.ArgumentParser, *, model_help: str) -> None:
    """The options."""
    parser.add_argument("--model", default="vistok_ordered", help=f"an ordered tokenizer: {model_help} (%(default)s)")
    parser.add_argument("--adaptive", default="vistok_adaptive", help="an adaptive tokenizer, or '' (%(default)s)")
    parser.add_argument(
        "--generator", default="vistok_writer", help="a generator of --model's tokens, or '' (%(default)s)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 lets others in your network see the page (%(default)s)"
    )
    parser.add_argument("--port", type=int, default=7860, help="(%(default)s)")
    parser.add_argument("--device", default="", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")


def run_serve(args: argparse.Namespace, *, device: str) -> dict[str, Any]:
    """Serve the page until it is interrupted."""
    from vistok.hub import from_pretrained
    from vistok.serve.page import build_page
    from vistok.serve.studio import Studio

    models = [
        from_pretrained(name).to(device) if name else None for name in (args.model, args.adaptive, args.generator)
    ]
    page = build_page(Studio(*models))
    print(f"http://{args.host}:{args.port}  (Ctrl-C ends it)", flush=True)
    page.launch(server_name=args.host, server_port=args.port, quiet=True)
    return {"served": args.port}
