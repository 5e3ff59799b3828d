"""ONNX files beside torch: sizes and bytes to the bit, ids and confidence to rounding, and what is refused."""

from __future__ import annotations

import copy
import json
import math
import time
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from timm.layers import Conv2dSame
from torch import nn

from maskwright.accel import switch
from maskwright.data.masking.classes import ClassTable
from maskwright.errors import MaskwrightError
from maskwright.models import tracing
from maskwright.models.backbones.build import build_backbone
from maskwright.models.networks.build import NETWORKS, build_network
from maskwright.models.networks.vit_heads import LastMap
from maskwright.models.parts.attended_clusters import AttendedClusters, PixelAttention
from maskwright.models.parts.class_vectors import ClassVectors, Scores
from maskwright.models.parts.foreground_clusters import ForegroundClusters
from maskwright.models.parts.heads import (
    ConvDecoder,
    CosineClassifier,
    Identity,
    L2Norm,
    LinearClassifier,
    Projection,
    Sequential,
    Standardize,
    StegoHead,
)
from maskwright.models.parts.hierarchy import Hierarchy, LevelClassifier
from maskwright.models.parts.large_fov import TokenLargeFOV
from maskwright.models.parts.part import Part
from maskwright.models.parts.pretrained_head import PretrainedHead
from maskwright.models.parts.projector import Projector
from maskwright.models.parts.regions import RegionClassifier, RegionEncoder
from maskwright.models.parts.relighting import Relighting, RelitEncoder, WeightedClassifier
from maskwright.models.parts.salient_objects import ObjectClusters, SalientDecoder
from maskwright.models.parts.segments import EmbeddingHead, NeighbourClassifier, SegmentPrototypes
from maskwright.models.parts.sobel import SobelEncoder
from maskwright.models.parts.table import TABLE
from maskwright.models.preprocess import Preprocess
from maskwright.models.provenance import Provenance
from maskwright.models.segmenter import Segmenter
from maskwright.models.towers.beside import ProxyEncoder, RecoScores, TowerBeside
from maskwright.models.towers.groupvit.parts import GroupClassifier, GroupEncoder
from maskwright.models.towers.groupvit.shape import GroupShape
from maskwright.models.towers.groupvit.tower import build_groupvit
from maskwright.models.towers.image import build_clip
from maskwright.models.towers.parts import JointEncoder, VocabularyClassifier, WordHead
from maskwright.models.towers.shape import TowerShape
from maskwright.predict.export import after, before, checking, writing
from maskwright.predict.export.graph import OPSET, Graph
from maskwright.predict.inference import predict_probs
from maskwright.predict.model import Model
from maskwright.predict.tiles import make_plan


def session_of(g: Graph, inputs: list, outputs: list[tuple[str, int]]) -> onnxruntime.InferenceSession:
    graph = helper.make_graph(
        g.nodes, "test", inputs, [helper.make_tensor_value_info(n, t, None) for n, t in outputs],
        initializer=g.initializers,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


# ---------------------------------------------------------------------- before the network

RULES = {
    "short": Preprocess(short_side=64, multiple_of=16),
    "short and long": Preprocess(short_side=96, long_side=120, multiple_of=14),
    "long": Preprocess(long_side=100),
    "own": Preprocess(multiple_of=8),
}
PLAIN = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1))


@pytest.fixture(scope="module")
def sizing() -> dict:
    """For each rule what gives the size of the network's input, with a network that wants multiples of 12."""
    sessions = {}
    for name, rule in RULES.items():
        g = Graph("sizes")
        real = g.to("height", np.float64), g.to("width", np.float64)
        sides = before.input_size(g, before.target_size(g, real, rule), math.lcm(rule.multiple_of, 12))
        for side, output in zip(sides, ("rows", "cols"), strict=True):
            g("Identity", side, output=output)
        ends = [helper.make_tensor_value_info(n, TensorProto.INT64, []) for n in ("height", "width")]
        sessions[name] = session_of(g, ends, [("rows", TensorProto.DOUBLE), ("cols", TensorProto.DOUBLE)])
    return sessions


class Wants:
    """What `make_plan` reads of a segmenter."""

    multiple_of = 12

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess, self.extra = preprocess, {}


