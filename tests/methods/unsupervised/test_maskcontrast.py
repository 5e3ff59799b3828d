"""MaskContrast: views, what a checkpoint holds, the queue, both read-outs, ablations, presets, inputs."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.methods.unsupervised.small import parts_of, steps_of, trainer

import maskwright as mw
from maskwright.data.folders.folder import open_folder
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.proposals import Proposals, SoftMap
from maskwright.engine.config import configure
from maskwright.errors import MaskwrightError
from maskwright.methods.unsupervised.maskcontrast import losses as L
from maskwright.methods.unsupervised.maskcontrast import method as M
from maskwright.methods.unsupervised.maskcontrast import training as T
from maskwright.methods.unsupervised.maskcontrast.training import freeze_first
from maskwright.methods.unsupervised.maskcontrast.views import accepted
from maskwright.models.networks.vit_heads import LastMap
from maskwright.models.parts.salient_objects import ObjectClusters, SalientDecoder, object_vectors
from maskwright.models.parts.table import build_part
from maskwright.ops.clustering.kmeans import kmeans
from maskwright.ops.clustering.pca import fit_pca

SMALL = {"crops.size": 32, "crops.batch": 4, "precision": "fp32", "contrast.queue": 6, "clusters.restarts": 2}
train = trainer("maskcontrast", SMALL)


@pytest.fixture(scope="module")
def found(data, tmp_path_factory):
    """A store with the things of seven of the pictures; of one of them nothing is object."""
    pictures, place = open_folder(data), tmp_path_factory.mktemp("store") / "found"
    store = Proposals.begin(place, "objects", "a test", "masks of 7 images")
    for i, name in enumerate(pictures.names[:7]):
        store.write(name, LabelMap.from_mask(((pictures.mask(i) > 0) & (i > 0)).astype(np.uint8)))
    return place


@pytest.fixture(scope="module")
def done(data, found, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, train(data, out, 3, {"objects": str(found)})


def test_a_run_on_given_objects(done, found):
    """Three steps of four photographs: twelve prototypes, of which the queue keeps the last six."""
    out, model = done
    record = json.loads((out / "run.json").read_text())
    assert record["inputs"]["objects"]["labels_seen"] == "masks of 7 images"
    assert not any(n for counts in record["labels_read"].values() for n in counts.values())
    notes = " ".join(record["notes"])
    assert "readout.dim cut to 1: " in notes
    assert "1 of 8 photographs have none" in notes and "1 photographs are not learned from" in notes
    assert len(Proposals(out / "objects" / "proposals")) == 7
    parts = parts_of(out)
    queue = parts["module.queue"]
    assert int(queue["count"]) == 6 and int(queue["head"]) == 0
    torch.testing.assert_close(queue["rows"].norm(dim=1), torch.ones(6))
    for step in steps_of(out):
        assert step["loss"] == pytest.approx(step["contrast"] + step["saliency"], rel=1e-5)
        assert 0 <= step["agreement"] <= 1
    assert model.segmenter.classifier.classes == 3
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    mask = model.predict(image).mask
    assert len(np.unique(mask[mask > 0])) <= 1, "a photograph's object has one cluster"


@pytest.mark.slow
def test_the_key_network_is_an_average(data, found, tmp_path):
    """theta_k <- m theta_k + (1 - m) theta_q before the step; with m = 1 it is the network as it began."""
    train(data, tmp_path / "a", 1, {"objects": str(found)})
    train(data, tmp_path / "b", 3, {"objects": str(found)}, **{"contrast.momentum": 1.0})
    one, three = (parts_of(tmp_path / n)["module.keys"]["module.decoder.head.weight"] for n in "ab")
    torch.testing.assert_close(one, three)
    assert not torch.equal(three, parts_of(tmp_path / "b")["module.network"]["decoder.head.weight"])


@pytest.mark.slow
def test_ablations(data, found, tmp_path):
    """Without a queue, without a saliency head, without contrast on the encoder's features."""
    store = {"objects": str(found)}
    model = train(data, tmp_path / "a", 2, store, **{"contrast.queue": 0, "saliency.head": False})
    parts = parts_of(tmp_path / "a")
    assert "module.queue" not in parts and not any("salient" in n for n in parts["module.network"])
    assert "saliency" not in steps_of(tmp_path / "a")[0]
    assert model.segmenter.classifier.centers.shape == (3, 32)
    again = mw.load(tmp_path / "a")
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    assert np.array_equal(again.predict(image).mask, model.predict(image).mask)
    settings = {"contrast.weight": 0, "readout.of": "encoder", "readout.threshold": -9}
    model = train(data, tmp_path / "b", 1, store, **settings)
    deep = model.segmenter.decoder.deep
    assert deep > 32 and model.segmenter.classifier.width == deep
    assert steps_of(tmp_path / "b")[0]["loss"] == pytest.approx(steps_of(tmp_path / "b")[0]["saliency"])


