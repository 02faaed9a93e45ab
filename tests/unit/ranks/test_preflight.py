"""Hashes of file contents, and the error that lists differences between ranks with their values."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from minimind.errors import LaunchError
from minimind.ranks import preflight
from minimind.ranks.preflight import check_alike, content_hash
from minimind.ranks.world import World


def test_hash_depends_on_the_content_and_not_on_the_path(tmp_path):
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.write_bytes(b"same")
    other.write_bytes(b"same")
    assert content_hash(one) == content_hash(other)
    other.write_bytes(b"else")
    assert content_hash(one) != content_hash(other)
    assert content_hash(tmp_path / "nowhere") == "missing"


def test_hash_of_a_folder_depends_on_file_names_and_contents(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b")
    (tmp_path / "b/config.json").rename(tmp_path / "b/other.json")
    assert content_hash(tmp_path / "a") != content_hash(tmp_path / "b")


@pytest.mark.parametrize("change", ["first", "last", "size", "half"])
def test_hash_of_a_large_file_depends_on_its_size_both_ends_and_halves(change, tmp_path):
    size = 24 << 20
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(size)
    before = content_hash(path)
    with path.open("r+b") as file:
        if change == "size":
            file.truncate(size - 1)
        elif change == "half":  # an incomplete transfer into a file of the full size
            file.seek(size // 2)
            file.write(b"\1" * (size // 2))
        else:
            file.seek(0 if change == "first" else size - 1)
            file.write(b"\1")
    assert content_hash(path) != before


@pytest.fixture
def four_ranks(monkeypatch):
    """Rank 0 of four ranks on two machines. Functions derive the gathered values of the others from its own value."""
    world = World(rank=0, local_rank=0, size=4, device=torch.device("cpu"), hosts=("a", "a", "b", "b"))
    of_others = []

    def gather(world, value):
        return [value, *(change(value) for change in of_others.pop(0))]

    monkeypatch.setattr(preflight, "gather", gather)
    monkeypatch.setattr(preflight, "agree", lambda world, action: None)
    return world, of_others


def same(value):
    return value


def test_different_settings_are_listed_with_values_and_ranks(four_ranks, tmp_path):
    world, others = four_ranks
    old = {"version of transformers": "4.0", "--beta": "0.2"}
    others += [
        [same, lambda facts: {**facts, **old}, lambda facts: {**facts, **old}],
        [lambda _: None, same, lambda _: None],
    ]
    with pytest.raises(LaunchError) as error:
        check_alike(world, {"--beta": 0.1, "--seed": 1}, {}, tmp_path)
    text = str(error.value)
    assert error.value.agreed
    assert "--beta: 0.1 on ranks 0-1 on a, 0.2 on ranks 2-3 on b" in text
    assert "version of transformers: 5." in text
    assert "4.0 on ranks 2-3 on b" in text
    assert "--seed" not in text


def test_file_that_is_missing_on_one_machine_and_file_with_other_content(four_ranks, tmp_path):
    world, others = four_ranks
    data, weights = tmp_path / "pairs.jsonl", tmp_path / "w.pth"
    data.write_text("{}")
    weights.write_text("1")

    def other_machine(own):
        return {"--data_path": (str(data), "missing"), "--from_weight": (own["--from_weight"][0], "content 0")}

    others += [[same] * 3, [lambda _: None, other_machine, lambda _: None]]
    with pytest.raises(LaunchError) as error:
        check_alike(world, {}, {"--data_path": data, "--from_weight": weights}, tmp_path)
    assert f"--data_path {data}: exists for rank 0 on a, but not for rank 2 on b; copy it" in str(error.value)
    assert "content 0 on rank 2 on b" in str(error.value)


def test_run_folder_that_is_not_shared_is_refused(four_ranks, tmp_path, monkeypatch):
    world, others = four_ranks
    monkeypatch.setattr(preflight, "from_main", lambda world, action: action())
    first_ranks = [lambda _: False, lambda _: True, lambda _: False]
    others += [[same] * 3, [lambda _: None, same, lambda _: None], first_ranks, first_ranks]
    with pytest.raises(
        LaunchError, match="rank 2 on b cannot see a file that rank 0 on a has written there; give a folder"
    ):
        check_alike(world, {}, {}, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_wrong_sum_over_the_ranks_is_refused(one_rank, monkeypatch):
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    preflight.check_sum(world)
    with pytest.raises(LaunchError, match="1023 wrong values of 1024"):
        preflight.check_sum(dataclasses.replace(world, size=2))


def test_sum_over_ten_thousand_ranks_is_exact(monkeypatch):
    def all_reduce(of_rank_0):
        total = torch.zeros_like(of_rank_0)
        for rank in range(10_000):
            total += of_rank_0 * (rank + 1)
        return total

    monkeypatch.setattr(preflight, "all_reduce", all_reduce)
    preflight.check_sum(World(rank=0, local_rank=0, size=10_000, device=torch.device("cpu")))
