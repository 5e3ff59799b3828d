"""CBST and CRST: rounds, what they leave, the whole loss, steps, and classes that only one domain has."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder
from tests.methods.adapt.two_folders import SMALL, context_of, train

import maskwright as mw
from maskwright.data.training.labels import LabelStore
from maskwright.data.training.sources import StoredLabels
from maskwright.data.trust.artefacts import parse_record
from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.methods.adapt.cbst import CBST, CBSTConfig, RoundTraining, round_steps
from maskwright.models.tensors import load_tensors
from maskwright.recipes.self_training.soft_labels import SoftStore


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two rounds with everything on, on a source whose classes stand in another order and on a target that
    names one class that the source has not; and the source and the target."""
    root = tmp_path_factory.mktemp("cbst")
    source, target = write_tiny_folder(root / "source"), write_tiny_folder(root / "target")
    (source / "classes.txt").write_text("ground\ndisc\nsquare\n")
    (target / "classes.txt").write_text("square\nground\nsky\ndisc\n")
    settings = {"rounds": 2, "labels.soft": True, "labels.spatial": True, "regulariser": "mrkld", "mining.below": 1.0}
    train(target, source, root / "run", "cbst", steps=8, settings=settings)
    return root / "run", source, target


def test_rounds_leave_labels_with_their_provenance(finished):
    run, _, _ = finished
    record = json.loads((run / "run.json").read_text())
    assert [s["name"] for s in record["stages"]] == ["source", "prior", "label_1", "round_1", "label_2", "round_2"]
    assert record["labels_read"]["train"]["masks"] == 8 == record["labels_read_by_stream"]["source"]["train"]["masks"]
    assert record["labels_read_by_stream"]["target"]["train"]["masks"] == 0, "the target's masks stay closed"
    for number, portion, by in ((1, 0.2, "source"), (2, 0.25, "round_1")):
        folder = run / f"label_{number}" / "labels"
        told = parse_record((folder / "provenance.json").read_text())
        assert told["network"] == by and told["portion"] == portion and told["method"] == "cbst"
        assert "8 masks of the source" in told["labels_seen"]
        lam = load_file(run / f"label_{number}" / "thresholds.safetensors")["lam"]
        assert list(told["thresholds"].values()) == lam.tolist()
        store, counts, pixels = LabelStore(folder), np.zeros(4), 0
        assert len(store) == 8
        for name in store.names:
            y, soft = store.read(name), SoftStore(folder).read(name)
            counts += np.bincount(y.ids[y.valid].numpy(), minlength=4)
            pixels += y.valid.numel()
            assert torch.equal(soft.argmax(0)[y.valid], y.ids[y.valid])
        assert told["labelled"] == pytest.approx(counts.sum() / pixels)
        np.testing.assert_allclose(list(told["of_class"].values()), counts / counts.sum())
        assert told["of_class"]["sky"] == 0 and told["thresholds"]["sky"] == 1, "nothing taught it"
    assert any(note.startswith("Round 2: ") and "no pixel is labelled" in note for note in record["notes"])


def test_classes_are_taken_by_name(finished):
    run, _, _ = finished
    record = json.loads((run / "run.json").read_text())
    assert mw.load(run).classes.names == ("square", "ground", "sky", "disc"), "the target's ids"
    told = [n for n in record["notes"] if n.startswith("Source: ")]
    assert "Source: its classes are taken by their names, 3 of 3 of which the run has." in told
    assert "Source: no mask here teaches sky; evaluate --without sky leaves it out of all figures." in told
    q = load_tensors(run / "prior" / "prior.safetensors", {"prior": "CGG"}, "")["prior"]
    assert not q[2].any() and float(q[1].mean()) > 0.5, "the ground, which the source calls 0, is class 1"