def test_options_that_contradict_each_other():
    for settings, told in (
        ({"crops.batch": 1}, "batch=1"),
        ({"readout.of": "encoder", "saliency.head": False}, "without a saliency head"),
        ({"views.least": 0.5, "views.most": 0.4}, "views.least"),
        ({"crops.scale_max": 2.0}, "scale_max"),
    ):
        with pytest.raises(MaskwrightError, match=told):
            configure(M.MaskContrastConfig, settings)


def test_without_a_queue_each_process_needs_two_photographs(monkeypatch):
    monkeypatch.setattr("maskwright.engine.distributed.world_size", lambda: 2)
    config = configure(M.MaskContrastConfig, {"contrast.queue": 0, "crops.batch": 3})
    with pytest.raises(MaskwrightError, match=r"queue=0 and crops.batch=3 in 2 processes; expected a queue, .* 4"):
        T.MaskContrastTraining(SimpleNamespace(), config, 10, SimpleNamespace())


def test_a_process_may_have_no_photograph_with_an_object(monkeypatch, tmp_path):
    centers = SimpleNamespace(centers=torch.eye(2, 32), labels=torch.zeros(0, dtype=torch.int64))
    monkeypatch.setattr(M, "gather_objects", lambda x: [x, 3] if isinstance(x, int) else [x])
    monkeypatch.setattr(M, "cluster_rows", lambda *_, **__: centers)
    told = []
    method = SimpleNamespace(
        config=configure(M.MaskContrastConfig, {"saliency.head": False}), vectors=lambda: iter(()),
        context=SimpleNamespace(classes=3, data=range(4), run=SimpleNamespace(writes=False)),
        tell=lambda labels, objects: told.append(objects),
    )  # fmt: skip
    M.MaskContrast.cluster(method, tmp_path)
    assert told == [3]


@pytest.mark.parametrize("seed", range(6))
def test_whitening_of_few_objects_leaves_their_kinds_apart(seed):
    """Ten vectors of either kind: with all components kept they are equally far from each other."""
    random = torch.Generator().manual_seed(seed)
    kinds = F.normalize(torch.randn(2, 32, generator=random), dim=1).repeat_interleave(10, 0)
    rows = F.normalize(kinds + 0.05 * torch.randn(20, 32, generator=random), dim=1)
    distances = torch.pdist(fit_pca(rows, 32, whiten=True).apply(rows))
    assert float(distances.std()) < 0.02 * float(distances.mean()), "nothing to cluster"
    pca = M.whitened(rows, 32, 20)
    assert len(pca.components) == 2
    labels = kmeans(pca.apply(rows), 2, metric="euclidean", init="kmeans++", restarts=10, seed=seed).labels
    assert len(labels[:10].unique()) == len(labels[10:].unique()) == 1 and labels[0] != labels[10]


def test_components_of_whitening():
    rows = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    for dim, objects, kept in ((32, 400, 6), (4, 400, 4), (4, 40, 4), (4, 39, 3), (4, 2, 1)):
        assert len(M.whitened(rows, dim, objects).components) == kept
    torch.testing.assert_close(M.whitened(rows, 4, 400).apply(rows), fit_pca(rows, 4, whiten=True).apply(rows))


