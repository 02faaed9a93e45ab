"""How rows are read and encoded under a run's flags.

data flags, a source -> shape_options, encoding_options -> what tokenising is given
"""

from __future__ import annotations

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from minimind.config import DataConfig
from minimind.data.columns import NO_VARIABLES
from minimind.data.encoding import EncodingOptions
from minimind.data.left_out import words_of
from minimind.data.shapes import ShapeOptions
from minimind.data.shapes.options import options_of_files
from minimind.data.sources import Source
from minimind.data.template import ChatTemplate
from minimind.errors import ConfigError


def shape_options(config: DataConfig, source: Source) -> ShapeOptions:
    """How the rows of a source are read under these flags.

    Raises:
        DataError: `dataset_info.json` cannot be used.
    """
    return options_of_files(config, source.files)


def encoding_options(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> EncodingOptions:
    """How conversations are encoded under these flags.

    Args:
        tokenizer: its chat template says which variables there are.

    Raises:
        ConfigError: --template_kwargs is not a JSON object of variables that the template reads.
    """
    kwargs: Any = {}
    if config.template_kwargs:
        try:
            kwargs = json.loads(config.template_kwargs)
        except ValueError as error:
            raise ConfigError(f"--template_kwargs: invalid JSON ({error}): {config.template_kwargs}") from error
    if not isinstance(kwargs, dict):
        raise ConfigError(f"--template_kwargs: not a JSON object: {config.template_kwargs}")
    if taken := sorted(NO_VARIABLES.intersection(kwargs)):
        raise ConfigError(f"--template_kwargs: {taken[0]!r} is no variable of a chat template")
    words = words_of(ChatTemplate(tokenizer)) if kwargs else frozenset[str]()
    if unknown := sorted(kwargs.keys() - words):
        raise ConfigError(f"--template_kwargs: the chat template does not read {unknown[0]!r}; see its source")
    return EncodingOptions(
        mask=config.mask,
        empty_think_ratio=config.empty_think_ratio,
        template_kwargs=kwargs,
        last_turn_only=config.last_turn_only,
    )
