"""Weights into models and out to files: MiniMind's `.pth` and Hugging Face folders, written whole or not at all.

path -> load_weights -> model          state dict -> save_minimind -> .pth
                                       state dict -> save_huggingface -> folder
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from minimind.errors import WeightsError
from minimind.model.modeling import MiniMindForCausalLM
from minimind.weights.empty import plain_model, tensor_shapes
from minimind.weights.files import open_pickled
from minimind.weights.names import EMBEDDING, HEAD, minimind_state
from minimind.weights.sources import MiniMindSource, WeightSource


def load_weights(model: MiniMindForCausalLM, path: str | os.PathLike[str]) -> None:
    """Fill a MiniMind model from MiniMind's `.pth`, every tensor or none.

    Raises:
        WeightsError: the file is missing or damaged, or a key or shape does not fit; all of them are listed.
    """
    source = MiniMindSource(open_pickled(Path(path)), model.config)
    fill(model, source)


def save_weights(model: MiniMindForCausalLM, path: str | os.PathLike[str], dtype: torch.dtype = torch.float16) -> None:
    """Write a MiniMind model as MiniMind's `.pth`: its names, float16 by default."""
    save_minimind(model.state_dict(), Path(path), dtype)


@torch.no_grad()
def fill(model: PreTrainedModel, source: WeightSource) -> None:
    """Copy a source into a model that is whole on this process, in the model's dtypes."""
    source.check_fit(tensor_shapes(model))
    state = model.state_dict(keep_vars=True)
    for name in source.shapes():
        state[name].copy_(source.read(name))


def save_minimind(state: Mapping[str, Tensor], path: Path, dtype: torch.dtype) -> None:
    """Write a `.pth` of MiniMind's kind; the head is written even where it is tied, as MiniMind does."""
    out = {name: tensor.detach().to("cpu", dtype) for name, tensor in state.items()}
    if HEAD not in out or state[HEAD].data_ptr() == state[EMBEDDING].data_ptr():
        out[HEAD] = out[EMBEDDING]
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(minimind_state(out), partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        # torch's zip writer turns a full disk into a RuntimeError.
        raise WeightsError(f"{path}: cannot be written ({error})") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def save_huggingface(
    config: PretrainedConfig,
    state: Mapping[str, Tensor],
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
) -> None:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` loads: safetensors, configuration, tokenizer."""
    model = plain_model(config, {name: tensor.detach().to("cpu", dtype) for name, tensor in state.items()})
    model.config.dtype = dtype
    partial = folder.with_name(folder.name + ".partial")
    old = folder.with_name(folder.name + ".old")
    try:
        for left_over in (partial, old):
            shutil.rmtree(left_over, ignore_errors=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise WeightsError(f"{folder}: cannot be written ({error})") from error