def test_a_photograph_that_a_batch_holds_twice_is_not_its_own_negative():
    random = torch.Generator().manual_seed(0)
    q, mask = torch.randn(3, 4, 2, 2, generator=random), torch.ones(3, 2, 2, dtype=torch.bool)
    p, queue = (F.normalize(torch.randn(n, 4, generator=random), dim=1) for n in (3, 2))
    images = torch.tensor([5, 7, 5])
    e = F.normalize(q, dim=1).permute(0, 2, 3, 1).flatten(0, 2) @ torch.cat((p, queue)).T / 0.5  # (N, B + Q)
    own = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [1, 0, 1, 0, 0]], dtype=torch.bool).repeat_interleave(4, 0)
    slow = (e.logsumexp(1) - e.masked_fill(~own, -torch.inf).logsumexp(1)).mean()
    found = L.object_contrast(q, mask, p, queue, 0.5, images)
    torch.testing.assert_close(found, slow)
    assert found < L.object_contrast(q, mask, p, queue, 0.5)
    apart = L.object_contrast(q, mask, p, queue, 0.5, torch.tensor([5, 7, 2]))
    assert torch.equal(apart, L.object_contrast(q, mask, p, queue, 0.5)), "no photograph twice"
    alone = L.object_contrast(q, mask, p, queue[:0], 0.5, torch.tensor([5, 5, 5]))
    assert alone.item() == 0, "no other photograph"
    swapped = p[[2, 1, 0]][..., None, None].expand(3, 4, 2, 2)
    assert float(L.agreement(swapped, mask, p, images)) == 1 and float(L.agreement(swapped, mask, p)) < 0.5


def test_a_step_asks_which_photographs_its_places_hold(monkeypatch, data, found, tmp_path):
    seen = []
    monkeypatch.setattr(T, "object_contrast", lambda *a: seen.append(a[5]) or L.object_contrast(*a))
    train(data, tmp_path / "run", 2, {"objects": str(found)}, **{"crops.batch": 8})
    assert all(len(images) == 8 and len(images.unique()) < 8 for images in seen) and len(seen) == 2, "six photographs"


@pytest.mark.slow
def test_the_linear_read_out(data, found, tmp_path):
    train(data, tmp_path / "run", 2, {"objects": str(found)}, linear_probe=True)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["labels_read"]["evaluate"]["masks"] == 8 and not any(record["labels_read"]["train"].values())
    probe = mw.load(tmp_path / "run" / "linear_probe" / "model.safetensors")
    assert list(probe.classes.names) == ["ground", "disc", "square"]
    assert probe.predict(next((data / "images").iterdir())).mask.shape == (48, 64)


def test_without_objects_or_photographs(data, tmp_path):
    store = Proposals.begin(tmp_path / "none", "objects", "a test", "none")
    for name in open_folder(data).names:
        store.write(name, LabelMap.from_mask(np.zeros((48, 64), np.uint8)))
    with pytest.raises(MaskwrightError, match="0 of 8 photographs with an object"):
        train(data, tmp_path / "run", 1, {"objects": str(tmp_path / "none")})
    with pytest.raises(MaskwrightError, match="in none of 7 draws"):
        accepted(0, lambda i: (None, [0.0]), lambda: 1, 0.01, 0.99, tries=7)


def test_what_would_give_more_objects_is_named_and_helps(data, tmp_path):
    """Objects of 16 of 3072 pixels, as ids and as soft maps; `objects.least` decides before `views.least`."""
    small, soft = (Proposals.begin(tmp_path / holds, holds, "a test", "none") for holds in ("objects", "soft"))
    mask = np.zeros((48, 64), np.uint8)
    mask[20:24, 30:34] = 1
    for name in open_folder(data).names:
        small.write(name, LabelMap.from_mask(mask))
        values = torch.full((48, 64), 0.1)
        values[:, :30] = 0.4
        soft.write(name, SoftMap(values, torch.ones(48, 64, dtype=torch.bool)))

    def fails(name, inputs, **settings) -> str:
        with pytest.raises(MaskwrightError, match="0 of 8 photographs with an object") as raised:
            train(data, tmp_path / name, 1, {"objects": str(tmp_path / inputs)}, **settings)
        return raised.value.repair.removesuffix(", or give other objects by --input objects=PLACE")

    assert fails("a", "objects") == "lower objects.least"
    settings = {"objects.least": 0.001}
    assert fails("b", "objects", **settings) == "lower views.least"
    train(data, tmp_path / "c", 1, {"objects": str(tmp_path / "objects")}, **settings, **{"views.least": 0.001})
    assert fails("d", "soft") == "change objects.threshold"
    train(data, tmp_path / "e", 1, {"objects": str(tmp_path / "soft")}, **{"objects.threshold": 0.3})
    assert fails("f", "soft", **{"objects.threshold": 0.3, "views.most": 0.4}).startswith("raise views.most")


