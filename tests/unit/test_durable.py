"""Files that survive a power cut and a full disk: everything is flushed or undone, and damage is found."""

from __future__ import annotations

import json
import os
import resource
import zlib

import pytest

from minimind.durable import (
    append_whole,
    checksum,
    keep_steps,
    step_lines,
    sync_file,
    sync_folder,
    sync_tree,
    whole_file,
    whole_folder,
)


@pytest.fixture
def flushed(monkeypatch) -> list[str]:
    """Names of the files and folders that are flushed."""
    names: list[str] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        names.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return names


def test_a_tree_is_flushed_with_all_files_and_folders(tmp_path, flushed):
    folder = tmp_path / "top"
    (folder / "inner").mkdir(parents=True)
    for name in ("a", "inner/b"):
        (folder / name).write_bytes(b"x")
    sync_tree(folder)
    assert sorted(flushed) == ["a", "b", "inner", "top"]
    assert flushed[-1] == "top"


def test_a_file_and_a_folder(tmp_path, flushed):
    path = tmp_path / "a"
    path.write_bytes(b"x")
    sync_file(path)
    sync_folder(tmp_path)
    assert flushed == ["a", tmp_path.name]


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, flushed):
    path = tmp_path / "weights.pth"
    for contents in ("old", "new"):
        with whole_file(path) as partial:
            partial.write_text(contents)
        assert path.read_text() == contents
        assert flushed[-2:] == ["weights.pth.partial", tmp_path.name]
    with pytest.raises(FileNotFoundError), whole_file(path):
        (tmp_path / "missing").read_text()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_as_a_whole(tmp_path, flushed):
    folder = tmp_path / "out/weights"
    for contents in ("old", "new"):
        with whole_folder(folder) as partial:
            (partial / contents).write_text(contents)
            assert not (folder / contents).exists()
        assert [path.name for path in folder.iterdir()] == [contents]
        assert flushed[-1] == "out"
    assert [path.name for path in folder.parent.iterdir()] == ["weights"]


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_could_not_be_written_leaves_the_old_one(there, tmp_path):
    folder = tmp_path / "weights"
    if there:
        folder.mkdir()
        (folder / "old").touch()

    def write():
        with whole_folder(folder) as partial:
            (partial / "new").touch()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert [path.name for path in tmp_path.rglob("*")] == (["weights", "old"] if there else [])


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(OSError, match="missing"):
        sync_file(tmp_path / "missing")


def test_a_file_system_that_cannot_flush_folders_is_no_error(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError("not supported")

    monkeypatch.setattr(os, "fsync", refuse)
    sync_folder(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 3])
def test_checksum_of_any_size(tmp_path, size):
    content = bytes(index % 251 for index in range(size))
    (tmp_path / "a").write_bytes(content)
    assert checksum(tmp_path / "a") == zlib.crc32(content)


def test_data_is_appended_completely_or_not_at_all(tmp_path):
    path = tmp_path / "a"
    append_whole(path, b"a\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            append_whole(path, b"b" * 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    append_whole(path, b"c\n")
    assert path.read_bytes() == b"a\nc\n"


RECORDS = [json.dumps({"step": step, "answer": "好\u2028"}, ensure_ascii=False).encode() for step in (0, 2, 3)]


@pytest.mark.parametrize("size", [0, 1, len(RECORDS[0]) // 2, *range(len(RECORDS[0]) - 8, len(RECORDS[0]))])
def test_a_record_that_was_cut_off_is_left_out_also_within_a_character(size, tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b"\n".join([*RECORDS, b"[]", b'{"no": 1}', RECORDS[0][:size]]))
    assert [(line, entry["step"]) for line, entry in step_lines(path)] == list(zip(RECORDS, (0, 2, 3), strict=True))
    keep_steps(path, 2)
    assert path.read_bytes() == RECORDS[0] + b"\n" + RECORDS[1] + b"\n"


@pytest.mark.parametrize("damage", [b"\0" * 6 + RECORDS[0][9:], RECORDS[0][:-4], b"\xff\xfe", b"\0" * 40, b"[]"])
def test_a_damaged_record_costs_its_line_which_is_said(damage, tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b"\n".join([RECORDS[0], damage, RECORDS[1], RECORDS[2], RECORDS[0][:9]]))
    assert [entry["step"] for _, entry in step_lines(path)] == [0, 2, 3]
    assert keep_steps(path, 2) == [f"{path}: 1 damaged line removed"]
    assert path.read_bytes() == RECORDS[0] + b"\n" + RECORDS[1] + b"\n"
    assert keep_steps(path, 2) == []


def test_records_that_all_stay_are_not_written_again(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(RECORDS[0] + b"\n")
    before = path.stat()
    keep_steps(path, 0)
    assert os.path.samestat(before, path.stat())
    with pytest.raises(FileNotFoundError):
        keep_steps(tmp_path / "missing", 0)
