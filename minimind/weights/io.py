"""Loads weights into models and writes them to MiniMind's `.pth` files and Hugging Face folders.

    path -> load_weights -> model          state dict -> save_minimind -> .pth
                                           state dict -> save_huggingface -> folder

A reader never sees a partly written file: each is written under a temporary name and renamed when it is complete.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from minimind.durable import whole_file, whole_folder
from minimind.errors import WeightsError
from minimind.model.modeling import MiniMindForCausalLM
from minimind.weights.construction import model_from_tensors, tensor_shapes
from minimind.weights.files import open_pickled
from minimind.weights.names import EMBEDDING, HEAD, minimind_state
from minimind.weights.sources import MiniMindSource, WeightSource


def load_weights(model: MiniMindForCausalLM, path: str | os.PathLike[str]) -> None:
    """Copy a MiniMind `.pth` into a model. If anything does not fit, the model stays unchanged.

    Raises:
        WeightsError: the file is missing or damaged, or keys or shapes do not fit; the message lists all of them.
    """
    source = MiniMindSource(open_pickled(Path(path)), model.config)
    fill(model, source)


def save_weights(model: MiniMindForCausalLM, path: str | os.PathLike[str], dtype: torch.dtype = torch.float16) -> None:
    """Write a model as MiniMind's `.pth`, with MiniMind's tensor names; float16 as MiniMind does by default.

    Raises:
        WeightsError: the file cannot be written; an old file stays as it was.
    """
    save_minimind(model.state_dict(), Path(path), dtype)


@torch.no_grad()
def fill(model: PreTrainedModel, source: WeightSource) -> None:
    """Copy a source into a model that is not sharded; tensors are cast to the dtypes of the model.

    Raises:
        WeightsError: keys or shapes do not fit; the model is unchanged.
    """
    source.check_fit(tensor_shapes(model))
    # keep_vars: the parameters themselves, so that copies change the model.
    state = model.state_dict(keep_vars=True)
    for name in source.shapes():
        state[name].copy_(source.read(name))


def save_minimind(
    state: Mapping[str, Tensor], path: Path, dtype: torch.dtype, check: Callable[[Path], object] = lambda path: None
) -> None:
    """Write a state dict as MiniMind's `.pth`. A tied head is written as well, as MiniMind does.

    Args:
        check: called with the complete file before it takes its name; what it raises keeps the old one.

    Raises:
        WeightsError: the file cannot be written; an old file stays as it was.
    """
    out = {name: tensor.detach().to("cpu", dtype) for name, tensor in state.items()}
    # Casting has made two copies of a tied tensor. torch.save stores one tensor under two names only once.
    if HEAD not in out or state[HEAD].data_ptr() == state[EMBEDDING].data_ptr():
        out[HEAD] = out[EMBEDDING]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            torch.save(minimind_state(out), partial)
            check(partial)
    # torch's zip writer raises a RuntimeError when the disk is full.
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{path}: cannot be written ({error})") from error


def save_huggingface(
    config: PretrainedConfig,
    state: Mapping[str, Tensor],
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
) -> None:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` loads: safetensors, configuration, tokenizer.

    Raises:
        WeightsError: the folder cannot be written; an old folder stays as it was.
    """
    model = model_from_tensors(config, {name: tensor.detach().to("cpu", dtype) for name, tensor in state.items()})
    model.config.dtype = dtype
    try:
        with whole_folder(folder) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    # safetensors raises its own type when the disk is full.
    except (OSError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{folder}: cannot be written ({error})") from error
