"""A manifest knows of any file that is not as it was written, itself included."""

from __future__ import annotations

import hashlib
import json

import pytest

from minimind.checkpoints.manifest import MANIFEST, Manifest, damage, own_files, record
from minimind.errors import CheckpointError

NAMES = [
    "mp_rank_00_model_states.pt",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
    "zero_pp_rank_11_mp_rank_00_model_states.pt",
]


def manifest(folder) -> Manifest:
    files = {path.name: record(path) for path in folder.iterdir()}
    return Manifest(step=3, stream={"pairs": 6}, identity={"beta": 0.1}, batch={}, layout={"ranks": 1}, files=files)


def test_manifest_comes_back_as_it_was_written(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"abc")
    written = manifest(tmp_path)
    # Of "abc", as the standard's own example has it.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert written.files == {"a.pt": {"bytes": 3, "sha256": expected}}
    written.write(tmp_path)
    assert Manifest.read(tmp_path) == written
    assert damage(tmp_path / "a.pt", written.files["a.pt"]) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.write_bytes(b"ab"), "a.pt has 2 of 3 bytes"),
        (lambda path: path.write_bytes(b"abd"), "a.pt has other contents"),
        (lambda path: path.unlink(), "a.pt is missing"),
        (lambda path: (path.unlink(), path.mkdir(), (path / "x").touch()), "a.pt"),
    ],
)
def test_damage_is_named(tmp_path, change, said):
    path = tmp_path / "a.pt"
    path.write_bytes(b"abc")
    written = record(path)
    change(path)
    assert said in (damage(path, written) or "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "missing"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read"),
        ('{"step": 3, "sha256": ""}', "cannot be read"),
    ],
)
def test_broken_manifests_are_named(tmp_path, text, said):
    if text is not None:
        (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=said):
        Manifest.read(tmp_path)


def test_a_changed_manifest_is_noticed(tmp_path):
    manifest(tmp_path).write(tmp_path)
    values = json.loads((tmp_path / MANIFEST).read_text())
    values["step"] = 4
    (tmp_path / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="not as it was written"):
        Manifest.read(tmp_path)


def test_every_file_is_hashed_and_looked_at_by_the_rank_that_wrote_it(tmp_path, monkeypatch):
    for name in NAMES:
        (tmp_path / name).touch()
    looked_at = []
    is_file = type(tmp_path).is_file
    monkeypatch.setattr(type(tmp_path), "is_file", lambda path: looked_at.append(path) or is_file(path))
    for rank, names in {0: {NAMES[0], NAMES[1]}, 1: {NAMES[2]}, 2: set(), 11: {NAMES[3]}}.items():
        looked_at.clear()
        assert {path.name for path in own_files(tmp_path, rank)} == names
        assert {path.name for path in looked_at} == names


def test_hashing_a_large_file_shows_that_it_gets_on(tmp_path):
    path, ticks = tmp_path / "large.pt", []
    content = bytes(range(256)) * (3 * 2**12) + b"end"  # 3 MiB and a little
    path.write_bytes(content)
    written = record(path, lambda: ticks.append("record"))
    assert written == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert damage(path, written, lambda: ticks.append("damage")) is None
    assert ticks == ["record"] * 4 + ["damage"] * 4
