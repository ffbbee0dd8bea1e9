"""Tables as plain text and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns padded with spaces under a header and a rule; numbers are lined up on the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(header), *cells]) for column in range(len(header))]
    numeric = numeric_columns(cells, len(header))

    def line(row: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        return "  ".join(parts).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, cells)])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; numbers are lined up on the right, and cells cannot break it."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in [header, *rows]]
    rule = ["---:" if numeric else "---" for numeric in numeric_columns(cells[1:], len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]])


def numeric_columns(cells: Sequence[Sequence[str]], count: int) -> list[bool]:
    """For each of ``count`` columns, whether it holds only numbers, with their deviations or not, percentages and dashes."""
    return [bool(cells) and all(_is_number(row[column]) for row in cells) for column in range(count)]


def _is_number(text: str) -> bool:
    try:
        for part in text.split(" ± "):
            float(part.removesuffix("%").replace(",", ""))
    except ValueError:
        return text in ("-", "–", "")
    return True
