"""The run's tokenizer: from --tokenizer_path, else that of the start weights, else the demo's for fresh weights."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from minimind import demo
from minimind.config import JobConfig
from minimind.errors import ConfigError, DataError
from minimind.weights.sources import WeightSource


def load_tokenizer(config: JobConfig, source: WeightSource | None) -> PreTrainedTokenizerBase:
    """The tokenizer; `source` is None if the start weights cannot be opened.

    Raises:
        ConfigError: no folder is known, or it does not exist; the file of --chat_template cannot be used.
        DataError: the folder holds no usable tokenizer.
    """
    path: str | Path | None = config.data.tokenizer_path or (_own(source) if source is not None else None)
    if not path and config.model.from_weight == "none":
        path = demo.TOKENIZER_PATH
    if not path:
        raise ConfigError(
            f"{config.model.from_weight} contains no tokenizer; give its folder with --tokenizer_path (MiniMind's is "
            "`model/`)"
        )
    if not Path(path).is_dir():
        raise ConfigError(f"--tokenizer_path {path}: no such folder")
    tokenizer = _read(path, "--tokenizer_path")
    if config.data.chat_template:
        # Saved with the tokenizer, so that the trained model is used with the template it was trained with.
        tokenizer.chat_template = _read_template(Path(config.data.chat_template))
    return tokenizer


def _own(source: WeightSource) -> Path | None:
    """The start weights' tokenizer: in their folder, or in the folder that a run has written beside its `.pth`."""
    if source.tokenizer_path is not None or not source.origin.endswith(".pth"):
        return source.tokenizer_path
    beside = Path(source.origin).with_suffix("")
    return beside if (beside / "tokenizer.json").is_file() else None


def read_vocabulary(folder: Path | None) -> dict[str, int] | None:
    """Token -> id of the tokenizer in a folder of weights; None if the folder has none.

    Raises:
        DataError: there is one, but it is not usable.
    """
    if folder is None or not any(folder.glob("tokenizer*")):
        return None
    return _read(folder, "--reference_weight").get_vocab()


def _read(path: str | Path, flag: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # transformers raises exceptions of many classes for a broken folder.
        raise DataError(f"{path}: not a usable tokenizer folder ({error}); see {flag}") from error


def _read_template(path: Path) -> str:
    try:
        template = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat_template {path}: cannot read the file ({error})") from error
    if not template.strip():
        raise ConfigError(f"--chat_template {path}: the file is empty")
    return template
