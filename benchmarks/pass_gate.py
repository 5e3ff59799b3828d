"""Does PASS's gate learn where objects are? `python -m benchmarks.pass_gate RUN`.

Takes the pretraining of a run of `benchmarks.pass_ablation` and trains the gate's stage on it in three ways: as it is;
with the gate kept at its random start, so that only the prototypes learn; and begun neutral (the last scale 0, so that
every pixel and channel is open by a half). Prints the loss at the start and the end, the area under the ROC curve of
the mean gate against objects on photographs of voc_part, how wide it is within a photograph, and what the labelling
rule is worth on the training photographs by image-level matching; then the same of gates with random weights."""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.attention_figure import area_on_objects
from benchmarks.records import data_root, take_over
from maskwright import api
from maskwright.data.folders.folder import Dataset
from maskwright.data.trust.files import write_json
from maskwright.methods.unsupervised.pass_ import method
from maskwright.methods.unsupervised.pass_.training import AttentionTraining
from maskwright.models.parts.attended_clusters import PixelAttention, upsampled


class Kept(AttentionTraining):
    """The gate's stage without a gradient for the gate."""

    def attended(self, x: Tensor) -> Tensor:
        """As it is, without gradients."""
        with torch.no_grad():
            return super().attended(x)


class Neutral(PixelAttention):
    """A gate that begins at a half everywhere."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        nn.init.zeros_(self.gate[-1].weight)  # type: ignore[arg-type]


VARIANTS: dict[str, dict[str, type]] = {
    "as it is": {},
    "kept at its start": {"AttentionTraining": Kept},
    "neutral": {"PixelAttention": Neutral},
}
"""Row -> what takes the place of a part of the method."""


def units(run: Path, data: Dataset, chosen: list[int]) -> list[Tensor]:
    """Features of unit length (1, F, h, w) of photographs, as the gate reads them."""
    segmenter = api.load(run / "label" / "clusters.safetensors").segmenter
    found = []
    with torch.inference_mode():
        for i in chosen:
            x = segmenter.preprocess.apply(data.image(i))[None]
            found.append(F.normalize(upsampled(segmenter.encoder(x)), dim=1))
    return found


def judge(gate: nn.Module, n: list[Tensor], data: Dataset, chosen: list[int]) -> dict[str, float]:
    """Area under the ROC curve, per cent, and the standard deviation within a photograph, means over photographs."""
    areas, widths = [], []
    for i, x in zip(chosen, n, strict=True):
        with torch.inference_mode():
            mean = gate(x).mean(1)[0].double().numpy()
        widths.append(mean.std())
        area = area_on_objects(mean, data.mask(i))
        areas += [] if area is None else [area]
    return {"area": 100 * float(np.mean(areas)), "width": float(np.mean(widths))}


def random_gate(seed: int, n: list[Tensor]) -> nn.Module:
    """A gate with random weights, with the statistics of these photographs."""
    torch.manual_seed(seed)
    gate = PixelAttention(n[0].shape[1]).train()
    for m in gate.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 1.0
    with torch.no_grad():
        gate(torch.cat([x.flatten(2) for x in n], 2)[..., None])
    return gate.eval()


def one(
    source: Path, name: str, steps: int | None, row: str, out: Path, data: Dataset, chosen: list[int]
) -> dict[str, float]:
    """Trains the stage on photographs of a set in one of the ways and judges it."""
    seed = int(source.name.split("-")[-1])
    folder = api.open_folder(data_root() / name)
    take_over(source, out, "pretrain")
    with ExitStack() as changed:
        for part, other in VARIANTS[row].items():
            changed.enter_context(patch.object(method, part, other))
        api.train(
            data_root() / name, "pass", out=out, split="train", classes=len(folder.classes or ()), seed=seed,
            steps=steps, settings={"preset": "small", "finetune_epochs": "0"}, resume=True, report=False,
        )  # fmt: skip
    lines = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    loss = [line["loss"] for line in lines if line["stage"] == "attention" and "loss" in line]
    rule = api.evaluate(out / "label" / "labels" / "masks", folder.split("train"), protocol="luss")
    gate = api.load(out / "label" / "clusters.safetensors").segmenter.classifier.attention
    found = {"first": float(np.mean(loss[:10])), "last": float(np.mean(loss[-20:])), "rule": 100 * rule.miou}
    found |= judge(gate, units(out, data, chosen), data, chosen)
    write_json(out / "scores.json", found)
    return found


def main() -> None:
    """Runs what is asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("run", type=Path, help="DATA-ROW-SEED of pass_ablation, pretrained")
    parser.add_argument("--on", help="the photographs that the stage learns from; the run's own if not given")
    parser.add_argument("--steps", type=int, help="of pretraining, of which the stage takes its share")
    parser.add_argument("--rows", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--random", type=int, default=4, help="how many gates with random weights")
    parser.add_argument("--out", type=Path, default=Path("runs/pass-gate"))
    args = parser.parse_args()
    data = api.open_folder(data_root() / "voc_part").split("val")
    chosen = list(range(0, len(data), 4))[:40]
    print("| gate | loss, first 10 and last 20 steps | area under the ROC curve | width | rule on `train`, mIoU |")
    print("|---|---|---|---|---|")
    name = args.on or args.run.name.split("-")[0]
    places = {row: args.out / f"{args.run.name}-on-{name}-{row.replace(' ', '_')}" for row in args.rows}
    for row, out in places.items():
        done = out / "scores.json"
        s = json.loads(done.read_text()) if done.exists() else one(args.run, name, args.steps, row, out, data, chosen)
        loss = f"{s['first']:.2f}, {s['last']:.2f}"
        print(f"| {row} | {loss} | {s['area']:.1f} | {s['width']:.4f} | {s['rule']:.1f} |", flush=True)
    n = units(places[args.rows[0]], data, chosen)
    for seed in range(args.random):
        s = judge(random_gate(seed, n), n, data, chosen)
        print(f"| random weights, seed {seed} | - | {s['area']:.1f} | {s['width']:.4f} | - |")


if __name__ == "__main__":
    main()
