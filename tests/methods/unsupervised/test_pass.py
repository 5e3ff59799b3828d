"""PASS: its stages' batch-norm modes, its stop-gradients, its labels, its threshold, and its options."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.conftest import write_tiny_folder
from tests.methods.unsupervised.small import live
from torch import nn

import maskwright as mw
from maskwright.data.masking.classes import ClassTable
from maskwright.data.training.labels import LabelMap, LabelStore
from maskwright.engine.config import configure, flat
from maskwright.engine.context import Context
from maskwright.engine.progress import Progress
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.pass_ import method as P
from maskwright.methods.unsupervised.pass_.labelling import UNIMODAL, separability
from maskwright.methods.unsupervised.pass_.network import PassNetwork
from maskwright.methods.unsupervised.pass_.options import PRESETS
from maskwright.methods.unsupervised.pass_.training import Finetuning
from maskwright.models.backbones.build import build_backbone
from maskwright.models.bundle import load_bundle
from maskwright.models.parts.attended_clusters import AttendedClusters, PixelAttention, upsampled
from maskwright.models.parts.encoder import BackboneEncoder
from maskwright.models.parts.heads import LinearClassifier
from maskwright.models.preprocess import Preprocess
from maskwright.models.segmenter import Segmenter
from maskwright.ops.losses.pixel_alignment import p2p_loss
from maskwright.recipes.pretraining.instance import SimSiam, SwAV
from maskwright.recipes.pretraining.multicrop import Crops, MultiCrops

SMALL = {"crop": 32, "local_crop": 32, "batch": 4, "hidden": 16, "prototypes": 8, "short_side": 64, "restarts": 2}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("MASKWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def run(data, out, **options):
    own = options.pop("settings", {})
    settings = live("pass", SMALL, own) | own
    defaults = {"classes": 3, "backbone": "resnet18", "weights": "random", "steps": 3, "device": "cpu"}
    quiet = {"settings": settings, "progress": Progress(quiet=True), "report": False}
    return mw.train(data, "pass", out=out, **(defaults | quiet | options))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_folder(tmp_path_factory.mktemp("data") / "tiny")


def network(**options) -> PassNetwork:
    torch.manual_seed(0)
    arguments = {"d2s": (3,), "hidden": 16, "dim": 8, "pixels": True} | options
    return PassNetwork(build_backbone("resnet18", "random").requires_grad_(True), **arguments)


def crops(local: bool = True, seed: int = 0) -> Crops:
    g = torch.Generator().manual_seed(seed)
    grid = torch.rand(4, 7, 7, 2, generator=g) * 2 - 1
    x = torch.randn(8, 3, 64, 64, generator=g)
    return Crops(x, torch.randn(8, 3, 32, 32, generator=g) if local else None, (grid, grid.clone()))


def config_of(**settings) -> P.PassConfig:
    return configure(P.PassConfig, SMALL | settings)


def statistics(module: nn.Module) -> list[torch.Tensor]:
    return [m.running_mean.clone() for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def test_total_is_the_weighted_sum():
    config = config_of(d2s=(3, 2), d2s_weight=0.5)
    net = network(d2s=(3, 2))
    training = P.Pretraining(net, SwAV(8, 8), None, config)  # type: ignore[arg-type]
    terms = training.losses(crops(), 0)
    expected = (terms["instance"] + 0.5 * terms["d2s_3"] + 0.5 * terms["d2s_2"]) / 2 + terms["p2p"]
    torch.testing.assert_close(terms["loss"], expected)


def test_pretraining_batch_norm_uses_and_moves_statistics_everywhere():
    net = network()
    training = P.Pretraining(net, SwAV(8, 8), None, config_of(freeze_norm=False))  # type: ignore[arg-type]
    before = statistics(net)
    training.losses(crops(), 0)
    assert all(not torch.equal(a, b) for a, b in zip(before, statistics(net)))


def test_weights_that_are_trained_keep_their_statistics_and_learn_slowly():
    """Preset small: the backbone's batch norm stands in both stages, and its rate is a twentieth of the heads'."""
    net, gate = network(), PixelAttention(512)
    training = P.Pretraining(net, SwAV(8, 8), None, config_of())  # type: ignore[arg-type]
    before, heads = statistics(net.backbone), statistics(net.image_head)
    training.losses(crops(), 0)
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(net.backbone)))
    assert not any(torch.equal(a, b) for a, b in zip(heads, statistics(net.image_head)))
    slow, fast = training.optimizers["larc"].param_groups
    assert slow["lr"] == pytest.approx(0.05 * fast["lr"])
    assert {*map(id, slow["params"])} == {*map(id, net.backbone.parameters())}
    attention = P.AttentionTraining(net, gate, SwAV(8, 8), None, config_of())  # type: ignore[arg-type]
    attention.losses(crops(), 0)
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(net.backbone)))


def test_released_presets_train_statistics_and_all_at_one_rate():
    for preset in ("imagenet_s50", "imagenet_s300", "imagenet_s919", "custom"):
        c = P.PassConfig(preset=preset)
        assert (c.pretrain.backbone_share, c.finetune.share, c.freeze_norm) == (1.0, 1.0, False)


@pytest.mark.parametrize("frozen", [False, True])
def test_fine_tuning_moves_statistics_or_keeps_them_and_has_two_rates(frozen):
    backbone = build_backbone("resnet18", "random").requires_grad_(True)
    encoder = BackboneEncoder(backbone, layers=backbone.stage_layers[-1])
    table = ClassTable.numbered(3)
    segmenter = Segmenter(encoder, None, LinearClassifier(512, 3), table, Preprocess(), backbone.provenance)
    training = Finetuning(segmenter, None, 64, config_of(freeze_norm=frozen), None)  # type: ignore[arg-type]
    slow, fast = training.optimizers["larc"].param_groups
    assert (slow["lr"], fast["lr"]) == (pytest.approx(0.1), 2.0)
    assert {*map(id, slow["params"])} == {*map(id, backbone.parameters())}
    assert {*map(id, fast["params"])} == {*map(id, segmenter.classifier.parameters())}
    before = statistics(segmenter)
    y = LabelMap(torch.randint(0, 3, (2, 32, 32)), torch.ones(2, 32, 32), torch.ones(2, 32, 32, dtype=torch.bool))
    loss = training.losses((torch.randn(2, 3, 64, 64), y), 0)["loss"]
    loss.backward()
    assert all(p.grad is not None for p in segmenter.parameters())
    same = [torch.equal(a, b) for a, b in zip(before, statistics(segmenter))]
    assert all(same) if frozen else not any(same)


def test_d2s_gives_the_deep_stage_no_gradient():
    net, swav = network(), SwAV(8, 8)
    out = net(*crops()[:2])
    swav(out.z, [], 0)
    swav.supervise(out.shallow[0].chunk(2)).backward()
    assert swav.prototypes.weight.grad is None
    assert all(p.grad is None for p in net.backbone.model.layer4.parameters())
    assert all(p.grad is None for p in net.image_head.parameters())
    assert next(net.backbone.model.layer3.parameters()).grad is not None


def test_p2p_gives_no_gradient_to_the_target_branch():
    net = network()
    u1, u2 = net.pixel_head(net(*crops()[:2]).deep).chunk(2)
    u2 = u2.detach().requires_grad_(True)
    grid = crops().grids[0]
    with torch.no_grad():
        target = u2.clone()
    loss = p2p_loss(u1, u2, grid, grid, net.predictor)
    loss.backward()
    # u2 is a target of the first term only through its values: its gradient is that of the predictions.
    half = u2.grad.clone()
    v2 = target.requires_grad_(True)
    s1, s2 = (F.grid_sample(u, grid, align_corners=False) for u in (u1.detach(), v2))
    p1, p2 = net.predictor(torch.cat([s1, s2])).chunk(2)
    t1, t2 = s1.detach(), s2.detach()
    (-(F.cosine_similarity(p1, t2, dim=1).mean() + F.cosine_similarity(p2, t1, dim=1).mean()) / 2).backward()
    torch.testing.assert_close(half, v2.grad, atol=1e-6, rtol=1e-3)


def test_the_gates_stage_moves_statistics_but_no_weight_of_the_network():
    net, gate, swav = network(), PixelAttention(512), SwAV(8, 8)
    training = P.AttentionTraining(net, gate, swav, None, config_of(freeze_norm=False))  # type: ignore[arg-type]
    before = statistics(net.backbone), [p.clone() for p in net.parameters()]
    terms = training.losses(crops(), 0)
    terms["loss"].backward()
    assert all(not torch.equal(a, b) for a, b in zip(before[0], statistics(net.backbone)))
    assert all(p.grad is None for p in net.parameters())
    assert all(p.grad is not None for p in [*gate.parameters(), *swav.parameters()])
    training.optimizers["larc"].step()
    assert all(torch.equal(a, b) for a, b in zip(before[1], net.parameters()))


def test_the_gate_is_between_0_and_1_and_thresholds_at_the_ends_leave_nothing_or_everything():
    torch.manual_seed(0)
    gate, x = PixelAttention(16).eval(), torch.randn(1, 16, 3, 4)
    for t, expected in ((0.0, False), (1.0, True)):
        rule = AttendedClusters(torch.randn(5, 16), t, gate).eval()
        _, a = rule.attend(x)
        assert float(a.min().detach()) > 0 and float(a.max().detach()) < 1
        assert bool((rule(x).argmax(1) == 0).all()) is expected or not expected
        assert bool((rule(x).argmax(1) == 0).any()) is expected
    rule = AttendedClusters(torch.randn(5, 16), 0.5, gate).eval()
    y, a = rule.attend(x)
    assert torch.equal(rule(x).argmax(1), torch.where(a < 0.5, 0, rule.cosines(y).argmax(1) + 1))


def test_pooled_is_the_loop():
    torch.manual_seed(0)
    gate, x = PixelAttention(6).eval(), torch.randn(2, 6, 2, 3)
    y = upsampled(x)
    total = torch.zeros(2, 6)
    a = gate(F.normalize(y, dim=1)).detach()
    for i in range(y.shape[2]):
        for j in range(y.shape[3]):
            total += a[:, :, i, j] * y[:, :, i, j]  # the gate sees unit length, what it multiplies keeps its own
    torch.testing.assert_close(
        AttendedClusters(torch.zeros(1, 6), 0, gate).pooled(x).detach(), F.normalize(total, dim=1)
    )


def test_separability_tells_two_groups_from_one():
    rng = np.random.default_rng(0)
    one, two = rng.normal(0, 1, 20_000), np.concatenate([rng.normal(-3, 1, 10_000), rng.normal(3, 1, 10_000)])
    assert separability(one, 0.0) == pytest.approx(UNIMODAL, abs=0.01)
    assert separability(two, 0.0) > 0.85
    assert separability(np.ones(5), 1.0) == 0


def test_a_preset_sets_defaults_and_a_given_option_wins():
    for name, preset in PRESETS.items():
        values = flat(configure(P.PassConfig, {"preset": name}))
        assert all(values[k] == v for k, v in preset.items())
        assert None not in [v for k, v in values.items() if k != "threshold"], "nothing is left undecided"
        assert configure(P.PassConfig, {"preset": name, "epochs": "7"}).pretrain.epochs == 7
    assert PRESETS["imagenet_s50"]["prototypes"] == 500 and PRESETS["imagenet_s919"]["hidden"] == 2048
    with pytest.raises(MaskwrightError, match="imagenet_s50"):
        configure(P.PassConfig, {"preset": "imagenet_50"})
    with pytest.raises(MaskwrightError, match="deep to shallow"):
        configure(P.PassConfig, {"d2s": "2,3"})


def test_the_gate_and_the_last_stage_have_the_released_crops_and_rates(data, tmp_path, monkeypatch):
    """scripts/luss50_pass.sh: two crops from 0.08, rate 6 to 0.0006; RandomResizedCrop's 0.08 in fine-tuning."""
    for name, final in (("imagenet_s50", 0.0006 / 6.0), ("imagenet_s300", 0.0006 / 0.6)):
        c = P.PassConfig(preset=name)
        assert (c.attention.local_crops, c.attention.scale_min, c.finetune.scale_min) == (0, 0.08, 0.08)
        assert c.attention.final == pytest.approx(final)
    seen = {}

    def fit(self, training, stage, folder, steps):
        crops = training.crops.crops if stage != "finetune" else training.scale
        seen[stage] = (crops, training.schedule(steps))

    folder, run_folder = mw.open_folder(data), SimpleNamespace(writes=False, path=tmp_path)
    context = Context(
        data=folder, table=ClassTable.numbered(3), seed=0, steps=10, fabric=SimpleNamespace(device=torch.device("cpu")),
        run=run_folder, cache=None, backbone=build_backbone("resnet18", "random"),
    )  # fmt: skip
    made = P.Pass(config_of(preset="imagenet_s50", threads=1), context)
    learned = {"module.instance": {"prototypes.weight": torch.randn(8, made.config.instance.dim)}}
    monkeypatch.setattr(Context, "fit", fit)
    monkeypatch.setattr("maskwright.methods.unsupervised.pass_.method.stage_parts", lambda path: learned)
    monkeypatch.setattr(P.Pass, "pretrained", lambda self, stage="pretrain": made.network().eval())
    made.attend(tmp_path)
    LabelStore(tmp_path / "label" / "labels", made.table).write(
        folder.names[0], LabelMap.unlabeled(folder.size(0)), folder.items[0].image
    )
    made.finetune(tmp_path)
    side = made.sides[0]
    assert seen["attention"][0] == [(2, (side, side), (0.08, 1.0))]
    assert seen["attention"][1] == pytest.approx(1e-4)
    assert seen["finetune"] == ((0.08, 1.0), pytest.approx(1e-3))


