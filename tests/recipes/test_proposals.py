"""A stage that makes proposals: killed in the middle, it goes on; its store tells whose they are."""

from __future__ import annotations

import torch

from maskwright.data.training.labels import LabelMap
from maskwright.data.training.proposals import Proposals
from maskwright.recipes.proposals.making import PROPOSALS, propose


def test_a_stage_goes_on_where_it_was_killed(semi_context):
    data, folder, made = semi_context.data, semi_context.run.stage_folder("propose"), []

    def halves(i: int) -> LabelMap:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(i)
        h, w = data.size(i)
        ids = (torch.arange(h)[:, None] * 2 // h).expand(h, w) + i
        return LabelMap(ids, torch.ones(h, w), torch.ones(h, w, dtype=torch.bool))

    for expected in ([0, 1, 2], [3, 4, 5], [6, 7]):
        made.clear()
        try:
            propose(semi_context, folder, "regions", "halves", halves)
        except KeyboardInterrupt:
            assert expected != [6, 7]
        assert made == expected
    store = Proposals(folder / PROPOSALS)
    assert store.names == data.names and store.read(data.names[5], (48, 64)).ids.unique().tolist() == [5, 6]
    assert (store.says, store.labels_seen) == ("halves", "none"), "random weights saw no labels"
    assert not any(semi_context.ledgers.counts()["train"].values())


def test_proposals_of_classes_are_a_data_set(semi_context):
    def ground(i: int) -> LabelMap:
        return LabelMap.from_mask(torch.zeros(48, 64, dtype=torch.int64))

    folder = semi_context.run.stage_folder("propose")
    propose(semi_context, folder, "classes", "a guess", ground, labels_seen="masks of 3 images")
    from maskwright.data.folders.folder import open_folder

    made = open_folder(folder / PROPOSALS)
    assert made.names == semi_context.data.names and made.classes.names == semi_context.table.names
    assert Proposals(folder / PROPOSALS).labels_seen == "masks of 3 images"
