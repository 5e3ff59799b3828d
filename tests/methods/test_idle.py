"""Options that others leave without a use are named by every method, and refused where they are set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.conftest import write_tiny_folder
from tests.methods.unsupervised.small import trainer

import maskwright as mw
from maskwright.data.training.labels import LabelMap
from maskwright.data.training.proposals import Proposals
from maskwright.engine.config import Option, configure, idle_options, options, refuse_idle
from maskwright.errors import MaskwrightError

NAMES = sorted(n for n, method in mw.METHODS.items() if hasattr(method.Config, "idle"))
REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("deep_spectral", {"head.train": False}, "head.hidden=64"),
    ("hsg", {}, "readout.k=3"),
    ("hsg", {"levels.which": "regions"}, "levels.fine=3"),
    ("hsg", {"levels.which": "regions"}, "loss.modularity=0.5"),
    ("hsg", {"preset": "paper_regions"}, "levels.start=0.5"),
    ("hsg", {"levels.which": "fine"}, "levels.coarse=2"),
    ("iic", {"heads.over": 0}, "heads.turn=3"),
    ("iic", {"heads.over": 0}, "information.lamb_over=1.5"),
    *(
        (name, {"optimizer.encoder_lr": 0}, "optimizer.layer_decay=0.9")
        for name in (
            "hsg",
            "iic",
            "infoseg",
            "looking_beyond",
            "maskcontrast",
            "picie",
            "segsort",
            "slotcon",
        )
    ),
    ("leopart", {"communities.use": False}, "communities.count=20"),
    ("leopart", {"communities.use": False}, "communities.by=own"),
    ("leopart", {"cbfe.use": False}, "cbfe.oracle_threshold=true"),
    ("leopart", {"cbfe.threshold": 0.4}, "cbfe.cut_min=0.6"),
    ("leopart", {"cbfe.use": False, "foreground.use": False}, "foreground.mass=0.5"),
    ("leopart", {"foreground.by": "spectral"}, "foreground.smallest=2"),
    ("leopart", {"head.queue": 0}, "head.queued=5"),
    ("leopart", {"crops.local": 0}, "crops.local_size=32"),
    ("looking_beyond", {"labels.by": "superpixels"}, "labels.count=9"),
    ("looking_beyond", {"labels.by": "superpixels"}, "features.short_side=64"),
    ("looking_beyond", {"labels.superpixels": 0}, "labels.compactness=5"),
    ("maskcontrast", {"contrast.weight": 0}, "contrast.queue=9"),
    ("maskcontrast", {"saliency.head": False}, "readout.dim=8"),
    ("pass", {"instance": "moco"}, "crops.local=3"),
    ("pass", {"instance": "simsiam"}, "instance.queue=9"),
    ("pass", {"instance": "moco", "attention": False}, "instance.prototypes=9"),
    ("pass", {"p2p": False}, "shape.grid=5"),
    ("pass", {"d2s": ""}, "shape.weight=2"),
    ("pass", {"attention": False}, "attention.epochs=3"),
    ("pass", {"attention": False}, "labels.threshold=0.5"),
    ("pass", {"finetune_epochs": 0}, "finetune.lr=0.5"),
    ("pass", {"instance.queue": 0}, "instance.queue_epoch=1"),
    ("pass", {"crops.local": 0, "attention": False}, "crops.local_size=32"),
    ("picie", {"mdc": True}, "views.recipe=none"),
    ("picie", {"mdc": True}, "views.equivariance=false"),
    ("picie", {}, "mdc_classifier=centers"),
    ("picie", {"views.invariance": False}, "views.recipe=none"),
    ("picie", {"views.equivariance": False}, "views.hflip=0"),
    ("redo", {"restart.below": 0}, "restart.every=3"),
    ("redo", {"recovery": 0}, "rates.recovery=0.1"),
    ("segsort", {}, "segments.iterations=3"),
    ("segsort", {"readout.by": "neighbours"}, "clusters.restarts=3"),
    ("segsort", {"regions.by": "superpixels"}, "regions.threshold=0.5"),
    ("slotcon", {"loss.slots": False}, "loss.share=0.25"),
    ("slotcon", {"loss.slots": False}, "loss.tau_slot=0.1"),
    ("slotcon", {"loss.share": 1}, "loss.tau_slot=0.1"),
    ("slotcon", {"loss.share": 0}, "loss.centring=false"),
    ("slotcon", {"loss.centring": False}, "loss.center=0.5"),
    ("slotcon", {}, "warm=2"),
    ("slotcon", {}, "readout.rows=9"),
    ("slotcon", {"groups.start": "random"}, "clusters.restarts=3"),
    ("stego", {}, "shifts.b_knn=0.3"),
    ("stego", {"auto_shift": False}, "shifts.share_knn=0.3"),
    ("uda_sod", {"pseudo.portion": 0}, "pseudo.growth=3"),
    ("uda_sod", {"pseudo.portion": 0}, "pseudo.skip=0.1"),
    ("stego", {"readout": "probe"}, "clusters.restarts=3"),
    ("stego", {}, "head.probe_lr=0.1"),
)


@pytest.mark.parametrize("name, settings, idle", REFUSED)
def test_what_a_switch_leaves_without_a_use_is_refused(name, settings, idle):
    config, (key, value) = mw.METHODS[name].Config, idle.split("=")
    configure(config, settings)
    with pytest.raises(MaskwrightError, match=rf"^{key}=.* with .*: nothing depends on it") as raised:
        configure(config, settings | {key: value})
    assert "leave it out" in str(raised.value)


GIVEN: tuple[tuple[str, str, str, Any], ...] = (
    ("segsort", "regions", "regions.by", "superpixels"),
    ("segsort", "regions", "regions.most", 9),
    ("hsg", "regions", "regions.threshold", 0.5),
    ("hsg", "regions", "regions.superpixels", 99),
    ("segsort", "", "regions.given", "contours"),
    ("looking_beyond", "labels", "features.short_side", 64),
    ("looking_beyond", "labels", "reduction.dim", 8),
    ("looking_beyond", "labels", "labels.count", 9),
    ("looking_beyond", "labels", "labels.side", 64),
    ("maskcontrast", "objects", "objects.short_side", 64),
    ("maskcontrast", "objects", "objects.graph.color", 0.5),
    ("maskcontrast", "objects", "objects.spectral.refine", False),
    ("maskcontrast", "", "objects.threshold", 0.4),
    ("leopart", "", "foreground.mass", 0.5),
    ("leopart", "saliency", "foreground.smallest", 2),
)
"""Methods, what they are given, and an option that this leaves without a use; the network has no class token."""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Photographs, and their masks as regions and as objects."""
    data = write_tiny_folder(tmp_path_factory.mktemp("data") / "tiny", count=4)
    photographs, found = mw.open_folder(data), {"data": data}
    for holds in ("regions", "objects"):
        found[holds] = data.parent / holds
        store = Proposals.begin(found[holds], holds, "a test", "none")
        for i, name in enumerate(photographs.names):
            store.write(name, LabelMap.from_mask((photographs.mask(i) > 0).astype("uint8")))
    return found


