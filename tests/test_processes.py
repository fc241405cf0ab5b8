"""Work that processes share: it ends, also where making changes nothing."""

import pytest

from avalanche_vlm import _processes
from avalanche_vlm._processes import free_lock, lock_of, make_together


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """The times that were waited, without waiting."""
    waited = []
    monkeypatch.setattr(_processes.time, "sleep", waited.append)
    return waited


def test_making_that_changes_nothing_ends_with_an_error(tmp_path):
    made = []

    def make(left):
        made.append(list(left))
        return True

    with pytest.raises(RuntimeError, match=r"3 times.*'.*': 0, 1, 2, 3 and 6 more") as caught:
        make_together(lambda: list(range(10)), make, place=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert len(made) == 3


def test_one_piece_that_stays_missing_is_found_among_others():
    left = {"a", "b", "c"}

    def make(missing):
        left.difference_update(missing[:2], {"c"} & left)
        left.add("c")
        return True

    with pytest.raises(RuntimeError, match="not there: 'c'"):
        make_together(lambda: sorted(left), make)


def test_what_is_removed_once_or_now_and_then_is_made_again():
    left, removals = {1, 2, 3}, [[1, 2, 3], [], [2], [3], []]

    def make(missing):
        left.clear()
        left.update(removals.pop(0))
        return True

    make_together(lambda: sorted(left), make)
    assert len(removals) == 3
    left.update((1, 2, 3))
    removals[:] = [[1, 2, 3], [1, 2, 3], [1], [1], [1], []]
    make_together(lambda: sorted(left), make)
    assert not removals


def test_waiting_for_others_is_no_failure(no_waiting):
    """Others hold the locks for long; meanwhile nothing is made here, or one piece at a time."""
    left, rounds = set(range(4)), []

    def make(missing):
        rounds.append(list(missing))
        if len(rounds) % 100:
            return False
        left.pop()
        return True

    make_together(lambda: sorted(left), make)
    assert len(rounds) == 400
    assert len(no_waiting) == 396


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    for lock in (free_lock, lock_of):
        with pytest.raises(OSError, match="a link is in the place of a lock") as caught:
            lock(tmp_path / "lock")
        assert caught.value.filename == str(tmp_path / "lock")
    assert (tmp_path / "mine").read_text() == "mine"
