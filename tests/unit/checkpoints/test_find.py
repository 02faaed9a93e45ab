"""Finding the checkpoint to resume from: `latest` decides, damage is named, the next intact one is taken."""

from __future__ import annotations

import pytest

from minimind.checkpoints.find import (
    checkpoint_name,
    complete_checkpoints,
    find_checkpoint,
    is_checkpoint_name,
    resume_candidates,
)
from minimind.checkpoints.manifest import MANIFEST
from minimind.errors import CheckpointError
from tests.unit.checkpoints.fake_engine import FILES, save

pytestmark = pytest.mark.usefixtures("one_rank")


def make_folders(folder, *names):
    """Folders with a manifest, which is all that listing them needs."""
    for name in names:
        (folder / name).mkdir()
        (folder / name / MANIFEST).touch()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("step00000100", True),
        ("step00000100.damaged", False),
        ("step100", False),
        ("step000000100", False),
        ("latest", False),
    ],
)
def test_checkpoint_names_have_eight_digits(name, expected):
    assert is_checkpoint_name(name) is expected
    assert checkpoint_name(100) == "step00000100"


def test_complete_checkpoints_have_a_manifest_and_are_sorted_by_step(tmp_path):
    make_folders(tmp_path, "step00000010", "step00000009", "step00000002.damaged", "notes")
    (tmp_path / "step00000011").mkdir()
    assert complete_checkpoints(tmp_path) == ["step00000009", "step00000010"]
    assert complete_checkpoints(tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("latest", "expected"),
    [
        (None, ["step00000003", "step00000002", "step00000001"]),
        ("step00000002\n", ["step00000002", "step00000001"]),
        ("step00000009", ["step00000009", "step00000003", "step00000002", "step00000001"]),
        ("\0garbage", ["step00000003", "step00000002", "step00000001"]),
    ],
)
def test_candidates_begin_with_latest_and_go_back_in_steps(latest, expected, tmp_path):
    make_folders(tmp_path, "step00000001", "step00000002", "step00000003")
    if latest is not None:
        (tmp_path / "latest").write_text(latest)
    assert resume_candidates(tmp_path) == expected


def test_no_checkpoint_is_none(tmp_path, world):
    assert find_checkpoint(tmp_path / "missing", world, "error") is None


def test_newest_checkpoint_is_found_with_its_manifest(checkpoints, world):
    save(checkpoints, 1, 2)
    found = find_checkpoint(checkpoints.folder, world, "error")
    assert found.path == checkpoints.folder / "step00000002"
    assert found.manifest.step == 2
    assert found.manifest.stream == {"pairs": 2}
    assert found.manifest.unlogged == {"seconds": 2.5}
    assert set(found.manifest.files) == set(FILES)
    assert found.damaged == {}


def test_latest_decides_and_newer_checkpoints_stay(checkpoints, world):
    save(checkpoints, 1, 2, 3)
    (checkpoints.folder / "latest").write_text("step00000002\n")
    assert find_checkpoint(checkpoints.folder, world, "error").path.name == "step00000002"
    assert (checkpoints.folder / "step00000003" / MANIFEST).is_file()
    (checkpoints.folder / "latest").write_text("\0garbage")
    assert find_checkpoint(checkpoints.folder, world, "error").path.name == "step00000003"


def test_checkpoint_is_found_after_a_kill_between_manifest_and_latest(checkpoints, world):
    save(checkpoints, 1)
    (checkpoints.folder / "latest").unlink()
    assert find_checkpoint(checkpoints.folder, world, "error").path.name == "step00000001"


def test_damage_is_an_error_that_names_the_newest_intact_checkpoint(checkpoints, world):
    save(checkpoints, 1, 2, 3)
    (checkpoints.folder / "step00000003" / FILES[1]).write_bytes(b"torn")
    (checkpoints.folder / "step00000002" / MANIFEST).write_text("{")
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(checkpoints.folder, world, "error")
    text = str(caught.value)
    assert f"step00000003: {FILES[1]} has 4 of" in text
    assert "step00000002: manifest.json cannot be read" in text
    assert "The newest intact checkpoint is step00000001; --on_bad_checkpoint previous resumes from it." in text
    assert caught.value.agreed

    found = find_checkpoint(checkpoints.folder, world, "previous")
    assert found.path.name == "step00000001"
    assert list(found.damaged) == ["step00000003", "step00000002"]
    # Finding changes no file; loading does.
    assert (checkpoints.folder / "latest").read_text() == "step00000003"


def test_every_damaged_file_of_a_checkpoint_is_named(checkpoints, world):
    save(checkpoints, 1)
    (checkpoints.folder / "step00000001" / FILES[0]).write_bytes(b"x")
    (checkpoints.folder / "step00000001" / FILES[1]).unlink()
    with pytest.raises(CheckpointError, match=f"{FILES[0]} has 1 of .*; {FILES[1]} is missing"):
        find_checkpoint(checkpoints.folder, world, "error")


@pytest.mark.parametrize("on_bad", ["error", "previous"])
def test_no_intact_checkpoint_is_an_error(on_bad, checkpoints, world):
    save(checkpoints, 1)
    (checkpoints.folder / "step00000001" / FILES[0]).unlink()
    with pytest.raises(CheckpointError, match=r"is missing(.|\n)*No checkpoint is intact"):
        find_checkpoint(checkpoints.folder, world, on_bad)


def test_missing_folder_that_latest_names_is_an_error(checkpoints, world):
    save(checkpoints, 1)
    (checkpoints.folder / "latest").write_text("step00000009")
    with pytest.raises(CheckpointError, match=r"step00000009: manifest\.json is missing"):
        find_checkpoint(checkpoints.folder, world, "error")
    assert find_checkpoint(checkpoints.folder, world, "previous").path.name == "step00000001"