def test_total_of_hard_and_soft_labels(finished, domains, tmp_path):
    run, _, _ = finished
    context = context_of(domains, tmp_path / "run", CBST)
    labels = run / "label_1" / "labels"
    store = LabelStore(labels)
    for soft in (False, True):
        config = configure(CBSTConfig, {**SMALL, "labels.soft": soft, "regulariser": "mrent", "lam_reg": 0.3})
        own = CBST(config, context).labels()
        context.table = type(context.table)(("a", "b", "c", "d"))
        t = RoundTraining(
            StoredLabels(context.data, store), SoftStore(labels) if soft else None, [2], context, config, own, 4
        )
        batch = t.on_device(t.batch(t.sampler.next(), torch.Generator().manual_seed(0)))
        s, views = batch["s"], batch["t"].views if soft else batch["t"]
        seen = []
        real = t.setup.student.through
        t.setup.student.through = lambda network, x, real=real, seen=seen: seen.append(real(network, x)) or seen[-1]
        terms = t.losses(batch, 0)
        log_p = seen[0].logits.detach().double().log_softmax(1)
        total, reg, count = 0.0, 0.0, 0
        for k, (y, valid) in enumerate(((s.y, s.valid), (views.y, views.valid))):
            for b, i, j in valid.nonzero().tolist():
                row = log_p[2 * k + b, :, i, j]
                q = batch["t"].soft[b, :, i, j] if soft and k else F.one_hot(y.ids[b, i, j], 4)
                total, count = total - float((q.double() * row).sum()), count + 1
                reg += float((row.exp() * row).sum()) if k else 0.0
        reg /= max(1, int(views.valid.sum()))
        found = {name: float(term.detach()) for name, term in terms.items()}
        assert found["x"] == pytest.approx(total / count, rel=1e-5)
        assert found["reg"] == pytest.approx(reg, rel=1e-5)
        assert found["loss"] == pytest.approx(found["x"] + 0.3 * found["reg"], rel=1e-6)
        assert found["labelled"] == pytest.approx(float(views.valid.float().mean()))
        assert t.setup.streams["s"].choose is not None, "classes are mined in both domains"


def test_held_out_masks_are_no_part_of_the_prior(domains, tmp_path):
    context = context_of(domains, tmp_path / "run", CBST, **{"labels.spatial": True, "holdout": 0.25})
    CBST(context.timing.config, context).fit_prior(context.run.stage_folder("prior"))
    assert context.ledgers.by_stream()["source"]["train"]["masks"] == 6, "two of the eight choose the iterate"
    context.run.release()


def test_a_first_portion_above_the_greatest_is_refused():
    """Rounds would keep one portion that is neither; the repair is taken, and what does not grow has no greatest."""
    with pytest.raises(MaskwrightError, match=r"labels\.portion=0\.6 above labels\.portion_max=0\.5") as raised:
        configure(CBSTConfig, {"labels.portion": 0.6})
    assert "--set labels.portion_max=0.6" in raised.value.repair
    config = configure(CBSTConfig, {"labels.portion": 0.6, "labels.portion_max": 0.6})
    assert [config.portion(r) for r in (1, 2)] == [0.6, 0.6]
    for still in ({"rounds": 1}, {"labels.portion_step": 0}):
        assert configure(CBSTConfig, {"labels.portion": 0.6, **still}).portion(1) == 0.6


def test_steps_add_up_and_portions_grow():
    for total, rounds, expected in ((800, 3, [400, 133, 133, 134]), (3, 1, [2, 1]), (1, 2, [1, 1, 1])):
        assert round_steps(total, rounds, 0.5) == expected
    config = CBSTConfig()
    assert [config.portion(r) for r in (1, 2, 3, 7, 9)] == pytest.approx([0.2, 0.25, 0.3, 0.5, 0.5])


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"labels.soft": True, "loss.terms": "ce+dice"}, "labels.soft=true"), ({"labels.scales": ()}, "labels.scales")],
)
def test_options_that_contradict_each_other(settings, told):
    with pytest.raises(MaskwrightError, match=told):
        configure(CBSTConfig, settings)


@pytest.mark.parametrize("method", ["cbst", "advent"])
def test_bad_input_is_one_line(method, domains, tmp_path):
    source, target = domains
    with pytest.raises(MaskwrightError, match=f"{method} needs a labelled source folder"):
        mw.train(target, method, out=tmp_path / "run", device="cpu")
    next((source / "masks").iterdir()).unlink()
    with pytest.raises(MaskwrightError, match=r"1 of 8 images in source .* have no masks"):
        train(target, source, tmp_path / "run", method)
    both = write_tiny_folder(tmp_path / "both")
    with pytest.raises(MaskwrightError, match="4 images are both in the run's own data and in source"):
        train(both, f"{both}@train", tmp_path / "run", method, split="train")
    (target / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(MaskwrightError, match=r"no class of the run's own data .* is a class of source"):
        train(target, both, tmp_path / "run", method)
    assert not (tmp_path / "run").exists()
