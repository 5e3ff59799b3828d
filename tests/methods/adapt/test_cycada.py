"""CycleGAN and CyCADA: losses against slow formulas, networks, who learns from what, whole photographs, the stages."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import write_tiny_folder
from torch import Tensor, nn

import maskwright as mw
from maskwright.data.folders.folder import open_folder
from maskwright.engine.config import configure, describe
from maskwright.engine.opening import open_run
from maskwright.engine.progress import Progress
from maskwright.engine.request import RunRequest
from maskwright.engine.streams import open_sources
from maskwright.errors import MaskwrightError
from maskwright.methods.adapt.cycada.aligning import AlignTraining
from maskwright.methods.adapt.cycada.generating import GeneratorTraining, constant_then_linear
from maskwright.methods.adapt.cycada.losses import (
    Played,
    Weights,
    discriminator_loss,
    domain_loss,
    fooling,
    generator_terms,
    is_heard,
    semantic_consistency,
    told_apart,
)
from maskwright.methods.adapt.cycada.method import Cycada, CycleGAN
from maskwright.methods.adapt.cycada.networks import DomainDiscriminator, Generator, PatchDiscriminator
from maskwright.methods.adapt.cycada.translating import PHOTOGRAPHS, at_scale, in_tiles
from maskwright.recipes.training.criteria import IGNORE
from maskwright.recipes.training.network import make_network
from maskwright.recipes.training.selection import hold_out

SMALL = {
    "crops.size": 32, "crops.batch": 2, "precision": "fp32", "generators.width": 4, "generators.blocks": 1,
    "generators.side": 32, "semantic.limit": 99, "align.gate": 0,
}  # fmt: skip
CPU = torch.device("cpu")


def small(method: type, **options: object) -> dict[str, object]:
    """Those of `SMALL` that the method has and that others leave a use, and others."""
    known = {o["name"] for o in describe(method.Config)}
    if options.get("translation", "cyclegan") != "cyclegan":
        known = {name for name in known if not name.startswith(("generators.", "semantic."))}
    if options.get("align.weight") == 0:
        known = {name for name in known if not name.startswith("align.")}
    return {k: v for k, v in SMALL.items() if k in known} | options


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


class Plain:
    """What is asked of a fabric here."""

    def backward(self, loss: Tensor) -> None:
        loss.backward()


# ---------------------------------------------------------------------- losses


def test_generator_terms_by_the_formula():
    s, t, *made = (draw(k, 2, 3, 3, 4) for k in range(8))
    d_t, d_s = draw(8, 2, 1, 2, 2), draw(9, 2, 1, 2, 2)

    def l1(a: Tensor, b: Tensor) -> float:
        return mean([abs(float(x) - float(y)) for x, y in zip(a.flatten(), b.flatten())])

    played = Played(*made)
    cycle = l1(played.back_s, s) + l1(played.back_t, t)
    identity = l1(played.same_t, t) + l1(played.same_s, s)
    gan_t, gan_s = (mean([(float(v) - 1) ** 2 for v in d.flatten()]) for d in (d_t, d_s))
    terms = generator_terms(s, t, played, d_t, d_s, Weights(gan=2.0, cycle=3.0, identity=0.7))
    assert float(terms["loss"]) == pytest.approx(2 * gan_t + gan_s + 3 * cycle + 2.1 * identity)
    assert float(terms["cycle"]) == pytest.approx(cycle) and float(terms["identity"]) == pytest.approx(identity)
    none = generator_terms(s, t, played, d_t, d_s, Weights(identity=0.0))
    assert "identity" not in none and float(none["loss"]) == pytest.approx(gan_t + gan_s + 10 * cycle)


def test_verdicts_are_1_for_what_is_real():
    real, fake = draw(0, 2, 1, 2, 3), draw(1, 3, 1, 2, 3)
    slow = mean([(float(v) - 1) ** 2 for v in real.flatten()]) + mean([float(v) ** 2 for v in fake.flatten()])
    assert float(discriminator_loss(real, fake)) == pytest.approx(slow / 2)
    assert float(discriminator_loss(torch.ones(3), torch.zeros(3))) == 0


def test_semantic_consistency_by_the_formula():
    on_t, on_s = draw(0, 2, 3, 4, 4), draw(1, 2, 3, 4, 4)
    y, k = (torch.randint(3, (2, 4, 4), generator=torch.Generator().manual_seed(n)) for n in (2, 3))
    y[0, 0], k[1, 2] = IGNORE, IGNORE
    slow = 0.0
    for logits, target in ((on_t, y), (on_s, k)):
        p = logits.softmax(1)
        places = [x for x in np.ndindex(2, 4, 4) if target[x] != IGNORE]
        slow += mean([-math.log(p[b, target[b, i, j], i, j]) for b, i, j in places])
    assert float(semantic_consistency(on_t, y, on_s, k)) == pytest.approx(slow)
    assert is_heard(torch.tensor(1.0), 1.0) and not is_heard(torch.tensor(1.01), 1.0)


def test_domains_by_the_formula():
    s, t = draw(0, 2, 2, 3, 3), draw(1, 2, 2, 3, 3)
    losses = [-math.log(p) for p in (*s.softmax(1)[:, 1].flatten(), *t.softmax(1)[:, 0].flatten())]
    assert float(domain_loss(s, t)) == pytest.approx(mean(losses))
    assert float(fooling(t)) == pytest.approx(mean([-math.log(p) for p in t.softmax(1)[:, 1].flatten()]))
    right = [float(v[1] > v[0]) for v in s.movedim(1, -1).reshape(-1, 2)]
    right += [float(v[0] > v[1]) for v in t.movedim(1, -1).reshape(-1, 2)]
    assert told_apart(s, t).float().tolist() == right


def test_rate_is_constant_and_then_falls_to_almost_nothing():
    factor = constant_then_linear(10, 0.5)
    assert [factor(k) for k in range(5)] == [1.0] * 5
    assert [factor(k) for k in range(5, 10)] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert constant_then_linear(4, 1.0)(3) == 1.0 and constant_then_linear(1, 0.0)(0) == 0.5


# ---------------------------------------------------------------------- networks


def test_generator_keeps_size_and_range_and_sees_each_image_alone():
    torch.manual_seed(0)
    g = Generator(2, 4)
    x = torch.rand(2, 3, 20, 24) * 2 - 1
    y = g(x)
    assert y.shape == x.shape and float(y.detach().abs().max()) <= 1
    torch.testing.assert_close(g(x[:1]), y[:1])
    convolutions = [m for m in g.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert all(not m.bias.any() for m in convolutions)
    weights = torch.cat([m.weight.flatten() for m in convolutions])
    assert float(weights.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_patches_of_70_pixels():
    torch.manual_seed(0)
    d = PatchDiscriminator(2)
    with torch.device("meta"):
        of_400 = PatchDiscriminator(2)(torch.empty(1, 3, 400, 400))
    assert of_400.shape == (1, 1, 48, 48) and d(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 2, 2)
    layers = [(4, c.stride[0]) for c in d.convs]
    field = 1
    for kernel, stride in reversed(layers):
        field = (field - 1) * stride + kernel
    assert field == 70
    assert DomainDiscriminator(3)(torch.zeros(2, 3, 5, 4)).shape == (2, 2, 5, 4)


# ---------------------------------------------------------------------- who learns from what


@pytest.fixture
def domains(tmp_path: Path) -> tuple[Path, Path]:
    """A labelled source, and a target without masks whose photographs are half as bright."""
    source, target = write_tiny_folder(tmp_path / "source"), write_tiny_folder(tmp_path / "target", masks=False)
    (target / "masks").rmdir()
    for file in (target / "images").iterdir():
        Image.fromarray(np.asarray(Image.open(file)) // 2).save(file)
    return source, target


def method_of(domains: tuple[Path, Path], out: Path, cls: type = Cycada, **options: object) -> Cycada:
    source, target = domains
    config = configure(cls.Config, small(cls, **options))
    request = RunRequest(
        data=open_folder(target), method=cls, config=config, out=out, sources=open_sources(str(source)),
        backbone="mobilenetv3_small_050", weights="random", steps=4, device="cpu", progress=Progress(quiet=True),
    )  # fmt: skip
    return cls(config, open_run(request))


def drawn(training: GeneratorTraining | AlignTraining):
    return training.on_device(training.batch(training.sampler.next(), torch.Generator().manual_seed(0)))


def moved(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


@pytest.fixture
def generators(domains, tmp_path) -> GeneratorTraining:
    method = method_of(domains, tmp_path / "run")
    torch.manual_seed(0)
    judge = make_network(method.context, method.config)
    return GeneratorTraining(method.context, method.config, 4, method.masks(), judge)


def test_generators_learn_from_judges_that_do_not(generators):
    t = generators
    terms, _ = t.generator_losses(drawn(t))
    assert float(terms["semantic"].detach()) > 0
    terms["semantic"].backward(retain_graph=True)
    assert moved(t.to_target) and moved(t.to_source), "semantic consistency teaches both"
    terms["loss"].backward()
    judges = (t.of_target.discriminator, t.of_source.discriminator, t.judge)
    assert all(p.grad is None for judge in judges for p in judge.parameters())
    assert all(p.requires_grad for judge in judges[:2] for p in judge.parameters()), (
        "discriminators learn in their turn"
    )


def test_a_step_moves_each_player_by_its_own_loss(generators):
    t = generators
    before = {name: [p.detach().clone() for p in m.parameters()] for name, m in t.modules.items()}
    judge = {k: v.clone() for k, v in t.judge.state_dict().items()}
    terms = t.update(Plain(), drawn(t), 0)
    assert {"loss", "gan_t", "gan_s", "cycle", "identity", "semantic", "d_t", "d_s"} == set(terms)
    for name, module in t.modules.items():
        assert any(not torch.equal(a, b) for a, b in zip(before[name], module.parameters())), name
    assert all(torch.equal(judge[k], v) for k, v in t.judge.state_dict().items()), "its statistics too"
    assert len(t.pool_t.images) == len(t.pool_s.images) == 1


def test_discriminators_learn_alone(generators):
    t = generators
    batch = drawn(t)
    played = t.play(batch["s"].weak, batch["t"].weak)
    of = t.of_target
    fake, inside = t.pool_t.shown(played.fake_t, batch["s"].inside)
    discriminator_loss(t.verdicts(of, batch["t"].weak), t.verdicts(of, fake), (batch["t"].inside, inside)).backward()
    assert moved(of.discriminator) and not moved(t.to_target) and not moved(t.of_source.discriminator)


def test_identity_generators_lose_nothing_in_a_cycle(generators):
    t = generators
    t.to_target = t.to_source = nn.Identity()
    terms, _ = t.generator_losses(drawn(t))
    assert float(terms["cycle"]) == float(terms["identity"]) == 0


def test_the_judge_sees_what_it_was_trained_on(generators):
    """[-1, 1] to the normalisation of its weights; and it is not heard where it does not know the source."""
    t = generators
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = t.judge.logits(t.preprocess.network_input(pixels, CPU))
    torch.testing.assert_close(t.judged(t.setup.normalise(pixels)), expected, atol=1e-4, rtol=1e-4)
    t.config = configure(Cycada.Config, {**SMALL, "semantic.limit": 0})
    assert float(t.generator_losses(drawn(t))[0]["semantic"]) == 0


def aligning(domains, out: Path, **options: object) -> AlignTraining:
    method = method_of(domains, out, **{"translation": "none", **options})
    torch.manual_seed(0)
    network = make_network(method.context, method.config)
    return AlignTraining(method.context, method.config, method.labels(), 4, network)


def test_freezes_of_alignment(domains, tmp_path):
    t = aligning(domains, tmp_path / "run")
    batch = drawn(t)
    s, of_t = t.maps(batch)
    assert s.shape[1] == 3 and not s.requires_grad and of_t.requires_grad
    t.discriminator_loss(s, of_t, batch)[0].backward(retain_graph=True)
    assert moved(t.adversary.discriminator) and not moved(t.setup.network), "D learns from what f said"
    t.adversary.optimizer.zero_grad(set_to_none=True)
    t.fooling(of_t, batch).backward()
    assert moved(t.setup.network) and not moved(t.adversary.discriminator), "f learns from a frozen D"


@pytest.mark.parametrize(("gate", "opens"), [(0.5, False), (0.49, True)])
def test_the_gate_at_an_accuracy_of_one_half(gate, opens, domains, tmp_path, monkeypatch):
    t = aligning(domains, tmp_path / "run", **{"align.gate": gate})
    monkeypatch.setattr("maskwright.methods.adapt.cycada.aligning.accuracy", lambda right: 0.5)
    before = [p.detach().clone() for p in t.setup.network.parameters()]
    terms = t.update(Plain(), drawn(t), 0)
    assert float(terms["open"]) == opens and ("fool" in terms) is ("s" in terms) is opens
    same = all(torch.equal(a, b) for a, b in zip(before, t.setup.network.parameters()))
    assert same is not opens


def test_a_source_network_of_its_own_stays_as_it_was(domains, tmp_path):
    t = aligning(domains, tmp_path / "run", **{"align.shared": False, "align.on": "features"})
    state = {k: v.clone() for k, v in t.source.state_dict().items()}
    terms = t.update(Plain(), drawn(t), 0)
    assert "fool" in terms and "s" not in terms
    assert all(torch.equal(state[k], v) for k, v in t.source.state_dict().items())
    assert t.adversary.discriminator[0].in_channels == t.setup.network.width


# ---------------------------------------------------------------------- padding

LEFT = torch.zeros(2, 8, 8, dtype=torch.bool)
LEFT[:, :, :4] = True
"""A photograph in the left half of two crops."""


@pytest.mark.parametrize("inside", [(LEFT, LEFT.mT), None])
def test_losses_are_those_of_what_lies_inside(inside):
    """Means over the pixels, and over the verdicts at their places, that are inside both ways of cutting them out."""
    of_s, of_t = inside or (torch.ones_like(LEFT),) * 2
    s, t, *made = (draw(k, 2, 3, 8, 8) for k in range(8))
    d_t, d_s, scores_s, scores_t = draw(8, 2, 1, 4, 4), draw(9, 2, 1, 4, 4), draw(10, 2, 2, 4, 4), draw(11, 2, 2, 4, 4)

    def kept(x: Tensor, of: Tensor) -> Tensor:
        """The pixels (n, channels), or every other of them, that lie inside."""
        return x.movedim(1, -1)[of[:, :: 8 // x.shape[-1], :: 8 // x.shape[-1]]]

    terms = generator_terms(s, t, Played(*made), d_t, d_s, Weights(), inside)
    gaps = [(made[2], s, of_s), (made[3], t, of_t), (made[4], t, of_t), (made[5], s, of_s)]
    l1 = [float((kept(a, of) - kept(b, of)).abs().mean()) for a, b, of in gaps]
    assert float(terms["cycle"]) == pytest.approx(l1[0] + l1[1])
    assert float(terms["identity"]) == pytest.approx(l1[2] + l1[3])
    assert float(terms["gan_t"]) == pytest.approx(float((kept(d_t, of_s) - 1).square().mean()))
    assert float(terms["gan_s"]) == pytest.approx(float((kept(d_s, of_t) - 1).square().mean()))
    slow = (kept(d_t, of_s) - 1).square().mean() + kept(d_s, of_t).square().mean()
    assert float(discriminator_loss(d_t, d_s, inside)) == pytest.approx(float(slow) / 2)
    log_s, log_t = kept(scores_s, of_s).log_softmax(1), kept(scores_t, of_t).log_softmax(1)
    expected = -torch.cat([log_s[:, 1], log_t[:, 0]]).mean()
    assert float(domain_loss(scores_s, scores_t, inside)) == pytest.approx(float(expected))
    assert float(fooling(scores_t, inside and inside[1])) == pytest.approx(-float(log_t[:, 1].mean()))
    right = torch.cat([log_s.argmax(1) == 1, log_t.argmax(1) == 0])
    assert torch.equal(told_apart(scores_s, scores_t, inside), right)


@pytest.fixture
def padded(tmp_path: Path) -> tuple[Path, Path]:
    """A source that fills crops of 32 pixels, and a target of 20 x 24 that does not."""
    source = write_tiny_folder(tmp_path / "source")
    return source, write_tiny_folder(tmp_path / "target", size=(20, 24))


def spoilt(batch: dict, value: float) -> dict:
    """The batch with another colour on the padding of both domains."""
    return {k: v._replace(weak=torch.where(v.inside[:, None], v.weak, value)) for k, v in batch.items()}


def test_alignment_does_not_count_padding(padded, tmp_path):
    """What D says of padding moves neither its loss, nor the accuracy that opens the gate, nor what fools it."""
    t = aligning(padded, tmp_path / "run")
    batch = drawn(t)
    s, of_t = t.maps(batch)
    inside = nn.functional.interpolate(batch["t"].inside[:, None].float(), of_t.shape[-2:]) > 0
    assert inside.any() and not inside.all()

    def told(padding: float) -> tuple[Tensor, float, Tensor]:
        """By a D that takes each domain for the other, and is right on the target's padding where that is -9."""
        on_t = torch.where(inside, 9.0, padding)
        verdicts = iter([torch.full_like(s[:, :1], -9.0), on_t, on_t])
        t.judge = lambda of, maps: torch.cat([torch.zeros_like(on_t), next(verdicts)], 1)
        return (*t.discriminator_loss(s, of_t, batch), t.fooling(of_t, batch))

    (loss_a, right_a, fool_a), (loss_b, right_b, fool_b) = told(-9.0), told(9.0)
    assert right_a == right_b == 0 and torch.equal(loss_a, loss_b) and torch.equal(fool_a, fool_b)


