"""DANNet: who gets gradients in a step, pairs by three ways, static classes, what is refused, what is saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.conftest import write_tiny_folder
from tests.methods.semi.checks import batch_of

import maskwright as mw
from maskwright.data.folders.folder import open_folder
from maskwright.engine.config import configure
from maskwright.engine.opening import open_run
from maskwright.engine.progress import Progress
from maskwright.engine.request import RunRequest
from maskwright.engine.streams import open_sources
from maskwright.errors import MaskwrightError
from maskwright.methods.adapt.dannet.losses import LEAST, rarity_weights, widest
from maskwright.methods.adapt.dannet.method import PAIRS, DANNet, DANNetTraining
from maskwright.methods.adapt.dannet.pairs import centred, static_classes, told
from maskwright.models.joining import backbone_of
from maskwright.recipes.training.criteria import pixel_counts
from maskwright.recipes.training.selection import hold_out

SMALL = {
    "crops.size": 32, "crops.batch": 2, "precision": "fp32", "light.width": 2, "d_width": 4, "ramp.start": 0.0,
    "static.classes": "ground,square",
}  # fmt: skip
CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "signsymbol", "fence", "car", "pedestrian")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """A labelled source, and unlabelled photographs by day and by night, whose names are equal but for two."""
    found = {name: write_tiny_folder(tmp_path / name, masks=name == "source") for name in ("source", "day", "night")}
    for name in ("day", "night"):
        for file in ("classes.txt", "tags.csv", "captions.csv"):
            (found[name] / file).unlink()
        shutil.rmtree(found[name] / "masks")
        shutil.rmtree(found[name] / "splits")
    images = found["night"] / "images"
    for k in (0, 1):
        (images / f"picture_0{k}.png").rename(images / f"late_0{k}.png")
    return found


def configured(**options):
    return configure(DANNet.Config, {**SMALL, **options})


def context_of(places: dict[str, Path], out: Path, **options):
    request = RunRequest(
        data=open_folder(places["night"]), method=DANNet, config=configured(**options), out=out,
        sources=open_sources({"source": str(places["source"]), "day": str(places["day"])}),
        backbone="mobilenetv3_small_050", weights="random", steps=4, device="cpu", progress=Progress(quiet=True),
    )  # fmt: skip
    return open_run(request)


def training_of(context, **options) -> DANNetTraining:
    method = DANNet(configured(**options), context)
    folder = context.run.path / "pair"
    if not folder.exists():
        folder.mkdir()
        method.pair(folder)
    return method.training(10)


def train(places: dict[str, Path], out: Path, settings: dict | None = None, **options):
    given = {"source": str(places["source"]), "day": str(places["day"])}
    return mw.train(
        places["night"], "dannet", out=out, device="cpu", report=False, progress=Progress(quiet=True),
        settings={**SMALL, "norms.images": 2, **(settings or {})},
        **({"source": given, "steps": 1, "backbone": "mobilenetv3_small_050", "weights": "random"} | options),
    )  # fmt: skip


# ---------------------------------------------------------------------- the step


def test_who_gets_gradients(places, tmp_path):
    t = training_of(context_of(places, tmp_path / "run"))
    batch = batch_of(t)
    judges = [t.modules["discriminator_day"], t.modules["discriminator_night"]]
    terms, play = t.segmenter_loss(batch, 0)
    terms["loss"].backward()
    assert all(p.grad is None for judge in judges for p in judge.parameters()), "judges stand still"
    assert all(p.requires_grad for judge in judges for p in judge.parameters()), "but for that step"
    assert t.relighting.last.weight.grad.any() and t.setup.network.classifier.conv.weight.grad.any()
    t.setup.kept.zero_grad(set_to_none=True)
    for name, judge in zip(("day", "night"), judges):
        t.discriminator_loss(name, play).backward()
        assert all(p.grad is not None for p in judge.parameters())
    assert all(p.grad is None for p in t.setup.kept.parameters()), "what was said is no way back to who said it"


def test_day_labels_night_and_learns_nothing_from_it(places, tmp_path):
    t = training_of(context_of(places, tmp_path / "run"))
    day, night = (torch.randn(2, 3, 8, 8).requires_grad_() for _ in range(2))
    t.from_day(day, night, torch.ones(2, 8, 8, dtype=torch.bool)).backward()
    assert day.grad is None and night.grad[:, [0, 2]].any() and not night.grad[:, 1].any(), "static classes alone"
    nothing = t.from_day(day, night, torch.zeros(2, 8, 8, dtype=torch.bool))
    assert float(nothing.detach()) == 0


def test_the_total_and_its_schedule(places, tmp_path):
    context = context_of(places, tmp_path / "run")
    t = training_of(context, lam_adv=0.3, **{"ramp.weight": 0.5, "static.weight": 2.0, "light.target": 0.0})
    batch = batch_of(t)
    torch.manual_seed(0)
    found = {name: float(term.detach()) for name, term in t.losses(batch, 3).items()}
    target = 0.3 * (found["adv_day"] + found["adv_night"]) + 2 * found["static"]
    assert found["loss"] == pytest.approx(found["s"] + found["light"] + 0.5 * target, rel=1e-5)
    alone = training_of(context, **{"ramp.start": 0.5})
    torch.manual_seed(0)
    before = {name: float(term.detach()) for name, term in alone.losses(batch, 4).items()}
    assert set(before) == {"loss", "s", "light"} and set(alone.losses(batch, 5)) > set(before)
    assert before["s"] == pytest.approx(found["s"], rel=1e-5)


def test_an_unrelit_crop_costs_its_light_alone(places, tmp_path):
    t = training_of(context_of(places, tmp_path / "run"))
    x, inside = torch.full((1, 3, 32, 32), 0.25), torch.ones(1, 32, 32, dtype=torch.bool)
    seen, loss = t.relight(x, torch.tensor(0.25), inside)  # it begins as the identity
    assert torch.equal(seen, x) and float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert float(t.relight(x, torch.tensor(0.75), inside)[1].detach()) == pytest.approx(0.25, rel=1e-5)


def test_everything_that_learns_is_in_the_checkpoint_once(places, tmp_path):
    t = training_of(context_of(places, tmp_path / "run"))
    state = t.modules["network"].state_dict()
    assert any(k.startswith("encoder.relighting.") for k in state) and "classifier.weight" in state
    learns = [id(p) for o in t.optimizers.values() for g in o.param_groups for p in g["params"]]
    assert sorted(learns) == sorted(id(p) for m in t.modules.values() for p in m.parameters())


# ---------------------------------------------------------------------- what is saved


def test_the_saved_model_relights_and_weighs(places, tmp_path):
    """Also the iterate that held-out images chose; and it needs nothing of the method to be loaded."""
    model = train(places, tmp_path / "run", {"rarity.test": 0.2, "holdout": 0.25}, steps=2)
    loaded = mw.load(tmp_path / "run" / "model.safetensors").segmenter
    spec = loaded.to_spec()
    assert spec["encoder"]["kind"] == "RelitEncoder" and spec["classifier"]["kind"] == "WeightedClassifier"
    method = DANNet(configured(holdout=0.25), context_of(places, tmp_path / "other"))
    labels, _ = hold_out(method.labels(), 0.25, method.context.seed)
    torch.testing.assert_close(loaded.classifier.weight, rarity_weights(pixel_counts(labels, 3), 0.2))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        r = loaded.encoder.relighting(x)
        logits = loaded.classifier.classifier(loaded.decode(loaded.encoder.encoder(x + r)))
        torch.testing.assert_close(loaded(x), logits * loaded.classifier.weight[:, None, None])
    assert r.any(), "two steps have moved the relighting"
    read = json.loads((tmp_path / "run" / "run.json").read_text())["labels_read"]
    assert read["train"] == {"masks": 6, "tags": 0, "captions": 0} and read["select"]["masks"] == 2
    assert model.predict(next((places["night"] / "images").iterdir())).mask.max() < 3


@pytest.mark.slow
def test_it_starts_from_a_network_that_learned_the_source(places, tmp_path):
    """As the paper's does; and another training may stand on what comes of it."""
    usual = {"device": "cpu", "steps": 1, "report": False, "progress": Progress(quiet=True)}
    small = {"crops.size": 32, "crops.batch": 2, "precision": "fp32", "norms.images": 0}
    mw.train(
        places["night"], "source_only", source=str(places["source"]), out=tmp_path / "before", settings=small,
        backbone="mobilenetv3_small_050", weights="random", **usual,
    )  # fmt: skip
    train(places, tmp_path / "run", {"norms.images": 0}, backbone="auto", weights=str(tmp_path / "before"))
    notes = " ".join(json.loads((tmp_path / "run" / "run.json").read_text())["notes"])
    assert "encoder taken; decoder taken; classifier" in notes
    relit = mw.load(tmp_path / "run").segmenter.encoder
    backbone, _ = backbone_of(relit)
    assert backbone.architecture == "mobilenetv3_small_050" == relit.stands_on