def test_crops_do_not_depend_on_threads(data):
    draw = []
    for threads in (1, 3):
        made = MultiCrops(
            mw.open_folder(data), [(2, (32, 32), (0.2, 1.0)), (2, (16, 16), (0.05, 0.2))], P.photometric("simclr"),
            P.Preprocess(), threads=threads,
        )  # fmt: skip
        draw.append(made.draw([0, 3, 5], torch.Generator().manual_seed(1)))
    assert torch.equal(draw[0].global_, draw[1].global_) and torch.equal(draw[0].local, draw[1].local)
    assert draw[0].global_.shape == (6, 3, 32, 32) and draw[0].local.shape == (6, 3, 16, 16)
    assert draw[0].global_.dtype == torch.uint8, "normalised where the network is"
    ready = made.prepared(draw[1], torch.device("cpu"))
    torch.testing.assert_close(ready.global_, made.preprocess.network_input(draw[0].global_, "cpu"))


def test_the_method_leaves_the_runs_classes_as_they_are(data, tmp_path):
    """Its table of "other" and clusters is its own: the record and other methods see what was asked for."""
    context = Context(
        data=mw.open_folder(data), table=ClassTable.numbered(3), seed=0, steps=1, fabric=None, run=None, cache=None,
        backbone=build_backbone("resnet18", "random"),
    )  # fmt: skip
    method = P.Pass(config_of(other="beside"), context)
    assert method.table.names == ("other", "cluster 1", "cluster 2", "cluster 3") and method.clusters == 3
    assert context.table.names == ClassTable.numbered(3).names