@pytest.mark.parametrize("name, given, key, value", GIVEN)
def test_what_an_input_or_the_network_leaves_without_a_use_is_refused(name, given, key, value, places, tmp_path):
    inputs = {given: str(places["regions" if given == "regions" else "objects"])} if given else None
    with pytest.raises(MaskwrightError, match=rf"^{key}=.* with .*: nothing depends on it.*; leave it out"):
        trainer(name, {})(places["data"], tmp_path / "run", 1, inputs, **{key: value})


def test_an_option_left_at_what_the_preset_says_is_never_refused():
    for name, settings in (("segsort", {"regions.most": 48}), ("looking_beyond", {"preset": "paper"})):
        config = configure(mw.METHODS[name].Config, settings)
        refuse_idle(config, [(("regions", "features", "labels.count"), "a test")])


def switched(o: Option) -> Iterator[Any]:
    """Values of an option that may leave others idle: its choices, the other truth value, 0, none."""
    yield from o.choices or ()
    if o.hint is bool:
        yield from (True, False)
    if o.hint in (int, float) and o.low == 0:
        yield o.hint(0)
    if "tuple" in str(o.hint):
        yield ()


@pytest.mark.parametrize("name", NAMES)
def test_idle_names_are_options_and_a_switch_may_be_set_alone(name):
    """Unless it is itself idle beside what the others are left at."""
    cls = mw.METHODS[name].Config
    known, usual = options(cls), idle_options(configure(cls, {}))
    for o in (o for o in known if o.used and o.name not in usual):
        for value in switched(o):
            try:
                config = configure(cls, {o.name: value})
            except MaskwrightError as error:
                assert "nothing depends" not in str(error)
                continue
            for names, why in config.idle():
                assert why and all(any(k.name == n or k.name.startswith(f"{n}.") for k in known) for n in names)
