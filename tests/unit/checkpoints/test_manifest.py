"""The manifest detects any file that changed after it was written, and any change of itself."""

from __future__ import annotations

import hashlib
import json

import pytest

from minimind.checkpoints.manifest import (
    MANIFEST,
    Manifest,
    find_damage,
    fingerprint_file,
    own_files,
    write_atomically,
)
from minimind.errors import CheckpointError

NAMES = [
    "mp_rank_00_model_states.pt",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
    "zero_pp_rank_11_mp_rank_00_model_states.pt",
]


def make_manifest(folder, **more) -> Manifest:
    files = {path.name: fingerprint_file(path) for path in folder.iterdir()}
    return Manifest(
        step=3, stream={"pairs": 6}, identity={"beta": 0.1}, batch={}, sharding={"ranks": 1}, files=files, **more
    )


def test_manifest_is_read_as_it_was_written(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"abc")
    written = make_manifest(tmp_path, listeners={"evaluation": {"best": [0.5, None]}})
    # SHA-256 of "abc": the example in FIPS 180-4.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert written.files == {"a.pt": {"bytes": 3, "sha256": expected}}
    written.write(tmp_path)
    assert Manifest.read(tmp_path) == written
    assert find_damage(tmp_path / "a.pt", written.files["a.pt"]) is None


def write_older(folder, *missing):
    """A manifest as version 0.1.0 wrote it: without some fields, and with `layout` for `sharding`.

    Its hash covers the fields that it has.
    """
    make_manifest(folder).write(folder)
    values = json.loads((folder / MANIFEST).read_text())
    values["layout"] = values.pop("sharding")
    for name in (*missing, "sha256"):
        del values[name]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps({**values, "sha256": digest}))


@pytest.mark.parametrize("missing", [("listeners",), ("listeners", "attention", "unlogged")])
def test_older_manifests_without_newer_fields_are_read(tmp_path, missing):
    write_older(tmp_path, *missing)
    read = Manifest.read(tmp_path)
    assert read.step == 3
    assert (read.listeners, read.attention, read.unlogged) == ({}, "", {})
    assert read.sharding == {"ranks": 1}
    # Their hash is still compared.
    text = (tmp_path / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(text.replace('"step": 3', '"step": 4'))
    with pytest.raises(CheckpointError, match="does not match its own hash"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(b"ab"), "a.pt has 2 of 3 bytes"),
        (lambda path: path.write_bytes(b"abd"), "a.pt has changed since it was written (SHA-256 differs)"),
        (lambda path: path.unlink(), "a.pt is missing"),
        (lambda path: (path.unlink(), path.mkdir(), (path / "x").touch()), "a.pt"),
    ],
)
def test_damage_is_described(tmp_path, change, message):
    path = tmp_path / "a.pt"
    path.write_bytes(b"abc")
    written = fingerprint_file(path)
    change(path)
    assert message in (find_damage(path, written) or "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "missing"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read"),
        ('{"step": 3, "sha256": ""}', "cannot be read"),
    ],
)
def test_broken_manifest_is_an_error(tmp_path, text, message):
    if text is not None:
        (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        Manifest.read(tmp_path)


def test_changed_manifest_is_an_error(tmp_path):
    make_manifest(tmp_path).write(tmp_path)
    values = json.loads((tmp_path / MANIFEST).read_text())
    values["step"] = 4
    (tmp_path / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="does not match its own hash"):
        Manifest.read(tmp_path)


def test_each_rank_hashes_and_stats_only_the_files_that_it_wrote(tmp_path, monkeypatch):
    for name in NAMES:
        (tmp_path / name).touch()
    looked_at = []
    is_file = type(tmp_path).is_file
    monkeypatch.setattr(type(tmp_path), "is_file", lambda path: looked_at.append(path) or is_file(path))
    for rank, names in {0: {NAMES[0], NAMES[1]}, 1: {NAMES[2]}, 2: set(), 11: {NAMES[3]}}.items():
        looked_at.clear()
        assert {path.name for path in own_files(tmp_path, rank)} == names
        assert {path.name for path in looked_at} == names


def test_progress_is_reported_for_each_block_of_a_large_file(tmp_path):
    path, ticks = tmp_path / "large.pt", []
    content = bytes(range(256)) * (3 * 2**12) + b"end"  # 3 MiB and 3 bytes: 4 blocks
    path.write_bytes(content)
    written = fingerprint_file(path, lambda: ticks.append("written"))
    assert written == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert find_damage(path, written, lambda: ticks.append("verified")) is None
    assert ticks == ["written"] * 4 + ["verified"] * 4


def test_failed_atomic_write_keeps_the_old_contents(tmp_path, monkeypatch):
    path = tmp_path / "latest"
    write_atomically(path, "old")

    def fail(descriptor):
        raise OSError("full")

    monkeypatch.setattr("minimind.checkpoints.manifest.os.fsync", fail)
    with pytest.raises(OSError, match="full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    monkeypatch.undo()
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["latest"]
