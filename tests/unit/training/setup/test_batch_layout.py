"""The batch layout follows the oracle's verdict; flags for packs are refused for padded rows."""

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
from minimind.training.setup.oracle import PACKED, PADDED, REFUSED, Verdict

LLAMA = LlamaConfig(num_hidden_layers=1)
WINDOWED = MistralConfig(sliding_window=16, num_hidden_layers=1)


@pytest.fixture
def choose(monkeypatch):
    """The layout that a run chooses, what it prints, and what the oracle was asked."""

    def run(model, *flags, verdict=None):
        asked = []

        def judge(policy, pairs, pad_id, obstacle, deterministic):
            asked.append((pairs, pad_id, obstacle, deterministic))
            return verdict or (Verdict(layout=PADDED, reason=obstacle) if obstacle else Verdict(layout=PACKED))

        monkeypatch.setattr(batch_layout, "pack", lambda pairs: "packed")
        monkeypatch.setattr(batch_layout, "pad", lambda pairs, pad_id: f"padded with {pad_id}")
        monkeypatch.setattr(batch_layout, "judge", judge)
        monkeypatch.setattr(batch_layout, "probe_pairs", lambda table: table)
        prepared = SimpleNamespace(
            settings=parse_settings(flags),
            tokenizer=SimpleNamespace(pad_token_id=7),
            source=SimpleNamespace(config=model, origin="folder"),
        )
        printed = []
        layout = choose_layout(prepared, None, ("pairs",), SimpleNamespace(say=printed.append))
        return layout([None]), printed, asked

    return run


def test_minimind_is_packed_without_the_oracle(choose):
    assert choose(MiniMindConfig(), verdict=Verdict(layout=REFUSED)) == ("packed", [], [])


def test_a_model_that_is_exact_on_packs_is_packed(choose):
    assert choose(LLAMA) == ("packed", [], [(("pairs",), 7, None, True)])


def test_with_dropout_train_mode_is_not_compared(choose):
    assert choose(LLAMA, "--dropout", "1")[2] == [(("pairs",), 7, None, False)]


def test_a_model_that_is_exact_only_padded_is_padded_and_the_run_says_so(choose):
    layout, printed, _ = choose(LLAMA, verdict=Verdict(layout=PADDED, reason="it is so"))
    assert layout == "padded with 7"
    assert printed == ["  rows are padded, not packed: it is so"]


@pytest.mark.parametrize("flags", [("--attention", "sdpa"), ()])
def test_the_oracle_is_told_of_a_known_obstacle(choose, flags):
    layout, printed, asked = choose(WINDOWED, *flags)
    assert layout == "padded with 7"
    assert printed == ["  rows are padded, not packed: it attends over a sliding window of 16 tokens"]
    assert asked == [(("pairs",), 7, "it attends over a sliding window of 16 tokens", True)]


def test_a_model_that_is_exact_in_neither_layout_is_refused(choose):
    with pytest.raises(
        ConfigError, match=r"^folder: a llama model cannot be trained here, .*: it is not causal"
    ) as caught:
        choose(LLAMA, verdict=Verdict(layout=REFUSED, reason="it is not causal"))
    assert caught.value.agreed


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
