"""The command: `python -m benchmarks.fuzz`; prints what came of the mutations and ends with 1 where one failed."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SLOW = 10.0
"""Seconds from which on a mutation is listed as slow, though it does not fail."""


def main(words: Sequence[str] | None = None) -> int:
    """Runs the fuzzer, or the kills; returns 1 where something failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="mutations in all")
    parser.add_argument("--seed", type=int, default=0, help="every mutation is a function of it and its number")
    parser.add_argument("--kinds", default="", help="names joined by commas; all if empty")
    parser.add_argument("--jobs", type=int, default=1, help="workers")
    parser.add_argument("--only", default="", help="KIND:NUMBER,...: these mutations alone, told in full")
    parser.add_argument("--keep", type=Path, help="folder for the files that failed")
    parser.add_argument("--kills", type=int, default=0, help="instead: end runs at this many random moments")
    options = parser.parse_args(words)
    scratch = Path(tempfile.mkdtemp(prefix="maskwright-fuzz-", dir=_memory_disk()))
    os.environ["MASKWRIGHT_CACHE"] = str(scratch / "cache")
    try:
        if options.kills:
            from benchmarks.fuzz.kills import kill_runs

            return kill_runs(options.kills, options.seed, scratch)
        return fuzz(options, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _memory_disk() -> str | None:
    """A disk in memory where there is one: ten thousand small files are synced to it at no cost."""
    place = "/dev/shm"
    return place if os.path.isdir(place) and os.access(place, os.W_OK) else None


def fuzz(options: argparse.Namespace, scratch: Path) -> int:
    """Tries the mutations and prints the table."""
    import multiprocessing

    import torch

    import maskwright.api
    import maskwright.cli
    import maskwright.data.examining.doctor
    import maskwright.methods
    import maskwright.predict.model
    import maskwright.predict.suggest  # noqa: F401
    from benchmarks.fuzz.kinds import KINDS, RUNS, prepare
    from benchmarks.fuzz.pool import run_all
    from benchmarks.fuzz.trial import FAILURES, OUTCOMES, Bench, Report

    torch.set_num_threads(1)
    chosen = options.kinds.split(",") if options.kinds else list(KINDS)
    tasks = list(_tasks(options, chosen))
    kinds = {name: KINDS[name] for name in dict.fromkeys(k for k, _ in tasks)}
    bases, began = scratch / "bases", time.monotonic()
    needs = {"bundles": RUNS, "checkpoints": RUNS, "runs": RUNS, "suggest": ("kmeans", "mean_teacher")}
    methods = dict.fromkeys(m for k in kinds for m in needs.get(k, ("kmeans",)))
    # In a process of its own: one that has trained cannot be forked into workers that train.
    first = multiprocessing.get_context("fork").Process(target=_prepare, args=(bases, list(methods), prepare))
    first.start()
    first.join()
    if first.exitcode:
        print("the runs to start from could not be made", file=sys.stderr)
        return 1
    print(f"{len(tasks)} mutations, seed {options.seed}; {time.monotonic() - began:.0f} s to make what they start from")

    def bench(k: int) -> Bench:
        os.environ["MASKWRIGHT_CACHE"] = str(scratch / f"cache-{k}")
        shutil.copytree(bases / "cache", scratch / f"cache-{k}", dirs_exist_ok=True)
        return Bench(kinds, bases, scratch / f"worker-{k}", options.seed)

    counts: dict[str, Counter[str]] = defaultdict(Counter)
    seconds: Counter[str] = Counter()
    failed: list[Report] = []
    slow: list[tuple[float, Report]] = []
    began = shown = time.monotonic()
    describe = Bench(kinds, bases, scratch / "described", options.seed)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for done, (report, took, cpu) in enumerate(run_all(bench, tasks, scratch, jobs=options.jobs), 1):
            if not report.case:  # it died before it could say what it had in hand
                case, mutant = describe.mutant(report.kind, report.number)
                report = Report(report.kind, report.number, report.outcome, case.name, mutant.says, report.verb,
                                report.place if report.outcome == "crash" else case.name, report.detail)  # fmt: skip
            counts[report.kind][report.outcome] += 1
            seconds[report.kind] += cpu  # type: ignore[assignment]
            if report.outcome in FAILURES:
                failed.append(report)
                if options.keep is not None:
                    _keep(options.keep, describe, report)
            if took > SLOW:
                slow.append((took, report))
            if options.only:
                print(f"{report.kind}:{report.number} {report.outcome}: {report.case}; {report.change}; {report.verb}; "
                      f"{report.place}; {report.detail}")  # fmt: skip
            if time.monotonic() - shown > 30:
                shown = time.monotonic()
                print(
                    f"  {done} of {len(tasks)}, {done / (shown - began):.1f}/s, {len(failed)} failed", file=sys.stderr
                )
    except KeyboardInterrupt:
        print(f"interrupted before all {len(tasks)} were tried")
    took = time.monotonic() - began
    print(table(counts, seconds, OUTCOMES))
    tried = sum(c.total() for c in counts.values())
    print(f"{tried} in {took:.0f} s, {tried / max(took, 1e-9):.1f} a second, {options.jobs} workers")
    for line in distinct(failed, options.seed):
        print(line)
    for took, report in sorted(slow, key=lambda s: -s[0])[:20]:
        print(f"slow: {took:.0f} s, {report.kind}:{report.number}, {report.outcome}, {report.case}; {report.change}")
    return 1 if failed else 0


def _prepare(bases: Path, methods: list[str], prepare) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ["MASKWRIGHT_CACHE"] = str(bases / "cache")
    bases.mkdir(parents=True)
    prepare(bases, methods)


def _tasks(options: argparse.Namespace, chosen: Sequence[str]) -> Iterator[tuple[str, int]]:
    from benchmarks.fuzz.kinds import KINDS

    if options.only:
        for text in options.only.split(","):
            kind, _, number = text.partition(":")
            yield kind, int(number)
        return
    total = sum(KINDS[name].share for name in chosen)
    counts = {name: round(options.count * KINDS[name].share / total) for name in chosen}
    counts[chosen[0]] += options.count - sum(counts.values())
    # The kinds take turns, so that a run that is cut short has seen all of them.
    order = sorted(((i + 0.5) / n, name, i) for name, n in counts.items() for i in range(n))
    for _, name, i in order:
        yield name, i


def _keep(folder: Path, describe, report) -> None:
    case, mutant = describe.mutant(report.kind, report.number)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{report.kind}-{report.number}-{report.outcome}-{Path(case.target).name}").write_bytes(mutant.data)


def table(counts: dict[str, Counter[str]], seconds: Counter[str], outcomes: Sequence[str]) -> str:
    """Kinds by outcomes, as Markdown."""
    lines = [f"| kind | mutations | {' | '.join(outcomes)} | s computed |", "|---" * (len(outcomes) + 3) + "|"]
    for kind, found in (*sorted(counts.items()), ("all", sum(counts.values(), Counter()))):
        spent = seconds[kind] if kind != "all" else sum(seconds.values())
        cells = " | ".join(str(found[o]) for o in outcomes)
        lines.append(f"| {kind} | {sum(found.values())} | {cells} | {spent:.0f} |")
    return "\n".join(lines)


def distinct(failed, seed: int) -> list[str]:
    """One line for each outcome and place, the commonest first, with the numbers that repeat the first few."""
    groups = defaultdict(list)
    for report in failed:
        groups[report.outcome, report.place].append(report)
    lines = []
    for (outcome, place), reports in sorted(groups.items(), key=lambda g: -len(g[1])):
        numbers = ", ".join(f"{r.kind}:{r.number}" for r in sorted(reports, key=lambda r: (r.kind, r.number))[:4])
        first = reports[0]
        detail = " ".join(first.detail.split())[:160]
        lines.append(f"{outcome}, {len(reports)} times, {place}: {detail} [{first.case}; {first.change}; {first.verb}]")
        lines.append(f"    --seed {seed} --only {numbers}".replace(", ", ","))
    return lines


if __name__ == "__main__":
    sys.exit(main())