@pytest.mark.parametrize("instance", [pytest.param("simsiam", marks=pytest.mark.slow), "moco"])
def test_other_losses_between_crops(instance, data, tmp_path):
    queue = {"queue": 8} if instance == "moco" else {}
    run(data, tmp_path / "run", settings={"instance": instance} | queue)
    lines = [json.loads(t) for t in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"instance", "d2s_3", "p2p"} <= set(next(m for m in lines if m["stage"] == "pretrain"))


def test_without_additions_attention_and_fine_tuning(data, tmp_path):
    options = {"p2p": False, "d2s": "", "attention": False, "finetune_epochs": 0}
    model = run(data, tmp_path / "run", settings=options)
    stages = [s["name"] for s in json.loads((tmp_path / "run" / "run.json").read_text())["stages"]]
    assert stages == ["pretrain", "cluster", "label"]
    assert isinstance(model.segmenter.classifier, AttendedClusters) and not model.segmenter.classifier.attended
    store = LabelStore(tmp_path / "run" / "label" / "labels", model.classes)
    assert len(store) == 8 and all(int(store.read(n).ids.min()) >= 1 for n in store.names), "nothing is other"


@pytest.mark.slow
def test_other_is_within_or_beside(data, tmp_path):
    within = run(data, tmp_path / "within", steps=1)
    assert within.classes.names == ("other", "cluster 1", "cluster 2"), "the table's first class is ground"
    beside = run(data, tmp_path / "beside", steps=1, settings={"other": "beside"})
    assert len(beside.classes) == 4
    rule = load_bundle(tmp_path / "beside" / "label" / "clusters.safetensors").classifier
    assert rule.clusters == 3
    with pytest.raises(MaskwrightError, match="other=beside"):
        run(data, tmp_path / "one", classes=1)


