"""`compare`: runs side by side; `train_seeds`: one setting over several seeds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwright.api.training import train
from maskwright.errors import MaskwrightError

if TYPE_CHECKING:
    from maskwright.app.comparing.joining import Comparison
    from maskwright.data.folders.folder import Dataset


def compare(*runs: str | Path, out: str | Path | None = None) -> Comparison:
    """Compares runs by what they were judged by: seeds of equal settings joined, unequal judgements kept apart.

    Args:
        runs: folders of runs, folders that hold such, or patterns.
        out: a file for one HTML page with figures, curves and the same photographs side by side; None: no page.

    Returns:
        The comparison. A notebook shows it as tables.

    Raises:
        MaskwrightError: no run was named or found, none can be read, or the page cannot be written.
    """
    from maskwright.app.comparing.joining import join
    from maskwright.app.comparing.page import write_page
    from maskwright.app.comparing.runs import find_runs, read_run

    if not runs:
        raise MaskwrightError("no run to compare", "folders of runs", "maskwright compare RUN RUN")
    if out is not None and Path(out).is_dir():
        raise MaskwrightError(f"{out} is a folder", "a file for the page", f"--out {Path(out) / 'compare.html'}")
    read, errors = [], []
    folders, empty = find_runs(runs)
    for folder in folders:
        try:
            read.append(read_run(folder))
        except MaskwrightError as error:
            errors.append(error)
    if not read:
        raise errors[0]
    comparison = join(read)
    comparison.notices[:0] = [*empty, *(f"Left out: {error}" for error in errors)]
    if out is not None:
        write_page(comparison, out)
    return comparison


def train_seeds(
    data: str | Path | Dataset,
    method: str = "auto",
    *,
    seeds: Iterable[int] = (0, 1, 2),
    out: str | Path | None = None,
    resume: bool = False,
    **options: Any,
) -> Comparison:
    """Trains one setting with several seeds, one after another, each into OUT/seed-N.

    Args:
        data, method: as for `train`.
        seeds: each once.
        out: the folder of the runs; by default `runs/METHOD-DATA`, with the method's name as it is given.
        resume: go on where it stopped: finished runs are kept, one that was interrupted is continued, the others begin.
        options: all else that `train` takes.

    Returns:
        The runs side by side.

    Raises:
        MaskwrightError: no seed, one twice, a folder that holds another run, or what `train` raises; seeds that are
            done stay done.
    """
    from maskwright.data.trust.files import file_for
    from maskwright.engine.progress import Progress
    from maskwright.engine.records import RECORD, RunFolder

    chosen = [int(seed) for seed in seeds]
    if not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 0:
        raise MaskwrightError(f"--seeds {','.join(map(str, chosen))}", "different whole numbers from 0 on", "0,1,2")
    root = data if isinstance(data, str | Path) else data.root
    place = str(root).rpartition(":")[2] if not Path(root).exists() else str(root)
    folder = Path(out) if out is not None else file_for(Path("runs"), f"{method}-{Path(place).resolve().name}", "")
    if (folder / RECORD).exists():
        raise MaskwrightError(f"{folder} holds a run of its own", "a folder for runs", "choose another --out")
    places = [folder / f"seed-{seed}" for seed in chosen]
    for one in places:  # all of them before the first begins: the last may begin hours later
        RunFolder.check(one, resume=resume)
    bar = options.pop("progress", None) or Progress.of_this_process()
    for k, (seed, one) in enumerate(zip(chosen, places), 1):
        finished = resume and RunFolder.standing(one) == "is finished"
        bar.say(f"seed {seed} ({k} of {len(chosen)}): {one}{', which is finished' if finished else ''}")
        # A finished run is opened too: with other settings it is another run, which is said; its page stays.
        again = {"report": False} if finished else {}
        train(data, method, out=one, seed=seed, resume=resume, progress=bar, **{**options, **again})
    return compare(*places)