def test_generators_do_not_count_padding(padded, tmp_path):
    """Another colour of the padding leaves the losses of generators that are the identity as they are."""
    method = method_of(padded, tmp_path / "run", CycleGAN)
    t = GeneratorTraining(method.context, method.config, 4)
    batch = drawn(t)
    assert batch["s"].inside.all() and not batch["t"].inside.all()
    t.play = lambda s, t_: Played(s, t_, s + 0.1, torch.where(batch["t"].inside[:, None], t_, 1.0), t_, s)
    t.verdicts = lambda of, images: images[:, :1]
    a, b = (t.generator_losses(spoilt(batch, value))[0] for value in (0.0, 1.0))
    assert float(a["cycle"]) == pytest.approx(0.1, abs=1e-6) and float(a["identity"]) == 0
    assert {k: float(v) for k, v in a.items()} == {k: float(v) for k, v in b.items()}
    shown, inside = t.pool_s.shown(batch["t"].weak, batch["t"].inside)
    assert torch.equal(shown, batch["t"].weak) and torch.equal(inside, batch["t"].inside), "fakes keep their padding"


def test_a_pool_of_an_earlier_version_goes_on(generators):
    t = generators
    t.pool_t.load_state_dict({"images": [torch.zeros(3, 32, 32)]})
    assert len(t.pool_t.images[0]) == 4 and bool(t.pool_t.images[0][3].all())


