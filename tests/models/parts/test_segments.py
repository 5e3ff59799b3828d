"""Read-outs by segments: prototypes, votes, specs both ways."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maskwright.errors import MaskwrightError
from maskwright.models.parts.heads import CosineClassifier, Sequential
from maskwright.models.parts.segments import NeighbourClassifier, SegmentPrototypes
from maskwright.models.parts.table import build_part, check_loadable
from maskwright.ops.clustering.segments import segments_within


def map_of(seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(2, 4, 6, 7, generator=torch.Generator().manual_seed(seed))


def test_pixels_become_the_unit_means_of_their_segments():
    x = map_of()
    v = F.normalize(x, dim=1)
    found = SegmentPrototypes(3, 5)(x)
    for b, ids in enumerate(segments_within(v, 3, 5)):
        for s in ids.unique():
            mean = F.normalize(v[b][:, ids == s].sum(1), dim=0)
            torch.testing.assert_close(found[b][:, ids == s], mean[:, None].expand(-1, int((ids == s).sum())))
    torch.testing.assert_close(SegmentPrototypes(0, 5)(x), v)
    torch.testing.assert_close(SegmentPrototypes(3, 5)(10 * x), found)
    assert SegmentPrototypes(3, 5)(x[:, :, :1, :1]).shape == (2, 4, 1, 1)


def test_a_vote_of_one_gives_a_segment_of_the_bank_its_own_class():
    """And of two classes that tie the smaller."""
    x = map_of(1)
    part = SegmentPrototypes(2, 3)
    mu, member = part.segments(F.normalize(x, dim=1))
    ids = torch.arange(8)
    vote = NeighbourClassifier(mu.flatten(0, 1), ids, 8, 1, 2, 3)
    expected = (member.argmax(2) + 4 * torch.arange(2)[:, None]).view(2, 6, 7)
    assert torch.equal(vote(x).argmax(1), expected)
    shares = vote(x).softmax(1)
    torch.testing.assert_close(shares.sum(1), torch.ones(2, 6, 7))
    bank = torch.eye(4)
    tie = NeighbourClassifier(bank, torch.tensor([2, 1, 0, 0]), 3, 2, 2, 3)
    assert tie.votes(F.normalize(torch.tensor([1.0, 1, 0, 0]), dim=0)).tolist() == [0, 1, 1]


def test_specs_both_ways():
    bank, ids = F.normalize(torch.randn(5, 4), dim=1), torch.tensor([0, 2, 1, 1, 0])
    for part in (
        Sequential(SegmentPrototypes(3, 5, "centred"), CosineClassifier(torch.randn(3, 4), 0.1)),
        NeighbourClassifier(bank, ids, 3, 2, 3, 5),
    ):
        check_loadable(part)
        twin = build_part(part.spec())
        twin.load_state_dict(part.state_dict())
        torch.testing.assert_close(twin(map_of()), part(map_of()))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="6 neighbours of 5"):
        NeighbourClassifier(torch.eye(5), torch.zeros(5, dtype=torch.int64), 3, 6, 2, 1)
    with pytest.raises(ValueError, match="outside 0 to 2"):
        NeighbourClassifier(torch.eye(5), torch.full((5,), 3), 3, 2, 2, 1)
    with pytest.raises(MaskwrightError, match="cannot be built"):
        build_part({"kind": "SegmentPrototypes", "grid": 1000, "iterations": 1, "layout": "corner"})
