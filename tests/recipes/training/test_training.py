"""Training a segmentation network: streams, the supervised loss, its options and the schedule."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import write_tiny_folder
from tests.methods.semi.checks import check_resumes, seeded

from maskwright.data.folders.folder import open_folder
from maskwright.data.training.augment import photometric
from maskwright.data.training.overlap import PairStream
from maskwright.data.training.sources import MaskLabels
from maskwright.engine.config import configure
from maskwright.engine.distributed import sampler
from maskwright.engine.loop import Training
from maskwright.errors import MaskwrightError
from maskwright.ops.losses.seg_losses import dice_loss, ohem_cross_entropy
from maskwright.recipes.training.method import CropMethod
from maskwright.recipes.training.options import CropConfig, NetworkConfig
from maskwright.recipes.training.setup import CropSetup, NetworkSetup
from maskwright.recipes.training.training import NetworkTraining


def training(context, steps=10, **options):
    settings = {"crop": 32, "batch": 2, "precision": "fp32", "scale_min": 0.4, "scale_max": 0.6, **options}
    config = configure(NetworkConfig, settings)
    return NetworkTraining(context, config, MaskLabels(context.data, context.classes), steps)


def draw(t):
    b = t.on_device(t.batch(t.sampler.next(), torch.Generator().manual_seed(0)))["x"]
    assert 0 < int(b.y.valid.sum()) < b.y.valid.numel(), "some padding"
    return b


def mean_nll(logits, y):
    """Cross-entropy over valid pixels, of logits brought to the labels' size."""
    logits = F.interpolate(logits, y.size, mode="bilinear", align_corners=False)
    nll = -logits.log_softmax(1).gather(1, y.ids[:, None])[:, 0]
    return nll[y.valid].mean()


# ---------------------------------------------------------------------- auxiliary heads


@pytest.mark.parametrize("name", ["pspnet", "ocr"])
def test_the_loss_is_the_main_ones_and_two_fifths_of_the_auxiliary_heads(semi_context, name):
    t = training(semi_context, network=name)
    b = draw(t)
    t.setup.network.eval()  # without dropout
    features = t.setup.network.features(b.weak)
    main = mean_nll(t.setup.network.classify(t.setup.network.decode(features)), b.y)
    aux = mean_nll(t.setup.network.aux["aux"](features), b.y)
    loss = t.losses({"x": b}, 0)["loss"]
    torch.testing.assert_close(loss, main + 0.4 * aux)
    loss.backward()
    assert abs(float((main - aux).detach())) > 1e-3
    head = t.setup.network.aux["aux"] if name == "pspnet" else t.setup.network.decoder.aux_head
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters() if p.ndim > 1)


def test_each_auxiliary_head_has_its_weight_and_each_network_its_heads(semi_context):
    t = training(semi_context, network="pspnet")
    b, other = draw(t), copy.deepcopy(t.setup.network)
    other.aux["second"] = copy.deepcopy(other.aux["aux"])
    for p in other.aux["second"].parameters():
        torch.nn.init.normal_(p, std=0.1)
    other.aux_weights = {"aux": 0.3, "second": 0.1}
    student = t.setup.forward_of(other)
    other.eval()
    out = student(b.weak)
    parts = [mean_nll(out.logits, b.y), *(mean_nll(head(out.features), b.y) for head in other.aux.values())]
    torch.testing.assert_close(t.setup.supervised(out, b.y, student), parts[0] + 0.3 * parts[1] + 0.1 * parts[2])


# ---------------------------------------------------------------------- options


def balanced(logits, target, t):
    """Cross-entropy with the classes of the labelled masks weighed by hand, as PyTorch means it."""
    counts = torch.zeros(3)
    for i in t.setup.labels.indices:
        counts += torch.bincount(torch.from_numpy(t.setup.context.data.mask(i)).long().flatten(), minlength=3)
    weight = (counts.sum() / counts).sqrt()
    return F.cross_entropy(logits, target, weight / weight.mean(), ignore_index=-1)


