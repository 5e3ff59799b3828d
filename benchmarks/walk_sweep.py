"""How far and how strictly maps should walk: `python -m benchmarks.walk_sweep RUN`.

RUN is a run folder of the tag pipeline with a walk in it (`benchmarks.tags` leaves them as ROW-SEED/run). Its trained
affinity takes the raw maps of every so-many-th photograph on walks of several lengths and exponents; judged are the
walked maps against masks, at the threshold found without masks and at the best one. It peeks, so a default chosen by
it was not chosen blindly on these photographs."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.cam_figures import opened
from benchmarks.records import data_root
from maskwright import api
from maskwright.recipes.tags.maps import CamStore, ImageCams
from maskwright.recipes.tags.network import tag_preprocess
from maskwright.recipes.tags.options import SeedOptions
from maskwright.recipes.tags.thresholds import choose_threshold, sweep_thresholds


def main() -> None:
    """Prints a line a setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", default="voc_part")
    parser.add_argument("--split", default="train")
    parser.add_argument("--every", type=int, default=7, help="photographs that are walked, one of so many")
    parser.add_argument("--betas", default="10,20,30", help="exponents of the affinity")
    parser.add_argument("--steps", default="0", help="lengths; 0: in proportion to the cells, -1: the published one")
    parser.add_argument("--alphas", default="0", help="psa: powers of the background; 0: from the threshold found")
    options = parser.parse_args()
    torch.set_num_threads(1)
    everything = api.open_folder(data_root() / options.data)
    data = everything.split(options.split)
    method = opened(options.run)
    split = json.loads((options.run / "run.json").read_text())["split"]
    method.context.data = everything.split(split) if split else everything
    walk = method.walk
    kind, network = walk.kind, walk.trained_affinity()
    preprocess = tag_preprocess(method.context, method.config, network.multiple_of)
    chosen = [i for i, name in enumerate(data.names) if name in walk.raw_store][:: options.every]
    walked_over = data.subset(chosen)
    classes = len(data.classes or ())
    raw = {i: walk.raw_store.read(data.names[i]) for i in chosen}
    inputs = {i: preprocess.apply(data.image(i), preprocess.target_size(data.size(i))) for i in chosen}

    def judge(what: str, maps: dict[int, torch.Tensor], walked: bool) -> None:
        with TemporaryDirectory() as folder:
            store = CamStore(Path(folder))
            for i in chosen:
                store.write(data.names[i], ImageCams(raw[i].keys, maps[i], raw[i].size))
            sweep = sweep_thresholds(store, data, method.targets, classes, "evaluate")
            known = walk.threshold(method.targets) if walked else None
            found = choose_threshold(SeedOptions(), store, walked_over, method.targets, classes, known).value
            at, best = sweep.curve()[sweep.nearest(found)], sweep.best()
        print(f"{what}: {100 * at.miou:.2f} at {found:.2f}, {100 * best.miou:.2f} at {best.threshold:.2f}", flush=True)

    if kind == "irn":
        edges = torch.cat([network.boundaries(x).flatten() for x in inputs.values()]).numpy()
        median, high = np.quantile(edges, (0.5, 0.95))
        print(f"boundaries: median {median:.3f}, one of twenty above {high:.3f}")
    print(f"{len(chosen)} photographs, {kind}; mIoU at the threshold found and at the best one")
    judge("no walk", {i: cams.maps for i, cams in raw.items()}, walked=False)
    lists = (options.steps, options.betas, options.alphas)
    for steps, beta, alpha in itertools.product(*(map(float, values.split(",")) for values in lists)):
        c = method.config.walk
        c.beta, c.alpha = beta, alpha
        c.steps = method.published[kind] if steps < 0 else int(steps)
        length = {-1: f"published {c.steps}", 0: "in proportion"}.get(int(steps), str(int(steps)))
        power = f", alpha {alpha:g}" if alpha else ""
        maps = {i: walk.walked(network, inputs[i], raw[i]) for i in chosen}
        judge(f"beta {beta:g}, length {length}{power}", maps, walked=True)


if __name__ == "__main__":
    main()