@pytest.mark.parametrize("rule", RULES)
@given(size=st.tuples(st.integers(1, 4000), st.integers(1, 4000)))
@example(size=(1, 4000))
@example(size=(4000, 3))
@example(size=(7, 112))
@example(size=(7, 113))
def test_sizes_are_those_of_predict(sizing, rule, size):
    wanted = make_plan(Wants(RULES[rule]), size, tile=0, overlap=0.0, scales=(1.0,)).inputs[0]
    found = sizing[rule].run(None, {"height": np.array(size[0]), "width": np.array(size[1])})
    assert tuple(int(v) for v in found) == wanted


@pytest.fixture(scope="module")
def resizing() -> onnxruntime.InferenceSession:
    """Bytes (n, A, 3) along the first axis to m."""
    g = Graph("resize")
    y = before.resize_first(g, g.to("x", np.int32), g.side("x", 0), "m")
    g.nodes.append(helper.make_node("Identity", [y], ["y"]))
    ends = [
        helper.make_tensor_value_info("x", TensorProto.UINT8, [None, None, 3]),
        helper.make_tensor_value_info("m", TensorProto.INT64, []),
    ]
    return session_of(g, ends, [("y", TensorProto.INT32)])


@given(n=st.integers(1, 300), m=st.integers(1, 300), seed=st.integers(0, 9))
@example(n=1, m=7, seed=0)
@example(n=300, m=1, seed=0)
@example(n=64, m=64, seed=0)
def test_bytes_are_torchs(resizing, n, m, seed):
    x = np.random.default_rng(seed).integers(0, 256, (n, 5, 3), np.uint8)
    image = torch.from_numpy(x).permute(2, 0, 1)[None]  # (1, 3, n, 5), channels last
    wanted = F.interpolate(image, (m, 5), mode="bilinear", antialias=True) if m != n else image
    found = resizing.run(None, {"x": x, "m": np.array(m)})[0]
    assert np.array_equal(found, wanted[0].permute(1, 2, 0).numpy())


def test_the_input_is_what_preprocess_gives():
    g = Graph("before")
    g("Identity", before.network_input(g, "image", PLAIN, 8, None), output="input")
    ends = [helper.make_tensor_value_info("image", TensorProto.UINT8, [None, None, 3])]
    run = session_of(g, ends, [("input", TensorProto.FLOAT)])
    for size in ((33, 70), (8, 8), (3, 200)):
        image = checking.picture(size)
        target = make_plan(Wants8(PLAIN), size, tile=0, overlap=0.0, scales=(1.0,)).inputs[0]
        assert np.array_equal(run.run(None, {"image": image})[0][0], PLAIN.apply(image, target).numpy())


class Wants8(Wants):
    multiple_of = 8


# ---------------------------------------------------------------------- behind it


@pytest.mark.parametrize("classes", [1, 3, 300])
@pytest.mark.parametrize("block", [1, 1 << 21])
def test_ids_and_confidence_are_those_of_interpolated_logits(monkeypatch, classes, block):
    monkeypatch.setattr(after, "BLOCK", block)  # 1: a row at a time
    g = Graph("after")
    after.ids_and_confidence(g, "logits", "image", classes, ("ids", "confidence"))
    ends = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, classes, None, None]),
        helper.make_tensor_value_info("image", TensorProto.UINT8, [None, None, 3]),
    ]
    kind = TensorProto.UINT8 if classes <= 255 else TensorProto.UINT16
    run = session_of(g, ends, [("ids", kind), ("confidence", TensorProto.FLOAT)])
    torch.manual_seed(0)
    for cells, size in (((4, 5), (31, 17)), ((1, 1), (6, 2)), ((9, 8), (5, 20)), ((9, 8), (1, 1))):
        logits = torch.randn(1, classes, *cells) * 3
        probs = F.interpolate(logits, size, mode="bilinear", antialias=True)[0].softmax(0)
        ids, confidence = run.run(None, {"logits": logits.numpy(), "image": np.zeros((*size, 3), np.uint8)})
        assert ids.dtype == (np.uint8 if classes <= 255 else np.uint16) and ids.shape == confidence.shape == size
        np.testing.assert_allclose(confidence, probs.amax(0), atol=2e-6)
        chosen = probs.gather(0, torch.from_numpy(ids.astype(np.int64))[None])[0]
        np.testing.assert_allclose(chosen, probs.amax(0), atol=2e-6)


