"""An exported folder as a GGUF file, the format of llama.cpp, by its `gguf` package.

config.json, tokenizer.json, tensors -> write_gguf -> one float32 file
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import torch
from torch import Tensor

from minimind.weights.files import TensorFile, open_folder

_ARCHITECTURES = {"llama": "LLAMA", "qwen3": "QWEN3", "qwen3_moe": "QWEN3MOE"}


def write_gguf(folder: Path, path: Path) -> None:
    """Write a folder of Llama, Qwen3 or Qwen3-MoE as GGUF."""
    config = json.loads((folder / "config.json").read_text())
    name = _ARCHITECTURES[config["model_type"]]
    architecture = getattr(gguf.MODEL_ARCH, name)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    _write_sizes(writer, config)
    _write_tokenizer(writer, folder, config)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for full, tensor in _tensors(open_folder(folder), config):
        writer.add_tensor(names.get_name(full, try_suffixes=(".weight",)), tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_sizes(writer: gguf.GGUFWriter, config: dict) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if "num_experts" in config:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def _write_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict) -> None:
    """A byte-level BPE tokenizer with GPT-2's pattern, as that of the demo."""
    values = json.loads((folder / "tokenizer.json").read_text())
    special = {token["id"] for token in values["added_tokens"] if token["special"]}
    tokens = {index: token for token, index in values["model"]["vocab"].items()}
    tokens |= {token["id"]: token["content"] for token in values["added_tokens"]}
    kinds = [gguf.TokenType.CONTROL if index in special else gguf.TokenType.NORMAL for index in sorted(tokens)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([tokens[index] for index in sorted(tokens)])
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in values["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def _tensors(file: TensorFile, config: dict) -> list[tuple[str, Tensor]]:
    """Tensors as llama.cpp has them: experts stacked; Llama's channels of a rotated pair side by side."""
    found, stacks = [], {}
    for name, tensor in file.items():
        if ".experts." in name:
            layer, _, rest = name.partition(".experts.")
            index, part, _ = rest.split(".")
            stacks.setdefault(f"{layer}.experts.{part}.weight", {})[int(index)] = tensor
            continue
        if config["model_type"] == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            halves = tensor.view(-1, 2, config["head_dim"] // 2, tensor.shape[1])
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        found.append((name, tensor))
    return found + [(name, torch.stack([parts[i] for i in sorted(parts)])) for name, parts in stacks.items()]
