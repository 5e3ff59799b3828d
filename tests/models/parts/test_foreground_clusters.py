"""Leopart's two clusterings as a classifier: cell by cell, and a part that survives its spec."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from maskwright.errors import MaskwrightError
from maskwright.models.parts.foreground_clusters import ForegroundClusters
from maskwright.models.parts.table import build_part

DRAW = torch.Generator().manual_seed(0)
CENTERS, GATE = torch.randn(7, 5, generator=DRAW), torch.randn(6, 5, generator=DRAW)
CLASS_OF, FOREGROUND = torch.tensor([1, 2, 0, 2, 1, 4, 4]), torch.tensor([1, 0, 1, 1, 0, 0])
X = torch.randn(2, 5, 9, 8, generator=DRAW)


@pytest.mark.parametrize("background", [0, 2])
@pytest.mark.parametrize("gated", [False, True])
def test_the_class_of_each_cell(background, gated):
    """Class 3 has no cluster, and no cell."""
    given = (GATE, FOREGROUND) if gated else (None, None)
    part = ForegroundClusters(CENTERS, CLASS_OF, 5, *given, background)
    found = part(X).argmax(1)
    rows = F.normalize(X, dim=1).permute(0, 2, 3, 1)
    wanted = CLASS_OF[(rows @ F.normalize(CENTERS, dim=1).T).argmax(3)]
    if gated:
        kept = FOREGROUND[(rows @ F.normalize(GATE, dim=1).T).argmax(3)] > 0
        wanted = torch.where(kept, wanted, background)
        assert 0 < int(kept.sum()) < kept.numel()
    assert torch.equal(found, wanted)


def test_a_part_survives_its_spec():
    part = ForegroundClusters(CENTERS, CLASS_OF, 5, GATE, FOREGROUND, 2, 0.3)
    again = build_part(json.loads(json.dumps(part.spec())))
    again.load_state_dict(part.state_dict())
    assert torch.equal(again(X), part(X))
    with pytest.raises(MaskwrightError):
        build_part(part.spec() | {"background": 5})
    with pytest.raises(ValueError, match="none of 4"):
        ForegroundClusters(CENTERS, CLASS_OF, 4)
    with pytest.raises(ValueError, match="a gate"):
        ForegroundClusters(CENTERS, CLASS_OF, 5, GATE[:, :4])
