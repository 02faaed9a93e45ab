"""The tokenizer of exported weights: its files as they are, so that every program reads what its author wrote.

transformers' own way, loading and saving, would write them in the form of its newest version, which older ones and
other programs cannot read.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from minimind.errors import ConfigError, DataError

# Every file that transformers' tokenizers read, but those of single models.
_FILES = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json merges.txt vocab.txt "
    "tokenizer.model spiece.model chat_template.jinja"
).split()
# What transformers 5 writes, and how all versions call it.
_NEW_CLASS, _CLASS = '"TokenizersBackend"', '"PreTrainedTokenizerFast"'


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder.

    Raises:
        DataError: there is none, or it cannot be used.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # transformers raises exceptions of many classes for a broken folder.
        raise DataError(f"{folder}: not a usable tokenizer folder ({error}); see --tokenizer_path") from error


def tokenizer_folder(given: str | None, known: Path | None, origin: str) -> Path:
    """The folder of the tokenizer: the user's, else that of the weights.

    Raises:
        ConfigError: neither is known.
    """
    folder = Path(given) if given else known
    if folder is None:
        raise ConfigError(f"{origin} has no tokenizer; give its folder with --tokenizer_path (MiniMind's is `model/`)")
    if not folder.is_dir():
        raise ConfigError(f"--tokenizer_path {folder}: no such folder")
    return folder


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a tokenizer's files.

    Raises:
        OSError: a file cannot be read or written.
    """
    for name in _FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    config = folder / "tokenizer_config.json"
    if config.is_file():
        text = config.read_text(encoding="utf-8")
        config.write_text(
            text.replace(f'"tokenizer_class": {_NEW_CLASS}', f'"tokenizer_class": {_CLASS}'), encoding="utf-8"
        )
