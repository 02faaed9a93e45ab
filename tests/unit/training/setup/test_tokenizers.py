"""The tokenizer of a run: which folder is taken, and folders that cannot be used."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from minimind import demo
from minimind.config import parse_settings
from minimind.errors import ConfigError, DataError
from minimind.training.setup.tokenizers import load_tokenizer


def load(*flags, source=None):
    return load_tokenizer(parse_settings(flags).config, source)


def test_the_flag_wins_over_the_weights_folder(tmp_path):
    source = SimpleNamespace(tokenizer_path=tmp_path)
    assert len(load("--tokenizer_path", str(demo.TOKENIZER_PATH), source=source)) > 100


def test_the_weights_folder_is_the_default():
    assert len(load(source=SimpleNamespace(tokenizer_path=demo.TOKENIZER_PATH))) > 100


def test_fresh_weights_take_the_demo_s():
    assert (
        len(load("--from_weight", "none", source=SimpleNamespace(tokenizer_path=None, origin="random weights"))) > 100
    )


def test_without_any_folder_the_flag_is_asked_for():
    with pytest.raises(ConfigError, match="contains no tokenizer; give its folder with --tokenizer_path"):
        load(source=SimpleNamespace(tokenizer_path=None, origin="pretrain_512.pth"))


def test_a_pth_of_a_run_has_the_tokenizer_of_the_folder_beside_it(tmp_path):
    shutil.copytree(demo.TOKENIZER_PATH, tmp_path / "pretrain_512")
    source = SimpleNamespace(tokenizer_path=None, origin=str(tmp_path / "pretrain_512.pth"))
    assert load(source=source).name_or_path == str(tmp_path / "pretrain_512")


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        load("--tokenizer_path", str(tmp_path / "x"))


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(DataError, match="not a usable tokenizer folder"):
        load("--tokenizer_path", str(tmp_path))


def test_a_template_file_replaces_the_tokenizer_s_own(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages[0].content }}，好", encoding="utf-8")
    flags = ("--tokenizer_path", str(demo.TOKENIZER_PATH))
    tokenizer = load(*flags, "--chat_template", str(path))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi，好"
    assert load(*flags).chat_template != tokenizer.chat_template


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot read the file"), (b"\xff\xfe\x00", "cannot read the file"), (b" \n", "the file is empty")],
    ids=["missing", "not UTF-8", "empty"],
)
def test_a_template_file_that_cannot_be_used(tmp_path, content, problem):
    path = tmp_path / "chat.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"--chat_template .*chat.jinja: {problem}"):
        load("--tokenizer_path", str(demo.TOKENIZER_PATH), "--chat_template", str(path))
