"""Figures and words as people read them, and columns that line up."""

from __future__ import annotations

from collections.abc import Sequence

NOTHING_HERE = "nothing of this migration is on the servers: it is not prepared yet, or it was finalized or cancelled"


def seconds(value: float | None) -> str:
    """`0.2 s`, `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`; `unknown`."""
    if value is None:
        return "unknown"
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    minutes = round(value / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def size(value: int | None) -> str:
    """`512 bytes`, `4.0 KB`, `1.2 GB` (powers of 1024); `unknown`."""
    if value is None:
        return "unknown"
    amount = float(value)
    for unit in ("bytes", "KB", "MB", "GB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TB"


def count(value: int | None) -> str:
    """`12,345`; `unknown`."""
    return "unknown" if value is None else f"{value:,}"


def columns(rows: Sequence[Sequence[str]], header: Sequence[str] = (), indent: int = 0) -> str:
    """Rows with their columns lined up; the last one runs free."""
    lines = [list(header), *map(list, rows)] if header else [list(row) for row in rows]
    if not lines:
        return ""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join((" " * indent + line).rstrip() for line in padded)
