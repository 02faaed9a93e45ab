"""A model that one can talk to: its weights in memory, its tokenizer, and its conversation.

SOURCE -> open_trained -> model, tokenizer -> Speaker: text -> answer
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from minimind.chat.conversation import Conversation
from minimind.conversion.flags import AUTO, ComputeFlags
from minimind.conversion.rounding import DTYPES
from minimind.conversion.tensors import as_minimind
from minimind.conversion.tokenizer_files import open_tokenizer, tokenizer_folder
from minimind.conversion.trained import ROPE_SCALING, Trained, open_trained
from minimind.errors import ConfigError
from minimind.generation.batch import Answer, generate
from minimind.generation.decoding import Decoding
from minimind.weights.construction import model_from_tensors


def open_model(
    path: Path, given: Mapping[str, Any], flags: ComputeFlags
) -> tuple[Trained, PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in memory, with its tokenizer.

    Args:
        path: weights in any form.
        given: model flags that the user gave.
        flags: tokenizer, dtype and device.

    Raises:
        MiniMindError: weights, tokenizer or device cannot be used.
    """
    where = open_device(flags.device)
    kind = torch.float32 if where.type == "cpu" else torch.bfloat16
    kind = kind if flags.dtype == AUTO else DTYPES[flags.dtype]
    trained = open_trained(path, given)
    weights = as_minimind(trained.weights, yarn=True) if given.get(ROPE_SCALING) else trained.weights
    tokenizer = open_tokenizer(tokenizer_folder(flags.tokenizer_path, trained.tokenizer, str(path)))
    weights.check_fit()
    # Copies: a model must not share memory with a file that an export may replace.
    state = {name: weights.read(name).to(kind, copy=True) for name in weights.shapes()}
    model = model_from_tensors(weights.config, state).to(where)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ConfigError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, and the model {rows}; see --tokenizer_path"
        )
    return trained, model, tokenizer


def open_device(name: str) -> torch.device:
    """A device.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device


class Speaker:
    """One side of a conversation.

    Args:
        name: how the terminal calls it.
        model: the model.
        tokenizer: its tokenizer.
        decoding: how it answers.
        seed: of the first answer; later ones have the next ones.
        conversation: makes its conversation of the room for prompts.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        decoding: Decoding,
        seed: int,
        conversation: Callable[[PreTrainedTokenizerBase, int], Conversation],
    ) -> None:
        self.name, self.tokenizer = name, tokenizer
        self._model, self._decoding, self._seed = model, decoding, seed
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048
        if context <= decoding.max_new_tokens:
            raise ConfigError(f"--max_new_tokens {decoding.max_new_tokens}: {name} has a context of {context} tokens")
        self.conversation = conversation(tokenizer, context - decoding.max_new_tokens)

    def answer(self, text: str, streamer: BaseStreamer | None = None) -> Answer:
        """The answer to a message; `remember` makes both a turn of the conversation."""
        prompt = self.conversation.prompt(text)
        (answer,) = generate(
            self._model, self.tokenizer, [prompt], self._decoding, seeds=[self._seed], streamer=streamer
        )
        return answer

    def remember(self, text: str, answer: Answer) -> None:
        """Go on behind a message and its answer."""
        self._seed += 1
        self.conversation.add(text, answer.text)
