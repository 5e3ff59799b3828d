"""The label ledger counts distinct images by kind and purpose."""

from __future__ import annotations

import pickle
import threading

import pytest

from maskwright.data.trust.ledger import KINDS, PURPOSES, Ledger, note_all, set_aside


def test_counts_distinct_images() -> None:
    ledger = Ledger()
    assert ledger.counts() == {p: dict.fromkeys(KINDS, 0) for p in PURPOSES}
    for name in ("a", "b", "a"):
        ledger.note("masks", name)
    with ledger.purpose("evaluate"):
        ledger.note("masks", "a")
        with ledger.purpose("select"):
            ledger.note("tags", "c")
        ledger.note("captions", "d")
    ledger.note("tags", "a")
    counts = ledger.counts()
    assert counts["train"] == {"masks": 2, "tags": 1, "captions": 0}
    assert counts["evaluate"] == {"masks": 1, "tags": 0, "captions": 1}
    assert counts["select"] == {"masks": 0, "tags": 1, "captions": 0}
    assert ledger.current == "train"


def test_names_of_clusters_are_counted_where_there_are_any() -> None:
    ledger = Ledger()
    for name in ("cluster 0", "cluster 1", "cluster 0"):
        ledger.note("names", name)
    assert ledger.counts()["train"] == {"masks": 0, "tags": 0, "captions": 0, "names": 2}
    assert "names" not in ledger.counts()["select"]
    other = Ledger()
    other.merge(pickle.loads(pickle.dumps(ledger)))
    other.load_state_dict(other.state_dict())
    assert other.names("train", "names") == ["cluster 0", "cluster 1"] and "names" in other.state_dict()["train"]


def test_purpose_ends_with_an_exception() -> None:
    ledger = Ledger()
    with pytest.raises(RuntimeError), ledger.purpose("evaluate"):
        raise RuntimeError
    assert ledger.current == "train"


def test_refuses_unknown_words() -> None:
    with pytest.raises(ValueError), Ledger().purpose("peek"):
        pass
    with pytest.raises(ValueError):
        Ledger().note("boxes", "a")


def test_state_merge_and_pickle() -> None:
    one, two = Ledger(), Ledger()
    one.note("masks", "a")
    two.note("masks", "a")
    two.note("masks", "b", "evaluate")
    state = two.state_dict()
    one.merge(two)
    assert one.counts()["train"]["masks"] == 1 and one.counts()["evaluate"]["masks"] == 1
    one.merge(state, prefix="source/")
    assert one.names("train", "masks") == ["a", "source/a"]
    fresh = Ledger()
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state
    with one.purpose("select"):
        copy = pickle.loads(pickle.dumps(one))
    assert copy.state_dict() == one.state_dict() and copy.current == "select"


def test_threads_share_the_main_purpose_unless_they_set_their_own() -> None:
    ledger = Ledger()
    seen: dict[str, str] = {}

    def own() -> None:
        with ledger.purpose("train"):
            seen["own"] = ledger.current

    with ledger.purpose("evaluate"):
        threads = [
            threading.Thread(target=lambda: seen.update(shared=ledger.current)),
            threading.Thread(target=own),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ledger.current == "evaluate"
    assert seen == {"shared": "evaluate", "own": "train"}


def test_labels_set_aside_are_noted_later_for_the_purpose_of_that_time():
    ledger, other = Ledger(), Ledger()
    with set_aside() as notes:
        ledger.note("masks", "a")
        other.note("tags", "b", "select")
        with ledger.purpose("evaluate"):
            ledger.note("masks", "c")
        thread = threading.Thread(target=lambda: ledger.note("masks", "of another thread"))
        thread.start()
        thread.join()
        with pytest.raises(ValueError, match="expected one of"):
            ledger.note("colours", "d")
    assert ledger.names("train", "masks") == ["of another thread"] and not any(other.counts()["select"].values())
    with ledger.purpose("select"):
        note_all(notes)
    assert ledger.names("select", "masks") == ["a"]
    assert ledger.names("evaluate", "masks") == ["c"]
    assert other.names("select", "tags") == ["b"]
    ledger.note("masks", "e")
    assert ledger.names("train", "masks") == ["e", "of another thread"]
