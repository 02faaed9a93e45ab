"""The count of useful operations, against values by hand, torch's own count, and an explicit attention mask."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import minimind
from minimind.data.packs import pack
from minimind.data.sources import open_source
from minimind.data.table_cache import load_table
from minimind.engine.scorer import PairScorer
from minimind.plan.work import ModelWork
from tests.benchmarks.report import lines_of
from tests.benchmarks.work import GemmRates, Work, gemm_rates, work_of
from tests.conftest import REPO

CONFIG = minimind.MiniMindConfig(generation=3, hidden_size=64, num_hidden_layers=2)


@pytest.fixture(scope="module")
def packs(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    table = load_table(
        open_source(REPO / "minimind" / "demo" / "eval.jsonl"),
        tokenizer,
        max_length=128,
        num_workers=0,
        cache_dir=folder,
    )
    return [pack([table[index]]) for index in range(3)]


def test_matrix_product_flops_are_those_that_torch_counts(packs):
    """In float32 the packed attention of a CPU is torch's fused kernel, so every plain product is a weight's."""
    scorer = PairScorer(minimind.MiniMindForCausalLM(CONFIG))
    joined = packs[0]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        scorer(joined)
    counts = counter.get_flop_counts()["Global"]
    products = sum(flops for op, flops in counts.items() if str(op).split(".")[1] in ("mm", "addmm", "bmm"))
    assert products > 0
    work = work_of([joined], CONFIG)
    assert work.attention_flops == attention_flops(joined)
    assert work.forward_flops - work.attention_flops == products


def attention_flops(one) -> float:
    """Two products of size head_dim for each head and each pair of tokens that the mask allows."""
    seen = 0
    for prefix, chosen, rejected in one.segments:
        for first, length in ((0, prefix + chosen), (prefix, prefix + rejected)):
            # Rows `first` on of a causal mask: the prefix's queries are there once.
            seen += int(torch.ones(length, length).tril()[first:].sum())
    return CONFIG.num_hidden_layers * 4 * CONFIG.num_attention_heads * CONFIG.head_dim * seen


def test_work_is_additive_and_a_live_reference_adds_one_forward(packs):
    whole, parts = work_of(packs, CONFIG), [work_of([one], CONFIG) for one in packs]
    assert whole.forward_flops == pytest.approx(sum(part.forward_flops for part in parts))
    assert whole.pairs == 3
    assert whole.row_tokens > whole.packed_tokens > whole.targets > 0
    assert whole.useful_flops(live_reference=True) == 4 * whole.forward_flops
    assert whole.useful_flops(live_reference=False) == 3 * whole.forward_flops


def test_a_run_counts_the_same_operations_for_any_model(packs):
    shapes = {name: tuple(p.shape) for name, p in minimind.MiniMindForCausalLM(CONFIG).named_parameters()}
    model = ModelWork.of(CONFIG, shapes)
    for one in packs:
        assert model.forward_flops(one) == work_of([one], CONFIG).forward_flops


def test_training_rate_weighs_forward_and_backward_by_their_flops():
    """Seconds add up: live, two forwards and a backward of twice the operations; cached, one forward less."""
    rates = GemmRates(forward=200.0, backward=100.0, peak=200.0)
    assert rates.of_training(live_reference=True) == pytest.approx(400 / (200 / 200 + 200 / 100))
    assert rates.of_training(live_reference=False) == pytest.approx(300 / (100 / 200 + 200 / 100))


def test_measured_rates_are_plausible():
    rates = gemm_rates(CONFIG, 64, 16, torch.float32)
    # Any processor of this century multiplies faster than a million and slower than 10**16 a second.
    assert all(1e6 < rate < 1e16 for rate in (rates.forward, rates.backward, rates.peak))
    assert rates.peak >= max(rates.forward, rates.backward)


@pytest.mark.parametrize(("device", "mfu"), [("NVIDIA L4", 4e12 / 2 / 121e12), ("", 4e12 / 2 / 8e12)])
def test_mfu_is_over_the_stated_peak_else_over_the_fastest_measured_product(device, mfu):
    """1e12 operations forward, live reference: four times, in 2 s."""
    rates = [{"forward": 5e12, "backward": 4e12, "peak": peak} for peak in (6e12, 8e12)]
    one = {"seconds": [2.0], "gemm_rates": rates, "peak_memory_gib": 1.0, "above_memory_gib": 0.5}
    work = Work(pairs=4, row_tokens=8, packed_tokens=6, targets=2, forward_flops=1e12, attention_flops=0.0)
    (line,) = lines_of({"ours": [one]}, lambda name: work, device)
    assert line.mfu == pytest.approx(mfu)
