"""The batch layout follows the oracle's verdict; flags for packs are refused for padded rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, MistralConfig

from minimind.config import parse_settings
from minimind.data.packs import pack
from minimind.errors import ConfigError
from minimind.model.configuration import MiniMindConfig
from minimind.ranks.world import World
from minimind.training.setup import batch_layout
from minimind.training.setup.batch_layout import choose_layout
from minimind.training.setup.oracle import PACKED, PADDED, REFUSED, Verdict
from tests.parity.steps import preference_pair

pytestmark = pytest.mark.usefixtures("one_rank")
PAIR = preference_pair(3, 2, 2, index=1)

LLAMA = LlamaConfig(num_hidden_layers=1)
WINDOWED = MistralConfig(sliding_window=16, num_hidden_layers=1)


@pytest.fixture
def choose(monkeypatch, tmp_path):
    """The layout that a run chooses, what it prints, and what the oracle was asked."""

    def run(model, *flags, verdict=None, reference=None):
        asked = []

        def judge(policy, pairs, pad_id, obstacle, deterministic):
            asked.append((pairs, pad_id, obstacle, deterministic) if policy != "reference" else obstacle)
            return verdict or (Verdict(layout=PADDED, reason=obstacle) if obstacle else Verdict(layout=PACKED))

        monkeypatch.setattr(batch_layout, "pack", lambda pairs: "packed")
        monkeypatch.setattr(batch_layout, "pad", lambda pairs, pad_id: f"padded with {pad_id}")
        monkeypatch.setattr(batch_layout, "judge", judge)
        monkeypatch.setattr(batch_layout, "probe_pairs", lambda table: table)
        prepared = SimpleNamespace(
            settings=parse_settings([*flags, "--cache_dir", str(tmp_path)]),
            tokenizer=SimpleNamespace(pad_token_id=7),
            source=SimpleNamespace(config=model, origin="folder"),
            policy_config=SimpleNamespace(stage=2),
            reference_config=SimpleNamespace(stage=3),
            reference_source=SimpleNamespace(config=reference, origin="other"),
        )
        printed = []
        policy = SimpleNamespace(world=World(rank=0, local_rank=0, size=1, device=torch.device("cpu")))
        engine = None if reference is None else lambda: "reference"
        layout = choose_layout(prepared, policy, (PAIR,), SimpleNamespace(say=printed.append), engine)
        return layout([None]), printed, asked

    return run


def test_minimind_is_packed_without_the_oracle(choose):
    assert choose(MiniMindConfig(), verdict=Verdict(layout=REFUSED)) == ("packed", [], [])


def test_a_model_that_is_exact_on_packs_is_packed(choose):
    assert choose(LLAMA) == ("packed", [], [((PAIR,), 7, None, True)])


def test_with_dropout_train_mode_is_not_compared(choose):
    assert choose(LLAMA, "--dropout", "1")[2] == [((PAIR,), 7, None, False)]


def test_a_model_that_is_exact_only_padded_is_padded_and_the_run_says_so(choose):
    layout, printed, _ = choose(LLAMA, verdict=Verdict(layout=PADDED, reason="it is so"))
    assert layout == "padded with 7"
    assert printed == ["  rows are padded, not packed: it is so"]


@pytest.mark.parametrize("flags", [("--attention", "sdpa"), ()])
def test_the_oracle_is_told_of_a_known_obstacle(choose, flags):
    layout, printed, asked = choose(WINDOWED, *flags)
    assert layout == "padded with 7"
    assert printed == ["  rows are padded, not packed: it attends over a sliding window of 16 tokens"]
    assert asked == [((PAIR,), 7, "it attends over a sliding window of 16 tokens", True)]


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


@pytest.mark.parametrize("verdict", [Verdict(layout=PACKED), Verdict(layout=PADDED, reason="it is so")])
def test_a_second_start_remembers_the_verdict(choose, verdict):
    first = choose(LLAMA, verdict=verdict)
    second = choose(LLAMA, verdict=Verdict(layout=REFUSED))
    assert second[:2] == first[:2]
    assert (len(first[2]), len(second[2])) == (1, 0)


def test_another_model_is_asked_about_again(choose):
    choose(LLAMA)
    assert len(choose(LlamaConfig(num_hidden_layers=2))[2]) == 1


def test_a_refusal_is_not_remembered(choose):
    """The weights may have been damaged, and are whole the next time."""
    with pytest.raises(ConfigError):
        choose(LLAMA, verdict=Verdict(layout=REFUSED, reason="its log-probs are not finite"))
    assert choose(LLAMA)[0] == "packed"


def test_the_layout_is_the_function_of_the_data_package():
    assert batch_layout.pack is pack


def test_a_reference_of_another_configuration_must_be_exact_too(choose):
    """MiniMind's packs need no oracle; a Llama's do, whichever of the two is the reference."""
    assert choose(MiniMindConfig(), reference=LLAMA) == ("packed", [], [None])
    assert choose(LLAMA, reference=MiniMindConfig()) == ("packed", [], [((PAIR,), 7, None, True)])
    with pytest.raises(ConfigError, match=r"^other: a llama model cannot be the reference here, .*: it is not causal"):
        choose(
            MiniMindConfig(vocab_size=9),
            reference=LlamaConfig(),
            verdict=Verdict(layout=REFUSED, reason="it is not causal"),
        )


def test_a_reference_that_needs_padded_rows_pads_the_policy_s(choose):
    """The policy, judged on packs, is judged once more on padded rows."""
    window = "it attends over a sliding window of 16 tokens"
    layout, printed, asked = choose(LLAMA, reference=WINDOWED)
    assert layout == "padded with 7"
    assert printed == [f"  rows are padded, not packed: {window}"]
    assert asked == [((PAIR,), 7, None, True), window, ((PAIR,), 7, window, True)]