def test_frozen_statistics_are_the_encoders_alone(places, tmp_path):
    """Those of the relighting, which it gathered from three domains at once, are retaken with all others."""
    frozen = {"norms.freeze": True, "norms.images": 2}
    t = training_of(context_of(places, tmp_path / "run", **frozen), **frozen)
    encoder, relighting = ([m for m in part.modules() if hasattr(m, "running_mean")]
                           for part in (t.setup.kept.encoder.encoder, t.setup.kept.encoder.relighting))  # fmt: skip
    before = [[m.running_mean.clone() for m in norms] for norms in (encoder, relighting)]
    t.setup.with_statistics(t.setup.kept)
    assert encoder and all(torch.equal(m.running_mean, old) for m, old in zip(encoder, before[0]))
    assert relighting and not any(torch.equal(m.running_mean, old) for m, old in zip(relighting, before[1]))


# ---------------------------------------------------------------------- weights of classes


@pytest.mark.parametrize("spread", [0.05, 0.16, 0.3])
@pytest.mark.parametrize("others", [1, 12, 40, 150, 1000])
def test_no_class_weighs_nothing(spread, others):
    """A saved model with a weight of 0 or below would not be opened."""
    counts = torch.tensor([1e9, *[3.0] * others, 0.0])
    weight = rarity_weights(counts, spread)
    assert float(weight.min()) >= LEAST - 1e-6 and float(weight[:-1].mean()) == pytest.approx(1, abs=1e-5)
    assert float(weight[:-1].std()) == pytest.approx(min(spread, widest(counts)), rel=1e-4)