# ---------------------------------------------------------------------- whole photographs


@pytest.mark.parametrize(("size", "tile"), [((1, 1), 32), ((45, 70), 32), ((33, 90), 512), ((200, 40), 64)])
def test_tiles_join_to_the_photograph(size, tile):
    image = torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(0)).float()
    seen = []

    def same(x: Tensor) -> Tensor:
        seen.append(x.shape[-2:])
        assert float(x.abs().max()) <= 1
        return x

    torch.testing.assert_close(in_tiles(same, image, tile, CPU), image, atol=1e-3, rtol=0)
    assert all(8 <= side <= tile and side % 4 == 0 for shape in seen for side in shape)
    assert len(seen) == (1 if max(size) <= tile else len(seen)) and (len(seen) > 1) is (max(size) > tile)


def test_large_photographs_keep_their_detail():
    g = np.random.default_rng(0)
    image = g.integers(40, 200, (60, 90, 3), np.uint8)
    sizes = []

    def brighter(small: Tensor) -> Tensor:
        sizes.append(small.shape)
        return small + 20

    assert np.array_equal(at_scale(image, 45, brighter), image + 20) and sizes == [(3, 30, 45)]
    assert np.array_equal(at_scale(image, 90, lambda x: x), image)
    assert int(at_scale(image, 90, lambda x: x + 500).min()) == 255, "the range is kept"


