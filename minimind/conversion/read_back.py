"""Reads written weights back, and compares what their model computes with the model that was exported.

exported weights, rounded -> model -> logits ┐
folder -> from_pretrained -> logits          ┴-> largest difference, or an error
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from minimind.errors import WeightsError
from minimind.weights.construction import model_from_tensors
from minimind.weights.sources import WeightSource

_TOKENS = 64
# Largest difference of logits, relative to the largest logit (at least 1): float32 rounds in another order.
_TOLERANCE = 1e-4


def logits_of_source(source: WeightSource, read: Callable[[str], Tensor]) -> Tensor:
    """Logits (1, T, V) of the exported model in float32, from the rounded weights.

    Args:
        source: the weights, with MiniMind's names.
        read: gives a tensor as it is in the file.
    """
    return probe(model_from_tensors(source.config, {name: read(name).float() for name in source.shapes()}))


def logits_of_folder(folder: Path, *, trust_remote_code: bool = False) -> Tensor:
    """Logits (1, T, V) of the model in a folder in float32, as transformers loads it.

    Raises:
        WeightsError: it cannot be loaded, or tensors are missing or left over.
    """
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
    except Exception as error:
        # transformers raises many types for a folder that it cannot load.
        raise WeightsError(f"{folder}: what was written cannot be loaded ({type(error).__name__}: {error})") from error
    wrong = {kind: sorted(map(str, names)) for kind, names in info.items() if kind.endswith("_keys") and names}
    if wrong:
        raise WeightsError(f"{folder}: what was written does not fit its config.json: {wrong}")
    return probe(model.eval())


@torch.no_grad()
def probe(model: PreTrainedModel) -> Tensor:
    """Logits (1, T, V) of random tokens, at positions that are spread over the whole context of the model."""
    config: PretrainedConfig = model.config
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (1, _TOKENS), generator=generator)
    positions = torch.linspace(0, config.max_position_embeddings - 1, _TOKENS).long()[None]
    # A mask is given, because transformers takes positions with gaps for those of several packed sequences.
    return model(tokens, attention_mask=torch.ones_like(tokens), position_ids=positions).logits.float()


def compare(logits: Tensor, written: Tensor, what: Path) -> float:
    """The largest difference between two models' logits.

    Raises:
        WeightsError: it is no rounding.
    """
    difference = (logits - written).abs().max().item()
    allowed = _TOLERANCE * max(1.0, logits.abs().max().item())
    if not difference <= allowed:
        raise WeightsError(
            f"{what}: the model that was written computes something else: its logits differ by {difference:g} from "
            f"those of the model that was exported, where {allowed:g} is rounding. Nothing was kept"
        )
    return difference
