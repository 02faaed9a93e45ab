"""A tokenizer's files reach an export as they are."""

from __future__ import annotations

import json

import pytest

from minimind import demo
from minimind.conversion.tokenizer_files import copy_tokenizer, open_tokenizer, tokenizer_folder
from minimind.errors import ConfigError, DataError


def test_files_are_copied_byte_for_byte(tmp_path):
    copy_tokenizer(demo.TOKENIZER_PATH, tmp_path)
    names = [path.name for path in demo.TOKENIZER_PATH.iterdir()]
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (demo.TOKENIZER_PATH / name).read_bytes()


def test_what_transformers_5_wrote_has_a_class_that_all_versions_know(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "saved")
    (tmp_path / "copy").mkdir()
    copy_tokenizer(tmp_path / "saved", tmp_path / "copy")
    assert json.loads((tmp_path / "copy/tokenizer_config.json").read_text())["tokenizer_class"] == (
        "PreTrainedTokenizerFast"
    )
    again = open_tokenizer(tmp_path / "copy")
    text = "五 horses\n eat <|im_start|> hay"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.chat_template == tokenizer.chat_template


def test_a_folder_that_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a usable tokenizer folder"):
        open_tokenizer(tmp_path)


def test_the_user_s_folder_comes_first(tmp_path):
    assert tokenizer_folder(str(tmp_path), demo.TOKENIZER_PATH, "x") == tmp_path
    assert tokenizer_folder(None, demo.TOKENIZER_PATH, "x") == demo.TOKENIZER_PATH
    with pytest.raises(ConfigError, match=r"x has no tokenizer; .* --tokenizer_path"):
        tokenizer_folder(None, None, "x")
    with pytest.raises(ConfigError, match="no such folder"):
        tokenizer_folder(str(tmp_path / "missing"), None, "x")