# ---------------------------------------------------------------------- stages


def train(target: Path, source: Path | None, out: Path, method: str = "cycada", **settings: object):
    return mw.train(
        target, method, source=None if source is None else str(source), out=out, backbone="mobilenetv3_small_050",
        weights="random", steps=3, device="cpu", report=False, settings=small(mw.METHODS[method], **settings),
        progress=Progress(quiet=True),
    )  # fmt: skip


def test_stages_are_those_that_options_ask_for(domains, tmp_path):
    method = method_of(domains, tmp_path / "run")

    def stages(cls: type = Cycada, **options: object) -> dict[str, int]:
        changed = cls(configure(cls.Config, small(cls, **options)), method.context)
        several = sum(s.kind == "train" for s in changed.stages()) > 1
        assert bool(changed.terms(changed.config).fixed_length) == several
        return {s.name: s.steps for s in changed.stages()}

    method.context.steps = 100
    assert stages() == {"judge": 100, "generators": 100, "translate": 0, "train": 75, "align": 25}
    assert stages(**{"generators.steps": 7, "semantic.steps": 9, "align.share": 0.5}) == {
        "judge": 9, "generators": 7, "translate": 0, "train": 50, "align": 50,
    }  # fmt: skip
    assert stages(CycleGAN) == {"generators": 100, "translate": 0, "train": 100}
    assert stages(**{"translation": "fda", "align.weight": 0}) == {"translate": 0, "train": 100}
    assert stages(translation="none") == {"train": 75, "align": 25}
    method.context.steps = 1
    assert stages(translation="none") == {"train": 1, "align": 1}
    with pytest.raises(MaskwrightError, match="translation"):
        configure(CycleGAN.Config, {"translation": "fda"})


