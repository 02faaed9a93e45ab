"""Messages before the first step: a warning if memory may not suffice, and none if it does."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, MambaConfig, MixtralConfig

from minimind.config import parse_settings
from minimind.data.mix import Mix
from minimind.data.pair_tables import PairTables
from minimind.data.sampler import PairSampler
from minimind.data.sources.source import LINE, Source
from minimind.data.tokens import END_CUT
from minimind.model.configuration import MiniMindConfig
from minimind.native import processor
from minimind.objective.choice import choose_objective
from minimind.objective.losses import build_objective
from minimind.plan import check
from minimind.plan.options import DS_CONFIGS, read_zero
from minimind.ranks.world import World
from minimind.training.setup.training_data import TrainingData
from minimind.training.startup_report import report_data, report_settings
from minimind.weights.construction import empty_model, tensor_shapes
from tests.unit.data.tables import table_of


@pytest.fixture
def prepared():
    """A run of a billion parameters, as far as its report needs it."""
    config = MiniMindConfig(hidden_size=2048, num_hidden_layers=24)
    shapes = tensor_shapes(empty_model(config))
    return SimpleNamespace(
        settings=parse_settings(["--deepspeed", "ds_configs/zero2.json"]),
        is_demo=False,
        objective=build_objective("sigmoid"),
        adapters=None,
        source=SimpleNamespace(config=config, origin="full_sft_2048.pth", shapes=lambda: shapes),
        other_reference=None,
        policy_config=SimpleNamespace(stage=2, values=read_zero(DS_CONFIGS / "zero2.json"), overridden={}),
        reference_config=SimpleNamespace(values=read_zero(DS_CONFIGS / "reference.json")),
    )


def report(prepared, monkeypatch, free: int, rank: int = 0) -> str:
    monkeypatch.setattr(check, "free_memory", lambda: free)
    lines = []
    world = World(rank=rank, local_rank=rank, size=2, device=torch.device("cpu"), hosts=("here", "here"))
    report_settings(prepared, SimpleNamespace(say=lines.append), world)
    return "\n".join(lines)


def test_the_loss_is_printed_with_its_options(prepared, monkeypatch):
    printed = report(prepared, monkeypatch, free=2**40)
    assert "ZeRO-2 policy, ZeRO-3 reference, 2 ranks" in printed
    assert "  loss: sigmoid (beta 0.1, label_smoothing 0, mean log-probs)" in printed


def test_a_run_without_a_reference_says_why(prepared, monkeypatch):
    prepared.settings, prepared.objective = choose_objective(parse_settings(["--loss", "simpo,sft:0.1"]))
    printed = report(prepared, monkeypatch, free=2**40)
    assert "ZeRO-2 policy, no reference, because simpo:1,sft:0.1 needs none, 2 ranks" in printed
    assert "  loss: 1 simpo (beta 2, gamma 1, label_smoothing 0, mean log-probs) + 0.1 sft (mean log-probs)" in printed


def test_too_little_memory_is_a_warning_with_numbers_and_a_remedy(prepared, monkeypatch):
    printed = report(prepared, monkeypatch, free=40 * 2**30)
    # Two ranks share the free memory. The buffer of float32 gradients takes 2.0 GiB: 4 bytes x 1.08 billion / 2.
    assert "WARNING: the run may run out of memory: a rank needs up to 30.4 GiB" in printed
    assert "and free main memory has 20.0 GiB" in printed
    assert "--deepspeed ds_configs/zero2.json --gradient_checkpointing 1 fits" in printed


def test_enough_memory_is_no_warning(prepared, monkeypatch):
    assert "WARNING" not in report(prepared, monkeypatch, free=2**40)


def test_a_value_that_is_not_the_deepspeed_file_s_is_printed_with_its_reason(prepared, monkeypatch):
    prepared.policy_config.overridden = {"zero_optimization.overlap_comm": "one rank"}
    prepared.policy_config.values["zero_optimization"]["overlap_comm"] = False
    lines = report(prepared, monkeypatch, free=2**40).splitlines()
    assert "  zero_optimization.overlap_comm  0  (one rank)" in lines


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), "  dropout of the model is turned off (--dropout 1 keeps it): attn_pdrop 0.1, resid_pdrop 0.25"),
        (("--dropout", "1"), "  dropout of the model is kept: attn_pdrop 0.1, resid_pdrop 0.25"),
    ],
)
def test_dropout_of_the_model_is_printed(prepared, monkeypatch, flags, expected):
    prepared.source.config = GPT2Config(attn_pdrop=0.1, resid_pdrop=0.25, embd_pdrop=0.0, summary_first_dropout=0.5)
    prepared.settings = parse_settings(["--deepspeed", "ds_configs/zero2.json", *flags])
    assert expected in report(prepared, monkeypatch, free=2**40).splitlines()


def test_a_model_without_dropout_prints_nothing_about_it(prepared, monkeypatch):
    assert "dropout of the model" not in report(prepared, monkeypatch, free=2**40)


@pytest.mark.parametrize(
    ("flags", "coefficient"),
    [((), "0.25"), (("--router_aux_loss_coef", "0.5"), "0.5"), (("--router_aux_loss_coef", "0"), "")],
)
def test_the_auxiliary_loss_of_experts_is_printed(prepared, monkeypatch, flags, coefficient):
    prepared.source.config = MixtralConfig(output_router_logits=True, router_aux_loss_coef=0.25)
    prepared.settings = parse_settings(["--deepspeed", "ds_configs/zero2.json", *flags])
    lines = [line for line in report(prepared, monkeypatch, free=2**40).splitlines() if "auxiliary loss" in line]
    expected = [f"  auxiliary loss of the experts: coefficient {coefficient} (--router_aux_loss_coef)"]
    assert lines == (expected if coefficient else [])


@pytest.mark.parametrize(
    ("config", "flags", "instructions", "expected"),
    [
        (
            MiniMindConfig(),
            (),
            {"avx2", "avx512_bf16"},
            "  bfloat16 matrices are multiplied by the project's CPU kernel",
        ),
        (
            MiniMindConfig(),
            (),
            {"avx2"},
            "  bfloat16 matrices are multiplied by float32 products, since the CPU has no",
        ),
        (MiniMindConfig(), ("--kernels", "torch"), {"avx2"}, "  WARNING: torch multiplies bfloat16 matrices slowly"),
        (GPT2Config(), (), {"avx2"}, "  bfloat16 matrices are multiplied by float32 products"),
        (MixtralConfig(), (), {"avx2"}, "  WARNING: torch multiplies bfloat16 matrices slowly"),
        (MixtralConfig(), (), {"avx512_bf16"}, ""),
        (MiniMindConfig(), ("--dtype", "float32"), {"avx2"}, ""),
    ],
)
def test_how_bfloat16_matrices_are_multiplied(prepared, monkeypatch, config, flags, instructions, expected):
    monkeypatch.setattr(processor, "instructions", lambda: frozenset(instructions))
    prepared.source.config = config
    if isinstance(config, MixtralConfig):
        monkeypatch.setattr(prepared.source, "shapes", lambda: {"model.layers.0.mlp.experts.down_proj": (8, 4, 4)})
    prepared.settings = parse_settings(["--deepspeed", "ds_configs/zero2.json", *flags])
    lines = [line for line in report(prepared, monkeypatch, free=2**40).splitlines() if "bfloat16 matrices" in line]
    assert len(lines) == bool(expected)
    assert "".join(lines).startswith(expected)


def test_a_model_that_cannot_be_planned_is_not_checked(prepared, monkeypatch):
    prepared.source.config = MambaConfig()
    last = report(prepared, monkeypatch, free=2**30).splitlines()[-1]
    assert last == (
        "  whether memory is enough is not checked: cannot plan a mamba model: its configuration has no "
        "num_attention_heads"
    )


@pytest.mark.parametrize(("device", "printed"), [("cpu", False), ("nvme", True)])
def test_a_run_without_checkpoints_prints_so(device, printed, prepared, monkeypatch):
    prepared.policy_config.values = read_zero(DS_CONFIGS / "zero3_nvme.json")
    for name in ("offload_optimizer", "offload_param"):
        prepared.policy_config.values["zero_optimization"][name]["device"] = device
    assert ("NO CHECKPOINTS" in report(prepared, monkeypatch, free=2**40)) == printed


def named(name: str) -> Source:
    return Source(name=name, files=(), unit=LINE)


def test_shares_of_a_mix_are_those_of_an_epoch():
    """An epoch takes 2 x 3 pairs of 18 packed tokens, and half of 4 pairs of 38."""
    one, other = table_of(*[(10, 10, 0)] * 3), table_of(*[(20, 20, 0)] * 2)
    weighted = [
        dataclasses.replace(table, source=dataclasses.replace(named(word), word=word, weight=Fraction(weight)))
        for table, word, weight in ((one, "a.jsonl:2", "2"), (other, "b/*:0.5", "0.5"), (other, "b/*:0.5", "0.5"))
    ]
    tables = PairTables(tables=tuple(weighted))
    stream = PairSampler(
        mix=tables.mix, epochs=2, micro_batch_size=1, accumulation_steps=1, world_size=1, shuffle=False, seed=0
    )
    data = TrainingData(table=tables, eval_table=None, stream=stream, total_steps=16)
    lines = []
    report_data(SimpleNamespace(say=lines.append), data, parse_settings([]).config, build_objective("sigmoid"))
    assert lines == [
        "8 pairs x 2 epochs = 16 steps of 1 pairs",
        "  a.jsonl:2: 6 pairs (75.0 %) and 108 tokens (58.7 %) of an epoch",
        "  b/*:0.5 (2 files): 2 pairs (25.0 %) and 76 tokens (41.3 %) of an epoch",
    ]


@pytest.mark.parametrize(
    ("spec", "options", "advice"),
    [
        ("kto", None, ["desirable answers count 3.00 times as much as undesirable ones", "from 0.33 to 0.44"]),
        ("kto", '{"undesirable_weight": 2}', ["desirable answers count 1.50 times as much", "from 0.67 to 0.89"]),
        ("kto", '{"undesirable_weight": 3}', []),
        ("bco", None, []),
    ],
)
def test_labels_are_counted_and_weights_advised(spec, options, advice):
    one = dataclasses.replace(table_of(*[(5, 1, 0)] * 4), labels=np.array([1, 1, 0, 1], np.uint8))
    table = PairTables(tables=(one,))
    stream = PairSampler(
        mix=table.mix, epochs=1, micro_batch_size=3, accumulation_steps=1, world_size=1, shuffle=False, seed=0
    )
    data, lines = TrainingData(table=table, eval_table=None, stream=stream, total_steps=1), []
    objective = build_objective(spec, None, options)
    report_data(SimpleNamespace(say=lines.append), data, parse_settings([]).config, objective)
    assert lines[0] == "4 answers x 1 epoch = 1 steps of 3 answers"
    assert lines[1] == "  3 of 4 answers are desirable"
    assert lines[-1] == "  the last 1 answers do not fill a global batch and are not trained on"
    assert len(lines) == (4 if advice else 3)
    assert all(text in lines[2] for text in advice)


def test_pairs_that_are_left_out_are_counted():
    one, other = (
        dataclasses.replace(table_of(*[(5, 5, 0)] * number), source=named(name))
        for number, name in ((3, "train.jsonl"), (1, "eval.jsonl"))
    )
    table = PairTables(tables=(one,), duplicates=4, beyond_limit=7)
    stream = PairSampler(
        mix=table.mix, epochs=1, micro_batch_size=1, accumulation_steps=1, world_size=1, shuffle=False, seed=0
    )
    data = TrainingData(table=table, eval_table=PairTables(tables=(other,), duplicates=1), stream=stream, total_steps=3)
    lines = []
    config = parse_settings(["--limit", "3", "--dedup", "1"]).config
    report_data(SimpleNamespace(say=lines.append), data, config, build_objective("sigmoid"))
    assert lines == [
        "3 pairs x 1 epoch = 3 steps of 1 pairs",
        "  4 pairs that repeat others are left out (--dedup 1)",
        "  1 held-out pairs that repeat others are left out (--dedup 1)",
        "  only the first 3 of 10 pairs are taken (--limit 3)",
        "  1 of 3 pairs have a prompt that held-out pairs have too",
    ]


def test_every_file_has_its_own_lines_about_rows():
    tables = [
        dataclasses.replace(table_of((5, 5, 0), unused={"column 'id'": 2}), source=named("train.jsonl")),
        dataclasses.replace(table_of((5, 300, END_CUT)), source=named("eval.jsonl")),
    ]
    stream = PairSampler(
        mix=Mix.plain(1), epochs=1, micro_batch_size=1, accumulation_steps=1, world_size=1, shuffle=False, seed=0
    )
    data = TrainingData(
        table=PairTables(tables=(tables[0],)), eval_table=PairTables(tables=(tables[1],)), stream=stream, total_steps=1
    )
    lines = []
    report_data(SimpleNamespace(say=lines.append), data, parse_settings([]).config, build_objective("sigmoid"))
    assert lines == [
        "1 pairs x 1 epoch = 1 steps of 1 pairs",
        "  1 of 1 pairs have a prompt that held-out pairs have too",
        "  train.jsonl: not used: column 'id' (2 rows)",
        "  eval.jsonl: pairs longer than --max_seq_len 100: 1 of 1 (100.0 %); cut at the end: 1; --max_seq_len 300 "
        "would keep 99 % of the pairs whole (--on_long_row cut)",
    ]


def test_a_schedule_other_than_minimind_s_is_described():
    tables = PairTables(tables=(table_of((10, 10, 0), (10, 10, 0)),))
    stream = PairSampler(
        mix=tables.mix, epochs=2, micro_batch_size=1, accumulation_steps=1, world_size=1, shuffle=False, seed=0
    )
    data, lines = TrainingData(table=tables, eval_table=None, stream=stream, total_steps=4), []
    config = parse_settings(["--lr_schedule", "wsd", "--decay_ratio", "0.5", "--warmup_steps", "1"]).config
    report_data(SimpleNamespace(say=lines.append), data, config, build_objective("sigmoid"))
    assert lines[-1] == "  learning rate: wsd over 4 steps, 1 of warm-up, 2 of decay"
