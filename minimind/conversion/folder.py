"""Writes a folder that `AutoModelForCausalLM.from_pretrained` loads: safetensors, configuration, tokenizer.

weights with MiniMind's names, configuration -> one shard after the other -> folder, complete or not there at all
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from minimind.conversion.tensors import Stored
from minimind.weights.shards import write_shards

# transformers loads a model's class from such a file, which --auto_map 1 writes; it needs this package.
_MODULE = "modeling_minimind"
_CODE = '''"""MiniMind for `from_pretrained(..., trust_remote_code=True)`; needs the package minimind."""

from minimind.model.configuration import MiniMindConfig
from minimind.model.modeling import MiniMindForCausalLM, MiniMindModel

__all__ = ["MiniMindConfig", "MiniMindForCausalLM", "MiniMindModel"]
'''
_AUTO_MAP = {
    "AutoConfig": f"{_MODULE}.MiniMindConfig",
    "AutoModel": f"{_MODULE}.MiniMindModel",
    "AutoModelForCausalLM": f"{_MODULE}.MiniMindForCausalLM",
}
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def with_special_tokens(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the ids of special tokens to those of the tokenizer: other programs end an answer by the configuration's."""
    for name in _SPECIAL:
        value, known = getattr(tokenizer, name, None), getattr(config, name, None)
        # Foreign models may have several tokens that end an answer; a tokenizer names one of them.
        if value is not None and not (isinstance(known, list) and value in known):
            setattr(config, name, value)


def write_config(config: PretrainedConfig, architecture: str, dtype: torch.dtype, folder: Path, auto_map: bool) -> None:
    """Write `config.json` and `generation_config.json`.

    Args:
        architecture: name of the model's class.
        auto_map: also write the code by which `trust_remote_code=True` finds MiniMind's classes.

    Raises:
        OSError: a file cannot be written.
    """
    config.architectures = [architecture]
    config.dtype = dtype
    config.save_pretrained(folder)
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values |= _for_other_programs(values)
    if auto_map:
        values["auto_map"] = _AUTO_MAP
        (folder / f"{_MODULE}.py").write_text(_CODE, encoding="utf-8")
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    GenerationConfig(**{name: getattr(config, name, None) for name in _SPECIAL}).save_pretrained(folder)


def _for_other_programs(values: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a config.json under their names before transformers 5: without them older versions, and programs that
    read the file themselves, take defaults in their place and compute something else."""
    added: dict[str, Any] = {}
    rope = values.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        added["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            added["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    if "num_local_experts" in values and values["model_type"] == "qwen3_moe":
        added["num_experts"] = values["num_local_experts"]
    return added


def write_tensors(
    folder: Path, stored: Mapping[str, Stored], dtype: torch.dtype, read: Callable[[str], Tensor], max_shard_size: str
) -> None:
    """Write the tensors of a model.

    Args:
        stored: the tensors of the files by name.
        read: gives a tensor of the model in this dtype, by its name there.

    Raises:
        OSError, SafetensorError: a file cannot be written.
    """

    def part(name: str) -> Tensor:
        one = stored[name]
        return read(one.source) if one.expert is None else read(one.source)[one.expert]

    write_shards(folder, {name: one.shape for name, one in stored.items()}, dtype, part, max_shard_size)