def test_what_is_translated_is_a_source_for_any_method(domains, tmp_path):
    """With the source's masks, by name; the ledger counts them as the source's."""
    source, target = domains
    train(target, source, tmp_path / "run", translation="histogram", **{"align.weight": 0})
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["labels_read"]["train"]["masks"] == 8
    made, own = open_folder(tmp_path / "run" / "translate" / PHOTOGRAPHS), open_folder(source)
    assert made.names == own.names and list(made.classes.names) == ["ground", "disc", "square"]
    assert all(np.array_equal(made.mask(i), own.mask(i)) for i in range(8))
    assert all(made.image(i).mean() < 0.6 * own.image(i).mean() for i in range(8)), "as dark as the target"
    model = train(target, made.root, tmp_path / "again", "source_only")
    assert len(model.classes) == 3


def test_a_killed_translation_goes_on(domains, tmp_path, monkeypatch):
    """Photographs that are there stay, and the others are those of an uninterrupted run."""
    source, target = domains
    options = {"translation": "fda", "align.weight": 0, "beta": 0.1}
    whole, cut = (method_of((source, target), tmp_path / name, **options) for name in ("whole", "cut"))
    whole.translate(tmp_path / "whole" / "translate")
    first, done = cut.translation(), []

    def failing(image, style):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return first(image, style)

    monkeypatch.setattr(cut, "translation", lambda: failing)
    with pytest.raises(KeyboardInterrupt):
        cut.translate(tmp_path / "cut" / "translate")
    monkeypatch.undo()
    cut.translate(tmp_path / "cut" / "translate")
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*.png")} for n in ("whole", "cut"))
    assert a == b and len(a) == 8  # names of masks and photographs are the same
    assert whole.context.ledgers.record() == cut.context.ledgers.record()


