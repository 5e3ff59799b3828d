"""DACS and its floor: losses against slow formulas and the authors' tensors, what a step is made of, two folders."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder
from tests.golden.cases import read_cases
from tests.methods.adapt.two_folders import SMALL, context_of, train

import maskwright as mw
from maskwright.data.folders.folder import open_folder
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.mixing import mix
from maskwright.engine.config import configure
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.methods.adapt.dacs import DACS, DACSConfig, DACSTraining, mixed_loss, sure_share
from maskwright.methods.adapt.source_only import SourceOnly
from maskwright.recipes.training.network import make_network, make_preprocess, retake
from maskwright.recipes.training.norm_statistics import batch_norms, retake_statistics


def maps(seed: int, b: int = 2, classes: int = 3, size: int = 5) -> LabelMap:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(classes, (b, size, size), generator=g)
    return LabelMap(ids, torch.rand(b, size, size, generator=g), torch.rand(b, size, size, generator=g) < 0.8)


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
def test_equal_to_the_authors(golden_root):
    """Weights, mixed labels and images, and the weighted cross-entropy with its gradient, on tensors of their code."""
    cases = read_cases(golden_root, "daformer_mic")
    for name in ("pseudo_weight", "pseudo_weight_none_confident"):
        k = LabelMap.from_probs(cases[name].input["logits"].float().softmax(1))
        weight = cases[name].output["weight"]
        assert torch.equal(k.ids, cases[name].output["label"].long())
        assert torch.allclose(sure_share(k, 0.968).double().expand_as(weight), weight.double(), atol=1e-6)

    case = cases["class_mix"]
    mask = case.output["mask"].bool()
    drawn = [torch.isin(y[0].long(), c.long()) for y, c in zip(case.input["source_label"], case.input["chosen_class"])]
    assert torch.equal(torch.stack(drawn), mask), "the mask is where the source shows a drawn class"
    mixed = mix(case.input["source"], case.input["target"], mask)
    assert torch.allclose(mixed, case.output["mixed"])
    y = LabelMap.from_mask(case.input["source_label"][:, 0].long())
    label = y.mix(LabelMap.from_mask(case.input["pseudo_label"].long()), mask).target(255)
    assert torch.equal(label, case.output["label"].long())

    case = cases["weighted_cross_entropy"]
    labels, weight = LabelMap.from_mask(case.input["label"].long()), case.input["weight"]
    logits = case.input["logits"].double().requires_grad_()
    # The loss takes one weight for the target's pixels: each pixel in turn stands for itself.
    total = logits.new_zeros(())
    for place in np.ndindex(*weight.shape):
        only = torch.zeros_like(labels.valid)
        only[place] = True
        no_source = torch.zeros_like(only)
        total = total + mixed_loss(logits, labels, labels.restrict(only), no_source, weight[place].double())
    total.backward()
    assert float(total.detach()) == pytest.approx(float(case.output["loss"]), rel=1e-6)
    torch.testing.assert_close(logits.grad, case.grad["logits"].double(), rtol=1e-5, atol=1e-9)


# ---------------------------------------------------------------------- the step


def test_mixed_crops_are_source_where_the_mask_is_and_target_elsewhere(domains, tmp_path):
    t = training_of(context_of(domains, tmp_path / "run", DACS), **{"target.strong": "none"})
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
    t = training_of(context_of(domains, tmp_path / "run", DACS), weight=0.5)
    batch = t.on_device(t.batch(t.sampler.next(), torch.Generator().manual_seed(0)))
    torch.manual_seed(0)
    terms = t.losses(batch, 3)
    found = {name: float(term.detach()) for name, term in terms.items()}
    assert found["loss"] == pytest.approx(found["s"] + 0.5 * found["m"], rel=1e-6)
    waits = training_of(context_of(domains, tmp_path / "later", DACS), start=0.9)
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
        train(target, source, out, "dacs")
        record = json.loads((out / "run.json").read_text())
        assert record["labels_read"]["train"] == {"masks": 8, "tags": 0, "captions": 0}
        found.append(load_file(out / "model.safetensors"))
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


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


@pytest.mark.parametrize(("photographs", "own", "other"), [("seen", 0, 1), ("all", 1, 0)])
def test_whose_statistics_the_floor_takes(photographs, own, other, domains, tmp_path):
    """Those of the source's photographs, which training looked at; with `all` the target's (AdaBN)."""
    darken(domains[1])
    settings = {} if photographs == "seen" else {"norms.photographs": photographs}
    saved = train(domains[1], domains[0], tmp_path / "run", "source_only", steps=2, settings=settings).segmenter
    retaken = [copy.deepcopy(saved) for _ in domains]
    for segmenter, folder in zip(retaken, domains):
        retake_statistics(segmenter, open_folder(folder), range(8), saved.preprocess, torch.device("cpu"))
    found, *of_domain = (
        torch.cat([torch.cat([m.running_mean, m.running_var]) for m in batch_norms(segmenter)])
        for segmenter in (saved, *retaken)
    )
    torch.testing.assert_close(found, of_domain[own], atol=1e-4, rtol=1e-4)
    assert float((found - of_domain[other]).abs().max()) > 0.1


def darken(target: Path) -> None:
    """Photographs a third as bright."""
    for file in (target / "images").iterdir():
        Image.fromarray(np.asarray(Image.open(file)) // 3).save(file)


NOT_ONE = "Batch-norm statistics are training's own: one photograph is too few for others"
NONE = "The network has no batch norm that could take statistics of photographs"


@pytest.mark.parametrize(
    ("keep", "images", "said"),
    [(1, 64, f"{NOT_ONE} (give more photographs)."), (8, 1, f"{NOT_ONE} (--set norms.images=2 takes two)."),
     (8, 2, ""), (8, 0, ""), (1, 0, "")],
)  # fmt: skip
def test_statistics_that_are_not_taken_are_said(keep, images, said, domains, tmp_path):
    """A target of one photograph has no batch, neither has `norms.images=1`; whoever asks for none gets no word."""
    for file in sorted((domains[1] / "images").iterdir())[keep:]:
        file.unlink()
    options = {"norms.photographs": "all"} if images else {}
    context = context_of(domains, tmp_path / "run", SourceOnly, **options, **{"norms.images": images})
    config = configure(SourceOnly.Config, {**SMALL, **options, "norms.images": images})
    network = make_network(context, config)
    retake(context, config, network, make_preprocess(config, network), range(8), context.data_of("source"))
    assert [note for note in context.notes if note.startswith((NOT_ONE, NONE))] == ([said] if said else [])


@pytest.mark.parametrize(("options", "said"), [({"norms.photographs": "all"}, 1), ({"norms.images": 8}, 1), ({}, 0)])
def test_a_network_without_batch_norm_takes_none(options, said, domains, tmp_path):
    context = context_of(domains, tmp_path / "run", SourceOnly, **options)
    config = configure(SourceOnly.Config, {**SMALL, **options})
    network = make_network(context, config)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, torch.nn.Identity())
    preprocess = make_preprocess(config, network)
    for _ in range(2):
        retake(context, config, network, preprocess, range(8), context.data_of("source"))
    assert len([note for note in context.notes if note.startswith(NONE)]) == said, "once, where it was asked for"


def test_teacher_copies_until_the_mixed_loss_sets_in(domains, tmp_path):
    t = training_of(context_of(domains, tmp_path / "run", DACS), start=0.5)
    with torch.no_grad():
        for p in t.setup.network.parameters():
            p.add_(1)
    t.after_step(0)
    pairs = zip(t.setup.network.parameters(), t.teacher.network.parameters())
    assert all(torch.equal(a, b) for a, b in pairs) and t.teacher.average.updates == 0


# ---------------------------------------------------------------------- what came after it


EVERYTHING = {
    "rare.temperature": 0.01, "rare.pixels": 0.02, "things.distance": 0.5, "things.classes": ("disc", "square"),
    "masked.consistency": 0.7, "masked.cell": 8,
}  # fmt: skip


def test_options_of_the_family_are_off_and_change_nothing_of_the_draws(domains, tmp_path):
    plain = training_of(context_of(domains, tmp_path / "run", DACS))
    assert plain.start is None and plain.setup.streams["s"].choose is None
    masked = training_of(plain.setup.context, **{"masked.consistency": 1.0})
    images = plain.sampler.next()
    a, b = (t.batch(images, torch.Generator().manual_seed(0)) for t in (plain, masked))
    assert set(a) == {"s", "t", "m"} and set(b) == {"s", "t", "m", "k"}
    assert torch.equal(a["m"][0], b["m"][0]), "masks are drawn behind all else"


def test_total_with_everything_and_what_gradients_reach(domains, tmp_path):
    t = training_of(context_of(domains, tmp_path / "run", DACS), **EVERYTHING, weight=0.5)
    batch = t.on_device(t.batch(t.sampler.next(), torch.Generator().manual_seed(0)))
    x_a, kept = batch["k"]
    assert kept.shape == (2, 32, 32) and x_a.shape == (2, 3, 32, 32)
    start = {k: v.clone() for k, v in t.start.state_dict().items() if "running" not in k and "num_b" not in k}
    with torch.no_grad():  # an encoder that has moved
        for p in t.setup.network.encoder.parameters():
            p.mul_(1.1)
    torch.manual_seed(0)
    terms = t.losses(batch, 3)
    found = {name: float(term.detach()) for name, term in terms.items()}
    total = found["s"] + 0.5 * found["fd"] + 0.5 * (found["m"] + 0.7 * found["k"])
    assert found["fd"] > 0 and found["loss"] == pytest.approx(total, rel=1e-5)
    terms["loss"].backward()
    for frozen in (t.start, t.teacher.network):
        assert all(p.grad is None for p in frozen.parameters()), "neither the start nor the teacher learns by gradients"
    assert all(p.grad is not None for p in t.setup.network.encoder.parameters() if p.requires_grad)
    assert not any(p.requires_grad for p in t.start.parameters())
    assert all(torch.equal(v, t.start.state_dict()[k]) for k, v in start.items())
    assert not {id(p) for p in t.start.parameters()} & {
        id(p) for g in t.optimizers["network"].param_groups for p in g["params"]
    }


def test_feature_distance_is_zero_as_training_begins(domains, tmp_path):
    t = training_of(context_of(domains, tmp_path / "run", DACS), **EVERYTHING)
    batch = t.on_device(t.batch(t.sampler.next(), torch.Generator().manual_seed(0)))
    t.setup.student.dropout = False
    t.setup.student.learn()
    assert float(t.losses(batch, 0)["fd"].detach()) < 1e-3, "to rounding: passes with and without gradients differ"


def test_what_is_masked_is_the_mean_colour(domains, tmp_path):
    t = training_of(context_of(domains, tmp_path / "run", DACS), **EVERYTHING)
    batch = t.on_device(t.batch(t.sampler.next(), torch.Generator().manual_seed(0)))
    seen = []
    real = t.setup.student.through
    t.setup.student.through = lambda network, x: (seen.append(x), real(network, x))[1]
    t.losses(batch, 0)
    x_a, kept = batch["k"]
    masked = seen[-1]
    hidden = ~kept[:, None].expand_as(masked)
    assert not masked[hidden].any() and torch.equal(masked[~hidden], x_a[~hidden])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"things.distance": 0.005}, r"things: distance=0\.005, and no class is called a thing"),
        ({"things.distance": 0.005, "things.classes": "disk"}, "disc"),
        ({"rare.temperature": 0.01, "crops.sample": "classes"}, "crops.sample=classes and rare.temperature"),
    ],
)
def test_what_cannot_be_guessed_is_asked(settings, told, domains, tmp_path):
    source, target = domains
    with pytest.raises(MaskwrightError, match=told):
        train(target, source, tmp_path / "run", "dacs", settings=settings)
