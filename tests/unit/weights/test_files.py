"""Weight files are opened without running code in them, and a damaged file is reported."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from minimind.errors import WeightsError
from minimind.weights.files import TensorFile, open_folder, open_pickled

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b.bias": torch.ones(4, dtype=torch.float16)}


class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, target) -> None:
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


def assert_state(file) -> None:
    assert dict.fromkeys(file) == dict.fromkeys(STATE)
    assert len(file) == 2
    for name, tensor in STATE.items():
        assert file.shape(name) == tuple(tensor.shape)
        assert file[name].dtype == tensor.dtype
        assert torch.equal(file[name], tensor)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip format", "format before torch 1.6"])
def test_a_state_dict_is_read(tmp_path, zipped):
    torch.save(STATE, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    assert_state(open_pickled(tmp_path / "model.pth"))


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_malicious_pickle_does_not_run(tmp_path, kind):
    target, path = tmp_path / "was_here", tmp_path / "model.pth"
    content = {"a.weight": Malicious(target)}
    if kind == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(WeightsError, match=r"model\.pth: not a torch file, or it contains objects other than tensors"):
        open_pickled(path)
    assert not target.exists()
    # Proof that the test can fail: loaded without protection, the pickle does create the file.
    if kind == "torch":
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert target.exists()


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(WeightsError, match=r"nothing\.pth: no such weight file"):
        open_pickled(tmp_path / "nothing.pth")


@pytest.mark.parametrize("left", [0.0, 0.1, 0.5, 0.95])
def test_truncated_file_is_reported(tmp_path, left):
    path = tmp_path / "model.pth"
    torch.save(STATE, path)
    os.truncate(path, int(path.stat().st_size * left))
    with pytest.raises(WeightsError, match=r"model\.pth: "):
        open_pickled(path)


@pytest.mark.parametrize("content", [b"hello", b"PK\x03\x04 not really", b"\x80\x02}q\x00."], ids=str)
def test_file_of_another_kind_is_reported(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.pth: "):
        open_pickled(path)


def test_resume_file_is_refused_with_the_file_to_give_instead(tmp_path):
    path = tmp_path / "full_sft_512_resume.pth"
    torch.save({"model": STATE, "optimizer": {}, "epoch": 0, "step": 3}, path)
    with pytest.raises(WeightsError, match=r"this is a MiniMind resume file .*give the weight file without '_resume'"):
        open_pickled(path)


@pytest.mark.parametrize(
    "content",
    [{}, [torch.ones(2)], torch.ones(2), {"a": torch.ones(2), "step": 3}],
    ids=["empty", "list", "tensor", "a number among tensors"],
)
def test_objects_other_than_a_state_dict_are_refused(tmp_path, content):
    path = tmp_path / "model.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"not a dictionary of tensors; save `model.state_dict\(\)` alone"):
        open_pickled(path)


def sharded(folder, suffix: str) -> None:
    """A folder with one tensor per shard and an index."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for number, (name, tensor) in enumerate(STATE.items(), start=1):
        shard = f"{stem}-0000{number}-of-00002.{suffix}"
        if suffix == "safetensors":
            save_file({name: tensor}, folder / shard)
        else:
            torch.save({name: tensor}, folder / shard)
        weight_map[name] = shard
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_folder_of_one_file_is_read(tmp_path, suffix):
    if suffix == "safetensors":
        save_file(STATE, tmp_path / "model.safetensors")
    else:
        torch.save(STATE, tmp_path / "pytorch_model.bin")
    assert_state(open_folder(tmp_path))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_folder_of_shards_is_read(tmp_path, suffix):
    sharded(tmp_path, suffix)
    assert_state(open_folder(tmp_path))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_missing_shard_is_named(tmp_path, suffix):
    sharded(tmp_path, suffix)
    (shard,) = tmp_path.glob(f"*-00002-of-00002.{suffix}")
    shard.unlink()
    with pytest.raises(WeightsError, match=rf"names missing files: {shard.name}"):
        open_folder(tmp_path)


def test_a_truncated_safetensors_file_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(STATE, path)
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(WeightsError, match=r"model\.safetensors: not a readable safetensors file"):
        open_folder(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}'])
def test_a_broken_index_is_named(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors\.index\.json: not a readable index"):
        open_folder(tmp_path)


def test_folder_without_weights_lists_the_expected_files(tmp_path):
    with pytest.raises(WeightsError, match=r"has no model\.safetensors, no .*index\.json and no pytorch_model\.bin"):
        open_folder(tmp_path)


def test_a_malicious_bin_in_a_folder_does_not_run(tmp_path):
    torch.save({"a.weight": Malicious(tmp_path / "was_here")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="contains objects other than tensors"):
        open_folder(tmp_path)
    assert not (tmp_path / "was_here").exists()


def test_membership_reads_no_tensor(tmp_path):
    """A tensor that cannot be read is still found by name."""

    class Unreadable:
        def get_tensor(self, name):
            raise AssertionError("read")

    file = TensorFile(tmp_path, {"a.weight": (Unreadable(), "a.weight")})
    assert "a.weight" in file
    assert "b.weight" not in file
    with pytest.raises(WeightsError, match=r"'a\.weight' cannot be read \(AssertionError: read\)"):
        file["a.weight"]
    with pytest.raises(WeightsError, match=r"has no tensor 'b\.weight'"):
        file.shape("b.weight")


def test_the_widest_dtype_rounds_nothing(tmp_path):
    mixed = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.ones(2, dtype=torch.float16), "c": torch.arange(2)}
    for names, expected in (
        ("ac", torch.bfloat16),
        ("bc", torch.float16),
        ("abc", torch.float32),
        ("c", torch.float32),
    ):
        tensors = {name: mixed[name] for name in names}
        torch.save(tensors, tmp_path / "pytorch_model.bin")
        assert open_pickled(tmp_path / "pytorch_model.bin").widest() == expected
        save_file(tensors, tmp_path / "model.safetensors")
        assert open_folder(tmp_path).widest() == expected
