"""Damaged and malicious weight files: they are read whole, or refused with a WeightsError; no code of theirs runs."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes

from minimind.errors import WeightsError
from minimind.model.configuration import MiniMindConfig
from minimind.model.modeling import MiniMindForCausalLM
from minimind.weights.files import open_folder, open_pickled
from minimind.weights.names import minimind_state
from minimind.weights.sources import open_weights, tensors
from tests.faults.fuzzing import damaged, fuzzed, json_values, only_our_errors
from tests.unit.weights.conftest import llama


def torch_bytes(value: object, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def minimind_tensors(**fields) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 11, "num_attention_heads": 2}
    model = MiniMindForCausalLM(MiniMindConfig(**{**sizes, "num_key_value_heads": 1, **fields}))
    return {name: tensor.half().clone() for name, tensor in minimind_state(model.state_dict()).items()}


DENSE = minimind_tensors(generation=3)
EXPERTS = minimind_tensors(generation=2, use_moe=True)
PTH = [torch_bytes(DENSE), torch_bytes(EXPERTS), torch_bytes(DENSE, zipped=False)]
SAFETENSORS = safetensors_bytes(DENSE)
FLAGS: dict[str, object] = {"num_attention_heads": 2}


def read_all(path, flags=FLAGS) -> None:
    """Open weights as a run does, and read every tensor."""
    with only_our_errors():
        source = open_weights(path, flags)
        source.check_fit()
        for name, tensor in tensors(source):
            assert tuple(tensor.shape) == source.shapes()[name]
            tensor.float().sum()


@fuzzed(250)
@given(content=st.sampled_from(PTH).flatmap(damaged))
def test_damaged_pth(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "model.pth"
    path.write_bytes(content)
    read_all(path)


KINDS = [
    torch.zeros(0), torch.tensor(1.0), torch.zeros(2, 3, 4), torch.ones(8).to_sparse(),
    torch.zeros(3, dtype=torch.int8),
    torch.zeros(3, dtype=torch.complex64), torch.empty(10**12, device="meta"), torch.zeros(1).expand(10**11),
    torch.zeros(3).to(torch.float8_e4m3fn), torch.zeros(4, dtype=torch.bool), torch.full((8,), float("nan")),
    None, 3, "text", [1], {"a": torch.ones(1)}, torch.zeros(10**6)[:3], torch.nn.Parameter(torch.zeros(3)),
]  # fmt: skip
NAMES = [
    *DENSE, *EXPERTS, 3, "", "model.layers.99999999.mlp.up_proj.weight", f"model.layers.{'9' * 5000}.x",
    "model.layers.0.mlp.experts.999999999.up_proj.weight", "model.layers.-1.x", "model.layers.0.mlp.gate.weight",
    "model.layers.0.self_attn.q_norm.weight", "model.layers.0.mlp.shared_experts.7.gate_proj.weight", "\ud800",
]  # fmt: skip


@fuzzed(250)
@given(
    state=st.sampled_from((DENSE, EXPERTS)),
    dropped=st.sets(st.sampled_from([*DENSE, *EXPERTS]), max_size=3),
    added=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(range(len(KINDS))), max_size=3),
    shrunk=st.sets(st.sampled_from([*DENSE, *EXPERTS]), max_size=2),
)
def test_pth_of_other_tensors(state, dropped, added, shrunk, tmp_path_factory):
    state = {name: tensor[:0] if name in shrunk else tensor for name, tensor in state.items() if name not in dropped}
    state |= {name: KINDS[kind] for name, kind in added.items()}
    path = tmp_path_factory.mktemp("fuzz") / "model.pth"
    torch.save(state, path)
    read_all(path)


def test_tensor_larger_than_its_file_is_refused(tmp_path):
    for tensor in (torch.zeros(1).expand(10**11), torch.empty(10**12, device="meta"), torch.ones(8).to_sparse()):
        torch.save({"a": tensor}, tmp_path / "model.pth")
        with pytest.raises(WeightsError, match=r"model\.pth: 'a' is not a plain dense tensor"):
            open_pickled(tmp_path / "model.pth")


def test_zip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("model/data.pkl", "w", force_zip64=True) as file:
            for _ in range(512):
                file.write(b"\0" * 2**20)
        archive.writestr("model/version", "3\n")
    assert path.stat().st_size < 2**20
    with only_our_errors(), pytest.raises(WeightsError, match=r"model\.pth: .*compressed"):
        open_pickled(path)


@pytest.mark.parametrize("nested", [10, 10_000])
def test_nested_pickles(nested, tmp_path):
    value: object = torch.ones(2)
    for _ in range(nested):
        value = [value]
    path = tmp_path / "model.pth"
    # Written by hand: the standard pickler cannot recurse so far.
    path.write_bytes(b"\x80\x02}X\x01\x00\x00\x00a" + b"(l" * 0 + b"]" * nested + b"a" * (nested - 1) + b"s.")
    with pytest.raises(WeightsError):
        open_pickled(path)
    path.write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(WeightsError):
        open_pickled(path)


# ---- safetensors and folders ----


def folder_of(parts: dict[str, bytes], parent):
    folder = parent.mktemp("fuzz")
    for name, content in parts.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def llama_parts(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("llama")
    llama(tied=False).save_pretrained(folder)
    return {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}


@pytest.fixture(scope="module")
def minimind_parts(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("minimind")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 11, "num_attention_heads": 2}
    model = MiniMindForCausalLM(MiniMindConfig(generation=3, num_key_value_heads=1, **sizes))
    model.save_pretrained(folder)
    return {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}


@fuzzed(200)
@given(content=damaged(SAFETENSORS))
def test_damaged_safetensors(content, tmp_path_factory):
    folder = folder_of({"model.safetensors": content}, tmp_path_factory)
    with only_our_errors():
        file = open_folder(folder)
        for name in file:
            assert tuple(file[name].shape) == file.shape(name)


HEADERS = st.dictionaries(
    st.sampled_from(("a", "b", "__metadata__", "")),
    json_values()
    | st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(("F32", "BF16", "F8_E4M3", "F8_E8M0", "F4", "U64", "BOOL", "C64", "x")),
            "shape": st.lists(st.sampled_from((0, 1, 2, 4, -1, 2**31, 2**62, 2**64, 1.5)), max_size=3),
            "data_offsets": st.lists(st.sampled_from((0, 4, 8, 16, 2**40, 2**63, -1)), min_size=2, max_size=2),
        }
    ),
    max_size=3,
)


@fuzzed(250)
@given(header=HEADERS, size=st.none() | st.sampled_from((0, 1, 2**20, 2**40, 2**63, 2**64 - 1)), data=st.binary())
def test_safetensors_headers(header, size, data, tmp_path_factory):
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text) if size is None else size) + text + data
    folder = folder_of({"model.safetensors": content}, tmp_path_factory)
    with only_our_errors():
        file = open_folder(folder)
        for name in file:
            assert tuple(file[name].shape) == file.shape(name)


@fuzzed(40)
@given(data=st.data())
def test_damaged_folders(data, llama_parts, minimind_parts, tmp_path_factory):
    parts = dict(data.draw(st.sampled_from((llama_parts, minimind_parts))))
    name = data.draw(st.sampled_from(sorted(parts)))
    parts[name] = data.draw(damaged(parts[name]))
    read_all(folder_of(parts, tmp_path_factory), {})


NUMBERS = st.sampled_from((0, 1, -1, 3, 10**7, 10**9, 10**30, 1.5, float("nan"), None, "8", True, [], {}))


@fuzzed(60)
@given(data=st.data())
def test_configurations_of_other_values(data, llama_parts, minimind_parts, tmp_path_factory):
    parts = dict(data.draw(st.sampled_from((llama_parts, minimind_parts))))
    config = json.loads(parts["config.json"])
    for key in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=2)):
        config[key] = data.draw(NUMBERS | json_values())
    parts["config.json"] = json.dumps(config).encode()
    read_all(folder_of(parts, tmp_path_factory), {})


@pytest.mark.parametrize(
    "index",
    [
        b'{"weight_map": ' + b"[" * 50_000,
        b'{"weight_map": {"a": "../../../etc/passwd"}}',
        b'{"weight_map": {"a": "/etc/passwd"}}',
        b'{"weight_map": {"a": "x\\u0000y"}}',
        b'{"weight_map": {"a": "' + b"x" * 5000 + b'"}}',
        b'{"weight_map": {"a": ""}}',
        b'{"weight_map": {"a": "."}}',
        b'{"weight_map": {"a": "\\ud800"}}',
        b'{"weight_map": {"a": {}, "b": 1}}',
    ],
    ids=range(9),
)
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_malicious_indices(name, index, tmp_path):
    (tmp_path / name).write_bytes(index)
    with only_our_errors(), pytest.raises(WeightsError, match=r"index\.json: "):
        open_folder(tmp_path)


def test_code_in_a_model_folder_does_not_run(llama_parts, tmp_path):
    for name, content in llama_parts.items():
        (tmp_path / name).write_bytes(content)
    config = json.loads(llama_parts["config.json"])
    config["model_type"] = "its_own"
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'was_here')!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(WeightsError, match=r"config\.json"):
        open_weights(tmp_path, {})
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_local_experts", "n_routed_experts"])
def test_configuration_of_a_billion_layers_is_refused_before_tensors_are_made(key, llama_parts, tmp_path):
    config = json.loads(llama_parts["config.json"])
    (tmp_path / "config.json").write_text(json.dumps({**config, "text_config": {key: 10**9}}))
    with only_our_errors(), pytest.raises(WeightsError, match=rf"config\.json: {key} is 1000000000"):
        open_weights(tmp_path, {})


def test_expert_size_keys_are_not_read_as_expert_counts(llama_parts, tmp_path):
    for name, content in llama_parts.items():
        (tmp_path / name).write_bytes(content)
    config = json.loads(llama_parts["config.json"])
    (tmp_path / "config.json").write_text(json.dumps({**config, "shared_expert_intermediate_size": 20_480}))
    open_weights(tmp_path, {}).check_fit()