def test_clusters_become_classes_and_void():
    """The class of the most probable cluster, and what its clusters have together: by a loop over pixels."""
    slots, classes = [2, 0, 3, 0, 1, 3], 3  # 3: void
    g = Graph("after")
    after.ids_and_confidence(g, "logits", "image", classes, ("ids", "confidence"), slots)
    ends = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, len(slots), None, None]),
        helper.make_tensor_value_info("image", TensorProto.UINT8, [None, None, 3]),
    ]
    run = session_of(g, ends, [("ids", TensorProto.UINT8), ("confidence", TensorProto.FLOAT)])
    torch.manual_seed(1)
    logits, size = torch.randn(1, len(slots), 4, 5) * 2, (13, 9)
    ids, confidence = run.run(None, {"logits": logits.numpy(), "image": np.zeros((*size, 3), np.uint8)})
    probs = F.interpolate(logits, size, mode="bilinear", antialias=True)[0].softmax(0)
    found = set()
    for i in range(size[0]):
        for j in range(size[1]):
            p = probs[:, i, j].tolist()
            slot = slots[p.index(max(p))]
            assert ids[i, j] == (255 if slot == classes else slot)
            assert confidence[i, j] == pytest.approx(sum(q for q, s in zip(p, slots) if s == slot), abs=2e-6)
            found.add(int(ids[i, j]))
    assert found == {0, 1, 2, 255}


@pytest.mark.parametrize("n", [1, 5, 6, 7, 20])
def test_pooling_by_products_is_torchs(n):
    x = torch.randn(2, 3, n, n + 2)
    for bins in ((1, 1), (2, 3), (6, 6), (None, 4)):
        torch.testing.assert_close(tracing.AnyPool(bins)(x), F.adaptive_avg_pool2d(x, bins))


@pytest.mark.parametrize("kernel, stride, dilation", [(3, 2, 1), (5, 2, 1), (3, 1, 2), (1, 2, 1), (7, 4, 1)])
def test_fixed_padding_is_timms_where_the_stride_divides(kernel, stride, dilation):
    conv = Conv2dSame(4, 6, kernel, stride, dilation=dilation)
    fixed = tracing.FixedSame(conv)
    for size in ((8, 12), (20, 44)):
        x = torch.randn(2, 4, *size)
        torch.testing.assert_close(fixed(x), conv(x))


def test_padding_is_fixed_only_where_it_is_so_for_all_sizes():
    """A side of 8 n is even three times; behind that its padding depends on n."""
    chain = nn.Sequential(*(Conv2dSame(3, 3, 3, 2) for _ in range(4)))
    before = copy.deepcopy(chain)
    with torch.no_grad():
        tracing.fix_padding(chain, 8)
        assert [type(m) for m in chain] == [*3 * [tracing.FixedSame], Conv2dSame]
        for size in ((8, 16), (24, 40)):
            x = torch.randn(1, 3, *size)
            torch.testing.assert_close(chain(x), before(x))


# ---------------------------------------------------------------------- whole models


class Cells(nn.Module):
    """An encoder of one convolution; no part, for it is never saved."""

    multiple_of = 4

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.patches(x)


def segmenter(encoder, decoder, classifier, classes: int, **sizes) -> Segmenter:
    return Segmenter(
        encoder, decoder, classifier, ClassTable.numbered(classes), Preprocess(**({"short_side": 48} | sizes)),
        Provenance("cells", labels_seen="none"), "kmeans",
    ).eval()  # fmt: skip