def test_a_spread_that_would_leave_a_class_nothing_is_told(places, tmp_path):
    t = training_of(context := context_of(places, tmp_path / "run"))
    t.note_spread(torch.tensor([1e9, *[3.0] * 60]))
    (told,) = [note for note in context.notes if "rarity.test=0.16" in note]
    assert "0.124 is taken" in told and not any("rarity.train" in note for note in context.notes)


# ---------------------------------------------------------------------- pairs


def pairs_of(run: Path) -> list[str]:
    return (run / "pair" / PAIRS).read_text().splitlines()


def test_pairs_by_name(places, tmp_path):
    t = training_of(context := context_of(places, tmp_path / "run"))
    assert pairs_of(context.run.path)[1:] == [f"picture_0{k},picture_0{k}" for k in range(2, 8)]
    assert any("2 of 8 photographs by night have none by day" in note for note in context.notes)
    night, day = t.setup.streams["t"].draw(t.setup.streams["t"].next(), torch.Generator().manual_seed(0))
    names = [context.data.names[i] for i in night.images], [context.data_of("day").names[i] for i in day.images]
    assert names[0] == names[1]
    assert torch.equal(night.weak, day.weak), "the fixture's photographs are the same by day and by night"


def test_pairs_by_features_find_the_same_photographs(places, tmp_path):
    context = context_of(places, tmp_path / "run", pairs="features")
    training_of(context, pairs="features")
    lines = pairs_of(context.run.path)[1:]
    assert "late_00,picture_00" in lines and "late_01,picture_01" in lines and len(lines) == 8
    assert any("random weights" in note for note in context.notes)
    doubt = "If partners found by features are other places, these labels are wrong: "
    lent = next(note for note in context.notes if "Day lends" in note)
    without = {"pairs": "features", "static.classes": "", **setting(lent.partition(doubt)[2])}
    mended = context_of(places, tmp_path / "mended", **without)
    assert training_of(mended, **without).static == [] and not any("Day lends" in note for note in mended.notes)


def test_pairs_of_a_file_and_of_the_file_that_a_run_left(places, tmp_path):
    file = tmp_path / "my pairs.csv"
    file.write_text("night,day\nlate_00.png,picture_05.png\npicture_03,picture_03\n")
    for out in ("first", "second"):
        context = context_of(places, tmp_path / out, pairs=str(file))
        training_of(context, pairs=str(file))
        assert pairs_of(context.run.path)[1:] == ["late_00,picture_05", "picture_03,picture_03"]
        assert any("Day lends" in note for note in context.notes) and not any("features" in n for n in context.notes)
        file = context.run.path / "pair" / PAIRS


