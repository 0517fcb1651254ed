from __future__ import annotations

import pickle
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_early_ood.errors import DataError, NonFiniteError, ProbeError
from hf_early_ood.probes import ranks
from hf_early_ood.probes.ranks import RankShare, Share, balanced


@given(costs=st.lists(st.integers(1, 100), max_size=30), count=st.integers(1, 8))
def test_every_batch_is_measured_once_and_the_work_is_balanced(costs, count):
    shares = balanced(costs, count)
    assert len(shares) == count
    assert sorted(index for share in shares for index in share) == list(range(len(costs)))
    sums = [sum(costs[index] for index in share) for share in shares]
    # No rank could be relieved by giving its cheapest batch to another.
    for share, total in zip(shares, sums, strict=True):
        assert not share or total - min(costs[index] for index in share) <= min(sums)


def test_equal_batches_leave_the_remainder_to_the_first_ranks():
    assert [len(share) for share in balanced([1] * 11, 4)] == [3, 3, 3, 2]
    assert [len(share) for share in balanced([1] * 2, 4)] == [1, 1, 0, 0]


def test_one_process_has_all_batches():
    with Share() as share:
        assert 10**9 in share
        assert share.gathered({2: "c", 0: "a", 1: "b"}) == ["a", "b", "c"]
    assert share.seconds >= 0


class Meeting:
    """`torch.distributed` for threads that stand for ranks; what they exchange is pickled, as between processes."""

    def __init__(self, world):
        self.barrier, self.entries = threading.Barrier(world, timeout=10), [b""] * world
        self.local = threading.local()
        self.world, self.meetings = world, [0] * world

    def get_rank(self):
        return self.local.rank

    def get_world_size(self):
        return self.world

    def all_gather_object(self, entries, mine):
        self.entries[self.local.rank] = pickle.dumps(mine)
        self.barrier.wait()
        entries[:] = [pickle.loads(entry) for entry in self.entries]
        self.meetings[self.local.rank] += 1
        self.barrier.wait()


def on_ranks(monkeypatch, work, world=3, batches=5):
    """What ``work(rank, share)`` returns or raises on every rank."""
    meeting, found = Meeting(world), [None] * world
    monkeypatch.setattr(ranks.torch, "distributed", meeting)
    data = [{"input_ids": torch.zeros(2, 3)} for _ in range(batches)]

    def rank(number):
        meeting.local.rank = number
        try:
            with RankShare(data) as share:
                found[number] = work(number, share)
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meeting.meetings == [1] * world
    return found


@pytest.mark.parametrize("batches", [1, 2, 5])
def test_all_ranks_learn_all_results(monkeypatch, batches):
    def work(rank, share):
        return share.gathered({index: (index, rank) for index in range(batches) if index in share})

    found = on_ranks(monkeypatch, work, batches=batches)
    assert found[0] == found[1] == found[2]
    assert [index for index, _ in found[0]] == list(range(batches))


def test_those_that_share_nothing_meet_at_the_end(monkeypatch):
    assert on_ranks(monkeypatch, lambda rank, share: rank) == [0, 1, 2]


@pytest.mark.parametrize("shared", [True, False])
def test_the_first_error_is_that_of_all(monkeypatch, shared):
    def work(rank, share):
        if rank == 1:
            raise NonFiniteError("A loss is not finite.", got="nan")
        if rank == 2:
            raise ProbeError("There is no memory.")
        return share.gathered({}) if shared else None

    found = on_ranks(monkeypatch, work)
    assert [type(error) for error in found] == [NonFiniteError] * 3
    assert {str(error) for error in found} == {"A loss is not finite. Got: nan."}


def test_an_error_that_another_process_may_not_know(monkeypatch):
    class Local(Exception):
        """Cannot be pickled."""

    def work(rank, share):
        if rank == 0:
            raise Local("here")
        return share.gathered({})

    found = on_ranks(monkeypatch, work)
    assert isinstance(found[0], Local)
    assert str(found[1]) == str(found[2]) == "Another rank stopped with Local: here"


def test_what_fails_after_the_meeting_fails_on_all_and_they_do_not_meet_again(monkeypatch):
    def work(rank, share):
        share.gathered({})
        raise DataError("There is no example.")

    assert [str(error) for error in on_ranks(monkeypatch, work)] == ["There is no example."] * 3