OHEM = functools.partial(ohem_cross_entropy, ignore=-1)
CRITERIA = {
    "loss": ({"loss": "dice"}, lambda x, y, t: dice_loss(x, y, ignore=-1)),
    "sum": ({"loss": "ce+dice"}, lambda x, y, t: F.cross_entropy(x, y, ignore_index=-1) + dice_loss(x, y, ignore=-1)),
    "threshold": ({"loss": "ohem", "ohem_threshold": 0.2}, lambda x, y, t: OHEM(x, y, 0.2, y.numel() // 16)),
    "kept": (
        {"loss": "ohem", "ohem_threshold": 0.01, "ohem_kept": 0.25},
        lambda x, y, t: OHEM(x, y, 0.01, y.numel() // 4),
    ),
    "balance": ({"balance": True}, balanced),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_the_configured_loss_is_the_one_that_is_taken(semi_context, name):
    options, by_hand = CRITERIA[name]
    t, plain = training(semi_context, **options), training(semi_context, loss=options.get("loss", "ce"))
    b = draw(t)
    logits = 2 * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    out = t.setup.student(b.weak)._replace(logits=logits)
    loss = t.setup.supervised(out, b.y)
    torch.testing.assert_close(loss, by_hand(logits, b.y.target(-1), t))
    if name not in ("loss", "sum"):
        assert float(loss) != pytest.approx(float(plain.setup.supervised(out, b.y)), rel=1e-2), "unlike the default"


# ---------------------------------------------------------------------- streams and parts


class TwoDomains(Training):
    """Learns on crops of a second data set what a head of its own says of them."""

    def __init__(self, other, context, config, labels, steps):
        setup = NetworkSetup(context, config, labels, steps)
        super().__init__(setup)
        self.student, self.supervised = setup.student, setup.supervised
        order = sampler(context.seed, len(other), 3, more=1)
        change = photometric("unimatch")
        setup.streams["t"] = setup.stream(range(len(other)), order, change=change, strong_views=1, data=other)
        self.head = setup.learn_too("head", torch.nn.Conv2d(setup.network.width, 3, 1))

    def losses(self, batch, step):
        x, t = batch["x"], batch["t"]
        loss_x = self.supervised(self.student(x.weak), x.y)
        said = self.head(self.student(t.weak).embedding)
        return {"loss": loss_x + said.square().mean() + self.student(t.strong[0]).logits.square().mean(), "x": loss_x}


@pytest.fixture
def two_domains(semi_context, tmp_path):
    """Makes a training on the run's photographs and on four of another data set, of another size and without masks."""
    other = open_folder(write_tiny_folder(tmp_path / "other", count=4, size=(90, 70), masks=False))
    config = configure(NetworkConfig, {"crop": 32, "batch": 2, "precision": "fp32"})
    labels = MaskLabels(semi_context.data, semi_context.classes)
    return lambda: TwoDomains(other, semi_context, config, labels, 5)


def test_a_second_data_set_is_a_stream_as_any_other(semi_context, two_domains):
    t = two_domains()
    drawn = t.batch(t.sampler.next(), seeded())
    assert drawn["t"].weak.dtype == torch.uint8 and drawn["t"].weak.device.type == "cpu"
    assert {g.source_size for g in drawn["t"].geometry} == {(90, 70)} != {g.source_size for g in drawn["x"].geometry}
    b = t.on_device(drawn)
    assert b["t"].weak.shape == (3, 3, 32, 32) and len(b["t"].strong) == 1 and b["t"].labels is None
    assert torch.equal(b["t"].weak, t.setup.normalise(drawn["t"].weak)) and torch.equal(b["t"].valid, drawn["t"].valid)
    assert torch.equal(b["t"].strong[0], t.setup.normalise(drawn["t"].strong[0]))
    assert b["x"].y.ids.equal(drawn["x"].y.ids) and b["t"].images == drawn["t"].images
    before = t.head.weight.detach().clone()
    t.update(semi_context.fabric, b, 0)
    assert not torch.equal(before, t.head.weight), "its own module learns with the network"


def test_streams_and_modules_of_its_own_go_on_after_a_kill(semi_context, two_domains, tmp_path, monkeypatch):
    check_resumes(semi_context, two_domains, tmp_path, monkeypatch)


class Agreeing(Training):
    """Learns without labels that the cells of two overlapping crops are alike."""

    def __init__(self, context, config, steps):
        setup = CropSetup(context, config, steps)
        super().__init__(setup)
        self.student = setup.student
        images, crops = range(len(context.data)), config.crops
        order = sampler(context.seed, len(images), crops.batch)
        photographs = setup.stream(images, order, change=photometric("iic_coco"))
        setup.streams["u"] = PairStream(photographs, 8, (crops.scale_min, crops.scale_max))

    def losses(self, batch, step):
        u = batch["u"]
        one, two = (F.avg_pool2d(self.student(x).logits, 8).permute(0, 2, 3, 1).flatten(0, 2) for x in (u.u1, u.u2))
        return {"loss": (one[u.cells1] - two[u.cells2]).square().mean()}


def agreeing(context):
    return Agreeing(context, configure(CropConfig, {"crop": 32, "batch": 3, "precision": "fp32"}), 5)


def test_a_network_learns_without_labels(semi_context):
    t = agreeing(semi_context)
    drawn = t.batch(t.sampler.next(), seeded())
    u = t.on_device(drawn)["u"]
    assert torch.equal(u.u1, t.setup.normalise(drawn["u"].u1)) and u.u1.shape == (3, 3, 32, 32)
    before = t.setup.network.classifier.conv.weight.detach().clone()
    t.update(semi_context.fabric, {"u": u}, 0)
    assert not torch.equal(before, t.setup.network.classifier.conv.weight)
    assert not any(semi_context.data.ledger.counts()["train"].values())


def test_a_network_without_labels_goes_on_after_a_kill(semi_context, tmp_path, monkeypatch):
    check_resumes(semi_context, lambda: agreeing(semi_context), tmp_path, monkeypatch)


def test_it_begins_where_a_supervised_one_does(semi_context):
    a, b = agreeing(semi_context).setup.network.state_dict(), training(semi_context).setup.network.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in b)


@pytest.mark.parametrize("option", ["sample", "holdout", "loss", "balance", "norm_from"])
def test_without_labels_there_are_no_options_of_labels(option):
    configure(NetworkConfig, {})
    with pytest.raises(MaskwrightError, match=option):
        configure(CropConfig, {option: "x"})


def test_a_method_without_labels_asks_for_none_and_makes_clusters():
    config = configure(CropConfig, {})
    terms = CropMethod.terms(config)
    assert not terms.needs and not terms.reads_masks
    assert CropMethod.classes_from == "clusters"


def test_a_module_that_learns_too_has_the_heads_rate_and_decay(semi_context):
    t = training(semi_context, lr=0.5, weight_decay=0.25)
    held = {id(p) for g in t.optimizers["network"].param_groups for p in g["params"]}
    norm = torch.nn.BatchNorm2d(4)
    module = t.setup.learn_too("more", torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), norm))
    groups = {id(p): g for g in t.optimizers["network"].param_groups for p in g["params"]}
    assert t.modules["more"] is module and not held & {id(p) for p in module.parameters()}
    for p in module.parameters():
        assert groups[id(p)]["lr"] == 0.5 and groups[id(p)]["weight_decay"] == (0.25 if p.ndim > 1 else 0)


def test_orders_differ_by_the_number_that_is_added_to_the_seed(semi_context):
    first, again, other = (sampler(semi_context.seed, 50, 10, seed) for seed in (0, 0, 1))
    a, b, c = (o.next() for o in (first, again, other))
    assert (a == b).all() and (a != c).any()
    assert sampler(semi_context.seed, 50, 10, 2**64).next().tolist() == a.tolist(), "sums stay below 2 to the 64"


def test_held_out_images_are_not_drawn(semi_context):
    t = training(semi_context, holdout=0.4)
    assert len(t.setup.held) == 1 and t.extra["selection"] is t.setup.selection
    drawn = {int(i) for _ in range(6) for i in t.sampler.next()["x"]}
    assert drawn == set(t.setup.labels.indices) == {0, 1, 2} - set(t.setup.held)
    assert training(semi_context).setup.selection is None


def test_rates_fall_by_the_power_nine_tenths(semi_context):
    t = training(semi_context, steps=8)
    assert [t.schedule(step) for step in range(8)] == pytest.approx([(1 - step / 8) ** 0.9 for step in range(8)])