def test_a_translation_killed_outright_tells_of_the_masks_it_read(domains, tmp_path):
    """A process that is killed outright saves no ledger: the next one notes the masks of what it finds."""
    options = {"translation": "histogram", "align.weight": 0}
    first, second = (method_of(domains, tmp_path / name, **options) for name in ("first", "second"))
    first.translate(tmp_path / "first" / "translate")
    next((tmp_path / "first" / "translate" / PHOTOGRAPHS / "images").iterdir()).unlink()
    second.translate(tmp_path / "first" / "translate")
    assert second.context.ledgers.record() == first.context.ledgers.record()
    assert second.context.ledgers.by_stream()["source"]["train"]["masks"] == 8


def test_generators_learn_nothing_of_held_out_masks(domains, tmp_path, monkeypatch):
    method, made = method_of(domains, tmp_path / "run", holdout=0.25), []
    monkeypatch.setattr(method, "judge", lambda: make_network(method.context, method.config))
    monkeypatch.setattr(method.context, "fit", lambda training, *more: made.append(training))
    method.train_generators(tmp_path / "run" / "generators")
    seen, held = hold_out(method.masks(), 0.25, method.context.seed)
    assert len(held) == 2 and made[0].setup.streams["s"].indices.tolist() == seen.indices


def test_the_judge_is_chosen_under_the_statistics_that_it_judges_with(domains, tmp_path, monkeypatch):
    """Those of the source's photographs, though the network that is kept takes the target's."""
    method, trained, taken = method_of(domains, tmp_path / "run", holdout=0.25), [], []
    monkeypatch.setattr(method.context, "fit", lambda training, *more: trained.append(training))
    method.train_judge(tmp_path / "run" / "judge")

    def noted(network, data, *more):
        taken.append(data)
        return 1

    monkeypatch.setattr("maskwright.recipes.training.network.retake_statistics", noted)
    trained[0].setup.with_statistics(trained[0].setup.network)
    assert method.config.norms.photographs == "all" and taken == [method.context.data_of("source")]


def test_a_gate_that_never_opens_is_said(domains, tmp_path, capfd):
    source, target = domains
    train(target, source, tmp_path / "run", translation="none", **{"align.gate": 1})
    notes = json.loads((tmp_path / "run" / "run.json").read_text())["notes"]
    assert any("nothing was aligned" in note for note in notes)


@pytest.mark.parametrize("name", ["cyclegan", "cycada"])
def test_no_source_and_a_source_that_shares_images_are_one_line(name, domains, tmp_path):
    source, target = domains
    with pytest.raises(MaskwrightError, match="needs a labelled source folder") as error:
        train(target, None, tmp_path / "run", name)
    assert "\n" not in str(error.value)
    with pytest.raises(MaskwrightError, match="8 images are both in the run's own data and in source") as error:
        train(source, source, tmp_path / "run", name)
    assert "\n" not in str(error.value) and "--split" in str(error.value)
    assert not (tmp_path / "run").exists()