def chain() -> Segmenter:
    """Every head without a network of its own, one behind the other, and the cosine classifier of clusters."""
    torch.manual_seed(0)
    parts = [
        Standardize(torch.randn(8), torch.rand(8) + 0.1), L2Norm(), Projection(torch.randn(8), torch.randn(8, 8)),
        StegoHead(8, 8), ConvDecoder(8, 8, 8, depth=1, upsample=1), TokenLargeFOV(8, 8), PretrainedHead(8, 8),
        AttendedClusters(torch.randn(7, 8), 0.5, PixelAttention(8), upsample=2), LinearClassifier(8, 8), Identity(),
    ]  # fmt: skip
    return segmenter(Cells(), Sequential(*parts), CosineClassifier(torch.randn(5, 8), 0.5), 5)


class Maps(Cells):
    """Its map in a list, as of an encoder with several, at a stride of 16."""

    multiple_of = 16

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.patches = nn.Conv2d(3, width, 16, stride=16)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.patches(x)]


def edges() -> Segmenter:
    """InfoSeg's class vectors behind an encoder that sees edges too, as IIC's."""
    encoder = SobelEncoder(Maps(), (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    nn.init.normal_(encoder.mix.weight)
    return segmenter(encoder, ClassVectors(LastMap(8), 8, 8, 5, 6, unit_length=True), Scores(5, 0.5), 5)


def relit() -> Segmenter:
    """DANNet's photographs, and its weights of classes."""
    relighting = Relighting(4)
    nn.init.normal_(relighting.last.weight, std=0.1)
    classifier = WeightedClassifier(LinearClassifier(8, 3), torch.tensor([0.5, 1.0, 2.0]))
    return segmenter(RelitEncoder(relighting, Maps()), LastMap(8), classifier, 3)


def words(attention: str, **more: Any) -> Segmenter:
    """MaskCLIP's tower and vocabulary, with keys that vote."""
    from tests.models.towers.tiny import config  # its package takes seconds to import

    tower = build_clip(TowerShape.of(config(), "tiny").text(), "random")
    encoder = JointEncoder(tower, attention, keys="smooth" in more)
    vectors = F.normalize(torch.randn(4, tower.joint_width), dim=1)
    classifier = VocabularyClassifier(vectors, torch.tensor([1, 1, 2, 0]), 3, scale=10.0, **more)
    return segmenter(encoder, Identity(), classifier, 3, multiple_of=tower.multiple_of)


def unit(rows: int, width: int) -> torch.Tensor:
    """Vectors of unit length."""
    return F.normalize(torch.randn(rows, width), dim=1)


def drawn(part: Any) -> Any:
    """The part with weights so large that places differ; as they begin all are of one group or class."""
    for weight in part.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=2 * weight[0].numel() ** -0.5)
    return part


OWNER = torch.tensor([1, 1, 2, 0])
"""Of four words, the class of each."""


def objects(deep: int) -> Segmenter:
    """MaskContrast's salient objects, by embeddings or by the deepest map, enlarged."""
    decoder = SalientDecoder(LastMap(8), 8, 6, deep)
    nn.init.normal_(decoder.salient.weight)
    width = deep or 6
    clusters = ObjectClusters(torch.randn(width), torch.randn(4, width), torch.rand(4) + 0.5, torch.randn(3, 4), 0.1)
    return segmenter(Maps(), decoder, clusters, 4)


def foreground() -> Segmenter:
    """Leopart's two clusterings, behind SlotCon's projector."""
    decoder = Sequential(LastMap(8), Projector(8, 12, 6))
    centers = torch.randn(5, 6), torch.tensor([1, 2, 1, 0, 2]), 3, torch.randn(4, 6), torch.tensor([0, 1, 1, 0])
    return segmenter(Maps(), decoder, ForegroundClusters(*centers), 3)


def regions() -> Segmenter:
    """ReDO's network of two regions."""
    encoder = RegionEncoder(8, 1)
    return segmenter(encoder, Identity(), RegionClassifier(encoder.out, 2, 0.5, swap=True), 2)


def learned_words() -> Segmenter:
    """MaskCLIP+'s layer and fixed words."""
    return segmenter(Cells(), Identity(), WordHead(LinearClassifier(8, 6), unit(4, 6), OWNER, 3), 3)


def neighbours() -> Segmenter:
    """SegSort's segments and the vote of a bank."""
    vote = NeighbourClassifier(unit(9, 6), torch.arange(9) % 3, 3, 2, 3, 5)
    return segmenter(Cells(), drawn(EmbeddingHead(8, 12, 6)), vote, 3)


def prototypes(grid: int, layout: str) -> Segmenter:
    """HSG's k-means on segments; of grid 0, on pixels."""
    readout = Sequential(SegmentPrototypes(grid, 5, layout), CosineClassifier(torch.randn(3, 6), 0.5))
    return segmenter(Cells(), drawn(EmbeddingHead(8, 12, 6)), readout, 3)


def levels(level: str) -> Segmenter:
    """HSG's classes, which are read of pixels, or one of the levels that a photograph falls into."""
    hierarchy = Hierarchy(8, 4, 2, 2, 16, 1, 0.0, 5)
    readout = Sequential(SegmentPrototypes(0, 5, "centred"), CosineClassifier(torch.randn(3, 8), 0.5))
    part = LevelClassifier(LinearClassifier(8, 8), hierarchy, readout, 3, 5, "centred", level)
    return segmenter(Cells(), Identity(), part, {"segments": 9, "fine": 4, "coarse": 2}.get(level, 3))


def joint(attention: str = "value") -> JointEncoder:
    """A small tower."""
    from tests.models.towers.tiny import config  # its package takes seconds to import

    return JointEncoder(build_clip(TowerShape.of(config(), "tiny").text(), "random"), attention)


def beside(other: bool) -> Segmenter:
    """ReCo's scores of two maps: of two networks, or of the tower alone."""
    tower = joint()
    encoder = TowerBeside(tower, Cells() if other else None, (1, 2, 1), (0, 0.1, 0))
    width = 8 if other else tower.backbone.widths[-1]
    scores = RecoScores(unit(3, width), unit(4, tower.width), OWNER)
    return segmenter(encoder, scores, Scores(3, 0.1), 3, multiple_of=encoder.multiple_of)


def proxy() -> Segmenter:
    """ProxyCLIP: a tower whose last block attends as a second network's map says."""
    tower = joint()
    encoder = ProxyEncoder(tower, Cells(), (1, 2, 1), (0, 0.1, 0), 1.2, 3.0)
    classifier = VocabularyClassifier(unit(4, tower.width), OWNER, 3, scale=10.0)
    return segmenter(encoder, Identity(), classifier, 3, multiple_of=encoder.multiple_of)


def groups(**more: Any) -> Segmenter:
    """GroupViT."""
    shape = GroupShape(image=32, patch=8, width=24, heads=2, depths=(2, 1, 1), groups=(6, 4), embed=16, hidden=32,
                       words=64, layers=2)  # fmt: skip
    encoder = drawn(GroupEncoder(build_groupvit(shape.text(), "random")))
    classifier = GroupClassifier(unit(4, 16), OWNER, 3, 10.0, 4, top=2, enlarge=4, **more)
    return segmenter(encoder, Identity(), classifier, 3, multiple_of=encoder.multiple_of)


HEADS = {
    "salient objects": lambda: objects(0),
    "salient objects, deep": lambda: objects(8),
    "foreground clusters": foreground,
    "regions": regions,
    "learned words": learned_words,
    "neighbours": neighbours,
    "pixels": lambda: prototypes(0, "corner"),
    "segments": lambda: prototypes(3, "centred"),
    "levels, classes": lambda: levels("classes"),
    "levels, segments": lambda: levels("segments"),
    "levels, fine": lambda: levels("fine"),
    "levels, coarse": lambda: levels("coarse"),
    "tower beside": lambda: beside(True),
    "tower alone": lambda: beside(False),
    "proxy": proxy,
    "groups": groups,
    "groups, background": lambda: groups(background=0, threshold=0.9),
    "edges and class vectors": edges,
    "relit": relit,
    "words": lambda: words("value", denoise=0.2, smooth=0.9),
    "words, background": lambda: words("sclip", background=0, threshold=0.4),
}
"""Parts that no network of the table holds and that the chain cannot."""
ENCODERS = {"vit": "test_vit", "cnn": "test_resnet", "deeplabv1": "vgg11", "hrnet": "hrnet_w18_small"}
"""The smallest of each kind, and what single networks are tied to."""
AUXILIARY = {"FCNHead", "DDRNetAux"}
"""Heads for training alone, which no saved model holds."""


def network(name: str, encoder: str = "") -> Segmenter:
    torch.manual_seed(0)
    encoder = encoder or ENCODERS.get(name, ENCODERS.get(NETWORKS[name].encoder, ""))
    net = build_network(name, build_backbone(encoder, "random") if encoder else None, 3)
    return segmenter(net.encoder, net.decoder, net.classifier, 3, multiple_of=net.multiple_of)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_agree(name, tmp_path):
    done = Model(network(name)).export(tmp_path / "m.onnx")
    assert done.largest <= checking.TOLERANCE
    # Untrained networks are sure of nothing: that pixels keep their ids says more of their logits.
    assert max(p.unequal for p in done.parity) <= 1e-3


@pytest.mark.slow
def test_the_backbone_that_comes_without_a_hub_is_exported_soon(tmp_path):
    """Its padding depends on the size; as a formula it kept the tracer for minutes."""
    start = time.process_time()
    done = Model(network("deeplabv3plus", "tf_efficientnet_lite0")).export(tmp_path / "m.onnx")
    assert done.largest <= checking.TOLERANCE and time.process_time() - start < 60


def named() -> Model:
    """The chain's five clusters as two classes and void."""
    return Model(chain()).rename({0: "sky", 1: "road", 2: None, 3: "sky", 4: "road"})


@pytest.mark.slow
def test_named_clusters_agree(tmp_path):
    done = named().export(tmp_path / "m.onnx")
    assert done.largest <= checking.TOLERANCE and max(p.unequal for p in done.parity) <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_other_heads_agree(name, tmp_path):
    torch.manual_seed(0)
    done = Model(HEADS[name]()).export(tmp_path / "m.onnx")
    assert done.largest <= checking.TOLERANCE and max(p.unequal for p in done.parity) <= 1e-3


@pytest.mark.slow
def test_every_part_is_exported_by_these_tests():
    held = [chain(), named().segmenter, *(make() for make in HEADS.values()), *map(network, NETWORKS)]
    kinds = {type(part).__name__ for s in held for part in s.modules() if isinstance(part, Part)}
    assert kinds >= set(TABLE) - AUXILIARY


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The chain's model, and its file."""
    model = Model(chain(), {"labels_read": {"train": {"masks": 0}}, "refine": "crf"})
    return model, model.export(tmp_path_factory.mktemp("export") / "model.onnx")


def test_heads_of_clusters_agree_at_any_size(exported):
    model, done = exported
    assert [p.size for p in done.parity] == [(49, 66), (61, 37), (61, 47)] and done.largest <= 1e-4
    run = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    for size in ((1, 1), (50, 7), (100, 90)):
        image = checking.picture(size)
        ids, confidence = run.run(None, {"image": image})
        found = model.predict(image, refine="none", tile=0)
        assert np.array_equal(ids, found.mask)
        np.testing.assert_allclose(confidence, found.confidence, atol=1e-4)


def test_the_file_says_what_it_is(exported):
    model, done = exported
    assert done.bytes == done.path.stat().st_size
    onnx.checker.check_model(onnx.load(done.path), full_check=True)
    told = {p.key: p.value for p in onnx.load(done.path).metadata_props}
    assert json.loads(told["classes"]) == list(model.classes.names)
    assert json.loads(told["colors"]) == model.classes.colors.tolist()
    assert Preprocess.from_json(told["preprocess"]) == model.segmenter.preprocess
    assert Provenance.from_json(told["provenance"]) == model.segmenter.provenance
    assert json.loads(told["labels_read"]) == {"train": {"masks": 0}} and told["method"] == "kmeans"
    assert any("EXIF" in line for line in json.loads(told["outside"]))
    assert len(done.notices) == 1 and "--refine none" in done.notices[0], "its method refines, the file does not"


def test_a_file_that_differs_is_not_left(exported, tmp_path, monkeypatch):
    model, done = exported
    darker = onnx.load(done.path)
    mean = next(t for t in darker.graph.initializer if t.name.startswith("before/") and list(t.dims) == [3, 1, 1])
    mean.raw_data = (onnx.numpy_helper.to_array(mean) + 20).tobytes()
    monkeypatch.setattr(writing, "build", lambda _: darker)
    (tmp_path / "m.onnx").write_bytes(b"before")
    with pytest.raises(MaskwrightError, match=r"differs from torch by .* not kept"):
        model.export(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1


class Shifted:
    """A session whose confidence is off by so much, and whose ids are the least probable where that is asked."""

    def __init__(self, path, off: float, model: Model | None = None) -> None:
        self.inner = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.off, self.model = off, model

    def run(self, names, given):
        ids, confidence = self.inner.run(names, given)
        if self.model is not None:
            ids = predict_probs(self.model.segmenter, given["image"], tile=0).argmin(0).astype(ids.dtype)
        return ids, confidence + np.float32(self.off)


def test_rounding_is_told_from_error_by_float64(exported, tmp_path, monkeypatch):
    """Where both differ by more than the bar, the file stays if it is as near to float64 as torch is."""
    model, done = exported
    assert done.rounding == "" and all(p.exact is None for p in done.parity)
    (plain, *_) = done.parity
    off = checking.against_float64(model, Shifted(done.path, 0.01), plain)
    assert off.exact == pytest.approx(0.01, rel=1e-3) and 0 < off.rounding < 1e-5
    probs = predict_probs(model.segmenter, checking.picture(plain.size), tile=0)
    worst = checking.against_float64(model, Shifted(done.path, 0.0, model), plain)
    assert worst.exact == pytest.approx((probs.max(0) - probs.min(0)).max(), abs=1e-5)

    monkeypatch.setattr(checking, "TOLERANCE", 0.0)
    stays = model.export(tmp_path / "m.onnx")
    assert max(p.exact for p in stays.parity) <= 2 * max(p.rounding for p in stays.parity)
    assert stays.rounding.startswith("this network rounds much in float32: from itself in float64 the file differs by ")

    darker = onnx.load(done.path)
    mean = next(t for t in darker.graph.initializer if t.name.startswith("before/") and list(t.dims) == [3, 1, 1])
    mean.raw_data = (onnx.numpy_helper.to_array(mean) * np.float32(1.0001)).tobytes()
    monkeypatch.setattr(writing, "build", lambda _: darker)
    with pytest.raises(MaskwrightError, match=r"in float64 it differs by .*, and torch by .* not kept"):
        model.export(tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


def test_what_cannot_be_traced_is_told_in_a_line(tmp_path):
    class Odd(nn.Module):
        multiple_of = 4

        def forward(self, x):
            return x[:, :2] * (x.shape[-1] if float(x.mean()) > 0 else 1)

    model = Model(segmenter(Odd(), None, Identity(), 2))
    with pytest.raises(MaskwrightError, match="cannot be traced") as error:
        model.export(tmp_path / "m.onnx")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_bad_requests(exported, tmp_path, monkeypatch):
    model, _ = exported
    with pytest.raises(MaskwrightError, match="onnx"):
        model.export(tmp_path / "m.pb", format="onyx")
    with pytest.raises(MaskwrightError, match="folder"):
        model.export(tmp_path)
    monkeypatch.setattr(writing, "MAX_BYTES", 1)
    with pytest.raises(MaskwrightError, match="at most 1 for one ONNX file"):
        model.export(tmp_path / "m.onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MaskwrightError, match=r"maskwright\[export\]"):
        model.export(tmp_path / "m.onnx")


def test_training_kernels_are_off_while_a_network_is_traced(monkeypatch):
    """With gradients asked for outside, and parameters that want them; whatever happens, all is as it was behind it."""
    seen = []

    def trace(network, *_, **__):
        wants = any(p.requires_grad for p in network.parameters())
        seen.append((switch.enabled(), torch.is_grad_enabled(), wants, network.training))
        raise RuntimeError("far enough\nmore")

    monkeypatch.setattr(torch.export, "export", trace)
    net = chain().train().requires_grad_(True)
    with torch.enable_grad(), pytest.raises(MaskwrightError, match="far enough"):
        tracing.network_graph(net, 4, None, OPSET)
    assert seen == [(False, False, False, False)]
    assert switch.enabled() and net.training and all(p.requires_grad for p in net.parameters())