@pytest.mark.parametrize(("other", "how"), [("auto", "named"), ("beside", "otsu")])
def test_nothing_is_other_where_every_class_has_a_name(tmp_path, other, how):
    root = write_tiny_folder(tmp_path / "tiny")
    names = (root / "classes.txt").read_text().splitlines()
    (root / "classes.txt").write_text("\n".join(["meadow", *names[1:]]) + "\n")
    model = run(root, tmp_path / "run", steps=1, settings={"other": other, "finetune_epochs": 0})
    found = json.loads((tmp_path / "run" / "label" / "threshold.json").read_text())
    assert found["how"] == how and (found["value"] > 0) == (how == "otsu")
    store = LabelStore(tmp_path / "run" / "label" / "labels", model.classes)
    assert any(int(store.read(n).ids.min()) == 0 for n in store.names) == (how == "otsu")
    assert len(model.classes) == 4 and model.segmenter.classifier.attended, "the gate still weighs what is clustered"


def test_the_oracle_reads_masks_and_says_so(data, tmp_path):
    run(data, tmp_path / "run", steps=1, settings={"oracle_threshold": True})
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["labels_read"]["select"]["masks"] == 8 and record["labels_read"]["train"].get("masks", 0) == 0
    assert any("not label-free" in n for n in record["notes"])
    assert json.loads((tmp_path / "run" / "label" / "threshold.json").read_text())["how"] == "oracle"


def test_pretrained_weights_serve_as_a_backbone(data, tmp_path):
    run(data, tmp_path / "run", steps=1, settings={"finetune_epochs": 0})
    weights = tmp_path / "run" / "pretrain" / "backbone.safetensors"
    backbone = build_backbone("resnet18", str(weights))
    assert backbone.dense(torch.randn(1, 3, 32, 32), -1).shape == (1, 512, 1, 1)


def test_vision_transformers_are_pretrained_too(data, tmp_path):
    model = run(data, tmp_path / "run", backbone="vit_tiny_patch16_224", steps=1)
    assert model.predict(np.zeros((40, 50, 3), np.uint8)).mask.shape == (40, 50)


def test_labels_of_many_classes_come_back_exactly(tmp_path):
    from maskwright.data.masking.classes import ClassTable
    from maskwright.data.training.labels import LabelMap

    ids = torch.tensor([[0, 255], [256, 919]])
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    store = LabelStore(tmp_path, ClassTable.numbered(920))
    store.write("a", LabelMap(ids, everywhere.float(), everywhere))
    assert torch.equal(store.read("a").ids, ids) and bool(store.read("a").valid.all())


def test_simsiam_needs_no_local_crops():
    assert not SimSiam.local_crops and SwAV.local_crops