def test_presets_say_what_the_papers_commands_say():
    paper, small = (configure(M.MaskContrastConfig, {"preset": name}) for name in ("paper", "small"))
    assert (paper.crops.size, paper.crops.batch, paper.contrast.queue, paper.steps) == (224, 128, 256, 40 * 82)
    assert (paper.optimizer.name, paper.optimizer.lr, paper.contrast.momentum) == ("sgd", 0.004, 0.999)
    assert (paper.contrast.temperature, paper.contrast.dim, paper.network.options) == (0.5, 32, "output_stride=8")
    assert (small.crops.batch, small.norms.images, small.optimizer.name) == (8, 64, "adamw")
    assert configure(M.MaskContrastConfig, {"preset": "paper_supervised"}).freeze == 0.47


def test_first_layers_stay_with_their_norms():
    from maskwright.models.backbones.build import build_backbone
    from maskwright.models.networks.build import build_network

    network = build_network("deeplabv3", build_backbone("resnet18", "random"), 3).train()
    assert freeze_first(network, 0.56) == 5  # stem and two stages of two blocks each, of nine
    kept = {n for n, p in network.encoder.named_parameters() if not p.requires_grad}
    assert kept and all("layer3" not in n and "layer4" not in n for n in kept)
    assert {n for n, _ in network.encoder.named_parameters() if "layer3" not in n and "layer4" not in n} == kept
    modes = {n: m.training for n, m in network.encoder.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert all(training == ("layer3" in n or "layer4" in n) for n, training in modes.items())


def test_statistics_of_first_layers_that_stay_are_not_retaken(data, found, tmp_path):
    """Random weights have means of 0; what learns gets those of the photographs."""
    model = train(data, tmp_path / "run", 1, {"objects": str(found)}, freeze=0.5)
    norms = [m for m in model.segmenter.encoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    means = [norm.running_mean for norm in norms]
    assert not means[0].any() and means[-1].any()


def test_read_out():
    """Salient pixels have the nearest centre, all others cluster 0, and a bundle gives it again."""
    torch.manual_seed(0)
    centers = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    part = ObjectClusters(torch.zeros(3), torch.eye(3)[:2], torch.ones(2), centers, 0.5, 2.0)
    e = torch.zeros(2, 3, 2, 4)
    e[0, 0], e[1, 1] = 1, 1
    s = torch.full((2, 1, 2, 4), 0.4)
    s[:, :, 0] = 0.9
    y = part(torch.cat((e, s), 1))
    assert y.argmax(1).tolist() == [[[1] * 4, [0] * 4], [[2] * 4, [0] * 4]]
    assert y[0, 1, 0, 0].item() == pytest.approx(0.4) and not y[:, 0].any()
    assert y[0, 2, 0, 0].item() == pytest.approx(0.4 - (5 - 0) / 2), "squared distances 5 and 0 over the temperature"
    again = build_part(part.spec())
    again.load_state_dict(part.state_dict())
    torch.testing.assert_close(again(torch.cat((e, s), 1)), y)
    assert not object_vectors(e, torch.zeros(2, 2, 4)).any()
    weighted = object_vectors(torch.stack((e[0], e[1]), 0).sum(0, keepdim=True), torch.tensor([[[1.0] * 4, [3.0] * 4]]))
    torch.testing.assert_close(weighted, F.normalize(torch.tensor([[1.0, 1.0, 0.0]]), dim=1))


@pytest.mark.parametrize(("deep", "saliency"), [(0, True), (6, True), (0, False)])
def test_heads_come_back(deep, saliency):
    part = SalientDecoder(LastMap(4, -2), 4, 5, deep, saliency).eval()
    features = [torch.randn(2, 4, 4, 4), torch.randn(2, 6, 2, 2)]
    y = part(features)
    assert y.shape == (2, (deep or 5) + saliency, 4, 4) and y.shape[1] == part.out
    again = build_part(part.spec())
    again.load_state_dict(part.state_dict())
    assert torch.equal(again.eval()(features), y)
    for spec in ({**part.spec(), "dim": 0}, {k: v for k, v in part.spec().items() if k != "deep"}):
        with pytest.raises(MaskwrightError, match="incomplete"):
            build_part(spec)
    with pytest.raises(MaskwrightError):
        build_part({"kind": "ObjectClusters", "width": 3, "dim": 2, "clusters": 2, "threshold": 0.5, "temperature": 0})


def test_more_clusters_than_photographs_are_refused_before_the_training():
    method = object.__new__(M.MaskContrast)
    method.config, method.context = configure(M.MaskContrastConfig, {}), SimpleNamespace(classes=40, data=range(3))
    with pytest.raises(MaskwrightError, match="39 clusters of objects and 3 photographs"):
        method.stages()
