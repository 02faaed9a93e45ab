"""The batch layout: packed if the model agrees with itself on packs, else padded; flags for packs are refused then."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import LlamaConfig, MistralConfig

from minimind.config import parse_settings
from minimind.data.packs import pack
from minimind.errors import ConfigError
from minimind.model.configuration import MiniMindConfig
from minimind.training.setup import batch_layout
from minimind.training.setup.batch_layout import choose_layout

WINDOWED = MistralConfig(sliding_window=16, num_hidden_layers=1)


@pytest.fixture
def choose(monkeypatch):
    """The layout that a run chooses, and what it prints; `agrees` is the verdict of the comparison at the start."""

    def run(model, *flags, agrees=True):
        monkeypatch.setattr(batch_layout, "pack", lambda pairs: "packed")
        monkeypatch.setattr(batch_layout, "pad", lambda pairs, pad_id: f"padded with {pad_id}")
        monkeypatch.setattr(batch_layout, "layouts_agree", lambda *_: agrees)
        prepared = SimpleNamespace(
            settings=parse_settings(flags),
            tokenizer=SimpleNamespace(pad_token_id=7),
            source=SimpleNamespace(config=model),
        )
        printed = []
        layout = choose_layout(prepared, None, [None], SimpleNamespace(say=printed.append))
        return layout([None]), printed

    return run


def test_minimind_is_packed_without_a_comparison(choose):
    assert choose(MiniMindConfig(), agrees=False) == ("packed", [])


def test_a_model_that_agrees_is_packed(choose):
    assert choose(LlamaConfig(num_hidden_layers=1)) == ("packed", [])


def test_a_model_that_does_not_agree_is_padded_and_the_run_says_so(choose):
    layout, printed = choose(LlamaConfig(num_hidden_layers=1), agrees=False)
    assert layout == "padded with 7"
    assert printed == [
        "  rows are padded, not packed: its log-probs of a pack differ from those of the same rows padded"
    ]


@pytest.mark.parametrize("flags", [("--attention", "sdpa"), ()])
def test_a_known_obstacle_is_printed(choose, flags):
    layout, printed = choose(WINDOWED, *flags)
    assert layout == "padded with 7"
    assert printed == ["  rows are padded, not packed: it attends over a sliding window of 16 tokens"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--attention", "flex"), r"^--attention flex is for packs, and rows must be padded .*window"),
        (("--micro_batch_tokens", "900"), r"^--micro_batch_tokens counts tokens of packs, and rows must be padded"),
    ],
)
def test_flags_for_packs_are_refused_for_padded_rows(choose, flags, message):
    with pytest.raises(ConfigError, match=message) as caught:
        choose(WINDOWED, *flags)
    assert caught.value.agreed


def test_the_layout_is_the_function_of_the_data_package():
    assert batch_layout.pack is pack
