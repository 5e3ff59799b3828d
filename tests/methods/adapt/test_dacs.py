"""DACS and its floor: losses against slow formulas and the authors' tensors, what a step is made of, two folders."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder

import maskwright as mw
from maskwright.data.folders.folder import open_folder
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.mixing import mix
from maskwright.engine.config import configure
from maskwright.engine.opening import open_run
from maskwright.engine.progress import Progress
from maskwright.engine.request import RunRequest
from maskwright.engine.streams import open_sources
from maskwright.methods.adapt.dacs import DACS, DACSConfig, DACSTraining, mixed_loss, sure_share
from maskwright.methods.adapt.source_only import SourceOnly

SMALL = {"crops.size": 32, "crops.batch": 2, "precision": "fp32"}


def maps(seed: int, b: int = 2, classes: int = 3, size: int = 5) -> LabelMap:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(classes, (b, size, size), generator=g)
    return LabelMap(ids, torch.rand(b, size, size, generator=g), torch.rand(b, size, size, generator=g) < 0.8)


@pytest.fixture
def domains(tmp_path: Path) -> tuple[Path, Path]:
    """A labelled source with three named classes, and a target without a mask, tag or class name."""
    source = write_tiny_folder(tmp_path / "source")
    target = write_tiny_folder(tmp_path / "target", masks=False)
    for file in ("classes.txt", "tags.csv", "captions.csv"):
        (target / file).unlink()
    (target / "masks").rmdir()
    return source, target


def context_of(domains: tuple[Path, Path], out: Path, method: type = DACS):
    source, target = domains
    request = RunRequest(
        data=open_folder(target), method=method, config=configure(method.Config, SMALL), out=out,
        sources=open_sources(str(source)), backbone="mobilenetv3_small_050", weights="random", steps=4, device="cpu",
        progress=Progress(quiet=True),
    )  # fmt: skip
    return open_run(request)


def training_of(context, **options) -> DACSTraining:
    method = DACS(configure(DACSConfig, {**SMALL, **options}), context)
    return DACSTraining(context, method.config, method.labels(), 10)


# ---------------------------------------------------------------------- losses


def test_sure_share_is_one_number_for_the_batch():
    k = maps(0)
    sure = [float(k.confidence[p]) >= 0.6 for p in np.ndindex(2, 5, 5) if k.valid[p]]
    assert float(sure_share(k, 0.6)) == pytest.approx(np.mean(sure))
    nothing = k.restrict(torch.zeros_like(k.valid))
    assert float(sure_share(nothing, 0.6)) == 0


def test_mixed_loss_is_the_mean_over_all_pixels():
    y, k, q = maps(1), maps(2), torch.tensor(0.3)
    logits = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    mask = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(4)) < 0.5
    total, p = 0.0, logits.double().softmax(1)
    for b, i, j in np.ndindex(2, 5, 5):
        label, weight = (y, 1.0) if mask[b, i, j] else (k, 0.3)
        if label.valid[b, i, j]:
            total -= weight * math.log(p[b, label.ids[b, i, j], i, j])
    assert float(mixed_loss(logits, y, k, mask, q)) == pytest.approx(total / 50, rel=1e-5)


@pytest.mark.data
def test_equal_to_the_authors(data_root):
    """Weights, mixed labels and images, and the weighted cross-entropy on tensors of their code."""
    path = data_root.parent / "golden" / "daformer_mic" / "cases.safetensors"
    if not path.exists():
        pytest.skip("no tensors of the authors' code beside the photographs")
    cases = load_file(path)
    logits = cases["pseudo_weight.input.logits"].float()
    k = LabelMap.from_probs(logits.softmax(1))
    weight = cases["pseudo_weight.output.weight"]
    assert torch.equal(k.ids, cases["pseudo_weight.output.label"].long())
    assert torch.allclose(sure_share(k, 0.968).double().expand_as(weight), weight.double(), atol=1e-6)

    case = {n.removeprefix("class_mix."): t for n, t in cases.items() if n.startswith("class_mix.")}
    mask = case["output.mask"].bool()
    drawn = [torch.isin(y[0].long(), c.long()) for y, c in zip(case["input.source_label"], case["input.chosen_class"])]
    assert torch.equal(torch.stack(drawn), mask), "the mask is where the source shows a drawn class"
    mixed = mix(case["input.source"], case["input.target"], mask)
    assert torch.allclose(mixed, case["output.mixed"])
    y = LabelMap.from_mask(case["input.source_label"][:, 0].long())
    label = y.mix(LabelMap.from_mask(case["input.pseudo_label"].long()), mask).target(255)
    assert torch.equal(label, case["output.label"].long())

    case = {n.removeprefix("weighted_cross_entropy."): t for n, t in cases.items() if n.startswith("weighted_cross")}
    labels, weight = LabelMap.from_mask(case["input.label"].long()), case["input.weight"]
    # The loss takes one weight for the target's pixels: each pixel in turn stands for itself.
    total = 0.0
    for place in np.ndindex(*weight.shape):
        only = torch.zeros_like(labels.valid)
        only[place] = True
        no_source = torch.zeros_like(only)
        total += float(mixed_loss(case["input.logits"], labels, labels.restrict(only), no_source, weight[place]))
    assert total == pytest.approx(float(case["output.loss"]), rel=1e-6)


# ---------------------------------------------------------------------- the step


def test_mixed_crops_are_source_where_the_mask_is_and_target_elsewhere(domains, tmp_path):
    t = training_of(context_of(domains, tmp_path / "run"), **{"target.strong": "none"})
    batch = t.batch(t.sampler.next(), torch.Generator().manual_seed(0))
    x_m, mask = batch["m"]
    s, u = batch["s"], batch["t"]
    assert mask.any() and not mask.all()
    where = mask[:, None].expand_as(x_m)
    assert torch.equal(x_m[where], s.weak[where]) and torch.equal(x_m[~where], u.weak[~where])
    assert not (mask & ~s.valid).any(), "void is no class"
    shown = s.y.ids[s.valid].unique()
    drawn = s.y.ids[mask].unique()
    assert len(drawn) == -(-len(shown) // 2), "half of the batch's classes, rounded up"
    again = t.batch({"s": np.array(s.images), "t": np.array(u.images)}, torch.Generator().manual_seed(0))
    assert torch.equal(again["m"][0], x_m), "a batch is a function of its images and the generator"


def test_total_is_source_plus_weighted_mixed(domains, tmp_path):
    t = training_of(context_of(domains, tmp_path / "run"), weight=0.5)
    batch = t.on_device(t.batch(t.sampler.next(), torch.Generator().manual_seed(0)))
    torch.manual_seed(0)
    terms = t.losses(batch, 3)
    found = {name: float(term.detach()) for name, term in terms.items()}
    assert found["loss"] == pytest.approx(found["s"] + 0.5 * found["m"], rel=1e-6)
    waits = training_of(context_of(domains, tmp_path / "later"), start=0.9)
    assert set(waits.losses(batch, 0)) == {"loss", "s"}


def test_no_label_of_the_target_can_be_read(domains, tmp_path):
    """A target with masks gives the weights of one without: nothing of them is opened."""
    source, _ = domains
    whole, bare = write_tiny_folder(tmp_path / "a" / "set"), write_tiny_folder(tmp_path / "b" / "set")
    for mask in (bare / "masks").iterdir():
        mask.unlink()
    found = []
    for target in (whole, bare):
        out = target.parent / "run"
        train(target, source, out)
        record = json.loads((out / "run.json").read_text())
        assert record["labels_read"]["train"] == {"masks": 8, "tags": 0, "captions": 0}
        found.append(load_file(out / "model.safetensors"))
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


def train(target: Path, source: Path, out: Path, method: str = "dacs", **options):
    return mw.train(
        target, method, source=str(source), out=out, backbone="mobilenetv3_small_050", weights="random", steps=6,
        device="cpu", report=False, settings=SMALL, progress=Progress(quiet=True), **options,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["dacs", "source_only"])
def test_classes_are_the_sources(method, domains, tmp_path):
    source, target = domains
    model = train(target, source, tmp_path / "run", method)
    assert list(model.classes.names) == ["ground", "disc", "square"]
    result = model.predict(next((target / "images").iterdir()))
    assert result.mask.max() < 3


def test_one_folder_as_both_domains(tmp_path):
    """Disjoint splits of one folder; the target's masks stay closed."""
    folder = write_tiny_folder(tmp_path / "both")
    mw.train(
        folder, "dacs", source=(str(folder), "train"), split="test", out=tmp_path / "run",
        backbone="mobilenetv3_small_050", weights="random", steps=6, device="cpu", report=False, settings=SMALL,
        progress=Progress(quiet=True),
    )  # fmt: skip
    assert json.loads((tmp_path / "run" / "run.json").read_text())["labels_read"]["train"]["masks"] == 4


def test_the_floor_takes_the_statistics_of_its_own_photographs(domains, tmp_path):
    context = context_of(domains, tmp_path / "run", SourceOnly)
    method = SourceOnly(context.run and configure(SourceOnly.Config, SMALL), context)
    assert method.labels().data is context.data_of("source") and method.seen() == list(range(8))


def test_teacher_copies_until_the_mixed_loss_sets_in(domains, tmp_path):
    t = training_of(context_of(domains, tmp_path / "run"), start=0.5)
    with torch.no_grad():
        for p in t.network.parameters():
            p.add_(1)
    t.after_step(0)
    pairs = zip(t.network.parameters(), t.teacher.network.parameters())
    assert all(torch.equal(a, b) for a, b in pairs) and t.teacher.average.updates == 0
