"""The options of ``vistok eval protocols`` and ``vistok eval self-check``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any


def add_protocols_arguments(parser: argparse.ArgumentParser) -> None:
    """Of ``vistok eval protocols``."""
    parser.add_argument("names", nargs="*", help="show all of these; without a name, all names")


def run_protocols(args: argparse.Namespace, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Show protocols."""
    from vistok.metrics.protocols import get_protocol, list_protocols

    names = args.names or list_protocols()
    found = {name: get_protocol(name) for name in names}
    for name, protocol in found.items():
        say("\n".join(protocol.lines()) if args.names else f"{name:<16} {protocol.source}")
    return {name: dataclasses.asdict(protocol) for name, protocol in found.items()}


def add_self_check_arguments(parser: argparse.ArgumentParser) -> None:
    """Of ``vistok eval self-check``."""
    parser.add_argument("--protocol", default="offline-lite0", help="a named protocol (%(default)s)")
    parser.add_argument("--features", default="auto", choices=("auto", "inception", "lite0", "dinov2", "clip"))
    parser.add_argument("--weights", help="file with the weights of the features")
    parser.add_argument("--images", type=int, default=48, help="pictures of each of two sets (%(default)s)")


def run_check(args: argparse.Namespace, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Try what must hold of an evaluator.

    Raises:
        VistokError: something does not hold.
    """
    from vistok.errors import VistokError
    from vistok.metrics.self_check import run_self_check

    result = run_self_check(
        say, protocol=args.protocol, features=args.features, weights=args.weights, images=args.images
    )
    if not result["ok"]:
        raise VistokError("the self-check found what does not hold; the numbers of this machine cannot be trusted")
    return result
