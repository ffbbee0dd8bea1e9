"""The options of ``vistok compare``: results side by side."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; ``run_compare`` reads them."""
    add = parser.add_argument
    add("results", nargs="+", type=Path, help="JSON files of vistok eval recon, gen or eval/reproduce.py")
    add("--mixed", action="store_true", help="side by side even where the protocols differ")
    add("--out", type=Path, help="folder for a plot (compare.png) and a page (compare.html)")


def run_compare(args: argparse.Namespace, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Show the results side by side; with ``--out`` also as plot and page.

    Raises:
        VistokError: unreadable results, or different protocols.
    """
    from vistok.metrics.compare import compare_results, read_results
    from vistok.report.table import text_table

    results = read_results(args.results)
    header, rows, remarks = compare_results(results, mixed=args.mixed)
    say(text_table(header, rows))
    for remark in remarks:
        say(f"note: {remark}")
    out = {"header": header, "rows": rows, "remarks": remarks}
    if args.out is not None:
        from vistok.report.compare import write_comparison

        files = write_comparison(results, args.out, mixed=args.mixed)
        say(f"wrote {', '.join(files.values())}")
        out["files"] = files
    return out
