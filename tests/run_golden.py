"""Run golden cases: recordings of the official implementations against ours.

    python tests/run_golden.py DIR [DIR ...] [--json FILE]

Every ``case.json`` below the folders is run. One row a recorded output (one a case for layouts):
case, output, max_abs_error, max_rel_error, tolerance, status (pass | fail | unsupported), seconds.
The exit status is 1 if anything fails. A case of a family, or an operation, that vistok does not
have yet is ``unsupported``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch

from golden_cases import GoldenCase, Result, runner_for


@dataclass
class Row:
    """One recorded output compared with ours."""

    case: str
    output: str
    max_abs_error: float | None
    max_rel_error: float | None
    tolerance: dict[str, float]
    status: str
    seconds: float
    note: str = ""


def run_case(folder: Path) -> list[Row]:
    """All rows of the case in ``folder``."""
    case = GoldenCase(folder)
    start = time.perf_counter()
    runner = runner_for(case)
    if runner is None:
        reason = f"family {case.family} is not built yet"
        return [Row(case.name, name, None, None, case.tolerance, "unsupported", 0.0, reason) for name in case.outputs]
    rows: list[Row] = []
    seen: set[str] = set()
    try:
        for result in runner(case):
            rows.append(_row(case, result, time.perf_counter() - start))
            seen.add(result.output)
            start = time.perf_counter()
    except Exception as error:  # one broken case must not hide the others
        traceback.print_exc()
        note = f"{type(error).__name__}: {error}"
        missing = [name for name in case.outputs if name not in seen]
        rows += [Row(case.name, name, None, None, case.tolerance, "fail", 0.0, note) for name in missing]
        return rows
    for name in case.outputs:  # a recorded output that nothing was compared with must not pass silently
        if name not in seen:
            rows.append(Row(case.name, name, None, None, case.tolerance, "unsupported", 0.0, "no such operation"))
    return rows


def _row(case: GoldenCase, result: Result, seconds: float) -> Row:
    status = {None: "unsupported", True: "pass", False: "fail"}[result.passed]
    tolerance = result.tolerance or case.tolerance
    return Row(
        case.name, result.output, result.max_abs_error, result.max_rel_error, tolerance, status, seconds, result.note
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders with case.json files anywhere below")
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    parser.add_argument("--quiet", action="store_true", help="print failures and the summary only")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cases = sorted({path.parent for folder in args.folders for path in folder.rglob("case.json")})
    if not cases:
        parser.error(f"no case.json below {', '.join(map(str, args.folders))}")
    rows: list[Row] = []
    for folder in cases:
        for row in run_case(folder):
            rows.append(row)
            if row.status == "fail" or not args.quiet:
                error = "" if row.max_abs_error is None else f"abs {row.max_abs_error:.2e} rel {row.max_rel_error:.2e}"
                print(f"{row.status:<12}{row.case:<42}{row.output:<34}{error}  {row.note}".rstrip(), flush=True)
    counts = {status: sum(row.status == status for row in rows) for status in ("pass", "fail", "unsupported")}
    print(", ".join(f"{number} {status}" for status, number in counts.items()), f"in {len(cases)} cases")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    return 1 if counts["fail"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
