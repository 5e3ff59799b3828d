"""Runs every benchmark and prints one table: `python -m benchmarks [NAME ...]`, names without `bench_`."""

from __future__ import annotations

import importlib
import os
import platform
import sys
import traceback
from pathlib import Path

from benchmarks.common import Row

HEADER = ("hot path", "ours", "other way", "its time", "ratio", "asked", "of limit", "results")


def main(names: list[str]) -> int:
    """Prints the table; returns 1 when a benchmark failed."""
    folder = Path(__file__).parent
    found = sorted(p.stem for p in folder.glob("bench_*.py"))
    chosen = [f for f in found if not names or f.removeprefix("bench_") in names]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print("  ".join(f"{h:>{w}}" for h, w in zip(HEADER, WIDTHS)))
    failed = 0
    for name in chosen:
        try:
            for row in importlib.import_module(f"benchmarks.{name}").rows():
                print(line(row), flush=True)
        except Exception:
            failed = 1
            traceback.print_exc()
    return failed


WIDTHS = (52, 10, 34, 10, 7, 6, 8, 24)


def line(row: Row) -> str:
    """One row of the table."""
    cells = (
        row.path,
        _time(row.ours_s),
        row.other,
        _time(row.other_s),
        f"{row.ratio:.2f}x",
        f"{row.asked:g}x" if row.asked else "-",
        f"{row.limit_s / row.ours_s:.0%}" if row.limit_s else "-",
        row.agrees,
    )
    return "  ".join(f"{c:>{w}}" for c, w in zip(cells, WIDTHS))


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