def test_centred_features():
    rows = torch.tensor([[5.0, 1.0], [5.0, -1.0]])
    assert torch.equal(centred(rows), torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
    for alike in (rows[:1], rows[:1].expand(3, 2)):
        assert torch.equal(centred(alike), alike), "nothing would be left"


# ---------------------------------------------------------------------- static classes


def test_static_classes_by_their_names():
    assert static_classes("", CAMVID) == list(range(8))
    assert static_classes("", ("Traffic Light", "car", "traffic-sign")) == [0, 2]
    assert static_classes("car, sky", CAMVID) == [0, 8]
    assert told(range(8), CAMVID).endswith("; not in car, pedestrian.")
    with pytest.raises(MaskwrightError, match="'tre'"):
        static_classes("sky,tre", CAMVID)


# ---------------------------------------------------------------------- what is refused, and the repairs


def refusal(places, tmp_path, settings=None, **options) -> MaskwrightError:
    with pytest.raises(MaskwrightError) as raised:
        train(places, tmp_path / f"refused-{len(list(tmp_path.iterdir()))}", settings, **options)
    assert "\n" not in str(raised.value)
    return raised.value


def setting(repair: str) -> dict[str, str]:
    """What `--set KEY=VALUE` in a repair says."""
    key, _, value = repair.partition("--set ")[2].split()[0].rstrip(",").partition("=")
    return {key: value}


def test_without_source_or_day(places, tmp_path):
    no_source = refusal(places, tmp_path, source={"day": str(places["day"])})
    assert "dannet needs a labelled source folder" in no_source.found and "--source DATA" in str(no_source)
    no_day = refusal(places, tmp_path, source=str(places["source"]))
    assert "a data set called day" in no_day.found and "--source day=DATA" in str(no_day)


def test_unpaired_lists_are_refused_and_the_repair_works(places, tmp_path):
    for k, image in enumerate(sorted((places["night"] / "images").iterdir())):
        image.rename(image.with_name(f"night_{k}.png"))
    error = refusal(places, tmp_path)
    assert "no equal names pair" in error.found
    assert setting(error.repair) == {"pairs": "features"}
    train(places, tmp_path / "mended", setting(error.repair))
    assert len(pairs_of(tmp_path / "mended")) == 9
    header = error.repair.rpartition(" ")[2]
    (tmp_path / "FILE.csv").write_text(f"{header}\nnight_0,picture_03\n")
    listed = {"pairs": str(tmp_path / "FILE.csv")}
    training_of(context_of(places, tmp_path / "listed", **listed), **listed)
    assert pairs_of(tmp_path / "listed")[1:] == ["night_0,picture_03"]
    missing = refusal(places, tmp_path, {"pairs": "nowhere.csv"})
    assert "nowhere.csv" in missing.found


def test_classes_of_which_none_is_known_to_stand_still(places, tmp_path):
    error = refusal(places, tmp_path, {"static.classes": ""})
    assert "ground, disc, square" in error.found
    repair = setting(error.repair)
    assert training_of(context_of(places, tmp_path / "mended", **repair), **repair).static == [0, 1]


def test_what_has_no_weight_is_not_asked_for(places, tmp_path):
    """Such as static classes, which nobody knows here."""
    plain = {"static.classes": "", "static.weight": 0.0, "light.exposure": 0.0}
    t = training_of(context := context_of(places, tmp_path / "run", **plain), **plain)
    assert t.static == [] and not any("Day lends labels" in note for note in context.notes)
    torch.manual_seed(0)
    found = {name: float(term.detach()) for name, term in t.losses(batch_of(t), 3).items()}
    assert found["static"] == 0 and found["adv_day"] > 0


def test_windows_larger_than_crops(places, tmp_path):
    error = refusal(places, tmp_path, {"light.window": 64})
    assert "light.window=64" in error.found
    repair = setting(error.repair)
    training_of(context_of(places, tmp_path / "mended", **repair), **repair)


def test_one_photograph_in_two_splits(places, tmp_path):
    lists = places["source"] / "splits"
    (lists / "other.txt").write_text("picture_03\npicture_04\n")
    given = {"source": (str(places["source"]), "train"), "day": str(places["day"])}
    error = refusal({**places, "night": places["source"]}, tmp_path, source=given, split="other")
    assert "1 images are both in the run's own data and in source" in error.found and "@OTHER" in error.repair
    train({**places, "night": places["source"]}, tmp_path / "apart", source=given, split="test")
    masks = json.loads((tmp_path / "apart" / "run.json").read_text())["labels_read"]["train"]["masks"]
    assert masks == 4 and len(pairs_of(tmp_path / "apart")) == 5
