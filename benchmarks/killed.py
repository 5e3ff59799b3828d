"""Is a training that was killed in every stage the training that was left alone, bit for bit, by the command line?

    python -m benchmarks.killed --data camvid --labeled labeled_1_30 --methods cac cps
    python -m benchmarks.killed --data msrc_v2 --labeled "" --methods pass --backbone "" --steps 0 --set preset=small
        --classes 23 --protocol luss

For each method: `train` from a cold start, killed outright (SIGKILL) inside every stage (behind its first checkpoint or
its first mask, where it has one) and behind it, and resumed; `train` once more without a kill (or taken from an earlier
call); all tensors of both models compared; then `predict` and `evaluate` on the killed run's model. Prints a table, one
line a method, and exits with 1 where a method fails. Short runs by default: what is asked is whether they end alike,
not how well."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.records import data_root, weights_root
from maskwright.engine.checkpoint import CHECKPOINT

SEMI = (
    "supervised", "mean_teacher", "cct", "cac", "cps", "st_plus_plus", "adv_semi", "u2pl", "reco_semi", "unimatch",
)  # fmt: skip


def cli(*words: str) -> subprocess.Popen:
    """A process of the command line."""
    return subprocess.Popen(
        [sys.executable, "-m", "maskwright.cli", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> None:
    """Waits for the process; what it said where it failed."""
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(process.args[3:])}: {said.strip().splitlines()[-1:]}")


def train(words: list[str], run: Path) -> list[str]:
    """Trains, killed in and behind each stage; says where."""
    killed: list[tuple[str, str]] = []
    while True:
        process = cli(*words, "--out", str(run), *(["--resume"] if killed else []))
        while process.poll() is None:
            if place := _newly_reached(run, killed):
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed.append(place)
                break
            time.sleep(0.02)
        else:
            finish(process)
            return [f"{where} {stage}" for stage, where in killed]


def _newly_reached(run: Path, killed: list[tuple[str, str]]) -> tuple[str, str] | None:
    for folder in sorted(run.glob("*/")):
        done = (folder / "stage.json").exists()
        begun = (folder / CHECKPOINT).exists() or any(folder.glob("labels/masks/*"))
        place = (folder.name, "behind" if done else "inside")
        if (done or begun) and place not in killed:
            return place
    return None


def equal(a: Path, b: Path) -> tuple[int, int]:
    """How many tensors of two models are equal to the bit, and how many there are."""
    first, second = (load_file(p / "model.safetensors") for p in (a, b))
    same = [k for k in first if k in second and torch.equal(first[k], second[k])]
    return len(same), len(first | second)


def one(method: str, options: argparse.Namespace) -> tuple[str, bool]:
    """A method's line, and whether it passed."""
    data, out = data_root() / options.data, options.out / method
    words = ["train", str(data), "--split", "train", "--method", method, "--seed", "0"]
    for name in ("steps", "labeled", "classes", "backbone"):
        words += [f"--{name}", str(getattr(options, name))] if getattr(options, name) else []
    words += ["--weights", str(weights_root() / f"{options.backbone}.safetensors")] if options.backbone else []
    for setting in options.set:
        words += ["--set", setting]
    where = train(words, out / "killed")
    if not (out / "whole" / "model.safetensors").exists():
        finish(cli(*words, "--out", str(out / "whole")))
    same, all_ = equal(out / "killed", out / "whole")
    finish(cli("predict", str(out / "killed"), str(data), "--split", "test", "--out", str(out / "masks")))
    scores = out / "scores.json"
    protocol = ["--protocol", options.protocol] if options.protocol else []
    finish(cli("evaluate", str(out / "masks"), str(data), "--split", "test", "--json", str(scores), *protocol))
    miou, read = json.loads(scores.read_text())["miou"], json.loads((out / "killed" / "run.json").read_text())
    masks = sum(kinds.get("masks", 0) for kinds in read["labels_read"].values())
    line = f"| {method} | {', '.join(where)} | {same} of {all_} | {masks} | {100 * miou:.1f} |"
    return line, same == all_ and bool(where)


def main() -> int:
    """Runs the methods and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="camvid")
    parser.add_argument("--labeled", default="labeled_1_30")
    parser.add_argument("--methods", nargs="+", default=list(SEMI))
    parser.add_argument("--steps", type=int, default=120, help="0: the method's own number")
    parser.add_argument("--classes", type=int)
    parser.add_argument("--backbone", default="mobilenetv2_100", help='"": what the method takes by itself')
    parser.add_argument("--protocol", help="of the evaluation")
    parser.add_argument("--set", nargs="*", default=["crop=96", "batch=2"], help="options, key=value")
    parser.add_argument("--out", type=Path, default=Path("runs/killed"))
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print("| method | killed | tensors equal | masks read | test mIoU |\n|---|---|---|---|---|")
    passed = True
    for method in options.methods:
        line, good = one(method, options)
        passed &= good
        print(line, flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
