"""Three layouts of the same pairs are one computation: packed with shared prefixes, packed without, and
padded.

Criterion, in float32 on a CPU, element by element: DPO losses, the auxiliary loss and the gradient of every
parameter differ by at most 1e-6; row log-probs (mean over a row's targets) by at most 1e-6 * (1 +
|log-prob|), since float32 numbers near 5 are 5e-7 apart. In float64 sharing a prefix changes nothing above
1e-12, so that what is seen in float32 is rounding. MiniMind's own route (its data set, its model's logits,
its loss) is a fourth way to the same numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from minimind import DPODataset, MiniMindConfig, MiniMindForCausalLM, dpo_loss, logits_to_log_probs
from minimind.data.packs import PackedPairs, PairBatch, pack, pad
from minimind.data.table import PreferencePair, load_table
from minimind.engine.scorer import PairScorer
from minimind.objective.losses import PairScores, SigmoidLoss
from minimind.objective.rows import row_log_probs
from tests.conftest import conversation, pair

ATOL = 1e-6
VOCAB, BETA = 97, 0.1
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCAB}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
HUGGING_FACE = {
    **SIZES,
    **HEADS,
    "intermediate_size": 64,
    "initializer_range": 0.1,
    "max_position_embeddings": 128,
}

MODELS = {
    "minimind2": lambda: MiniMindForCausalLM(MiniMindConfig(generation=2, **SIZES, **HEADS)),
    "minimind3": lambda: MiniMindForCausalLM(MiniMindConfig(generation=3, **SIZES, **HEADS)),
    "minimind2_moe": lambda: MiniMindForCausalLM(MiniMindConfig(generation=2, use_moe=True, **SIZES, **HEADS)),
    "minimind3_moe": lambda: MiniMindForCausalLM(MiniMindConfig(generation=3, use_moe=True, **SIZES, **HEADS)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**HUGGING_FACE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(head_dim=8, **HUGGING_FACE)),
}


def random_model(name: str, seed: int) -> PreTrainedModel:
    """A tiny model whose weights are large enough for attention to matter."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.1, generator=generator)
    return model


def preference_pair(
    prefix: int, chosen: int, rejected: int, *, line: int, turns: tuple[int, ...] = ()
) -> PreferencePair:
    """A pair of `prefix` common tokens and `chosen`, `rejected` of their own; own tokens count, and those in
    `turns`.

    The halves' own tokens come from disjoint ranges, so the common prefix is exactly as long as said.
    """
    draw = np.random.default_rng(line)
    shared = draw.integers(3, VOCAB, prefix)
    own = {"chosen": draw.integers(3, 50, chosen), "rejected": draw.integers(50, VOCAB, rejected)}
    counted = np.isin(np.arange(prefix), turns)
    tokens = {half: np.concatenate((shared, part)).astype(np.int32) for half, part in own.items()}
    masks = {half: np.concatenate((counted, np.ones(len(part)))).astype(np.uint8) for half, part in own.items()}
    return PreferencePair(
        chosen=tokens["chosen"],
        rejected=tokens["rejected"],
        chosen_mask=masks["chosen"],
        rejected_mask=masks["rejected"],
        prefix=prefix,
        line=line,
    )


PAIRS = {
    "plain": preference_pair(6, 4, 5, line=1),
    "multi_turn": preference_pair(14, 3, 6, line=2, turns=(4, 5, 6, 10, 11)),
    "target_right_before_the_fork": preference_pair(7, 5, 2, line=3, turns=(5, 6)),
    "chosen_is_a_prefix_of_rejected": preference_pair(9, 0, 7, line=4, turns=(6, 7, 8)),
    "rejected_is_a_prefix_of_chosen": preference_pair(8, 6, 0, line=5, turns=(6, 7)),
    "nothing_shared": preference_pair(0, 5, 8, line=6),
    "one_token_each": preference_pair(5, 1, 1, line=7),
    "long_and_short": preference_pair(3, 60, 2, line=8),
    "short_and_long": preference_pair(20, 2, 50, line=9),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    rows: Tensor
    losses: Tensor
    aux_loss: Tensor
    gradients: dict[str, Tensor]


def run(policy: PreTrainedModel, reference: PreTrainedModel, batch: PairBatch, attention: str = "native") -> Result:
    """One training micro-batch, without an engine: scores, losses and the gradients of mean loss + auxiliary
    loss."""
    policy.zero_grad()
    with torch.no_grad():
        reference_log_probs, _ = PairScorer(reference.eval(), attention)(batch)
    log_probs, aux_loss = PairScorer(policy.train(), attention)(batch)
    rows = row_log_probs(log_probs, batch.target_counts, average_log_prob=True)
    reference_rows = row_log_probs(reference_log_probs, batch.target_counts, average_log_prob=True)
    scores = (PairScores(rows=one, target_counts=batch.target_counts) for one in (rows, reference_rows))
    losses = SigmoidLoss(beta=BETA)(*scores).losses
    (losses.mean() + aux_loss).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}
    return Result(rows=rows.detach(), losses=losses.detach(), aux_loss=aux_loss.detach(), gradients=gradients)


def assert_same(one: Result, other: Result) -> None:
    torch.testing.assert_close(one.rows, other.rows, rtol=ATOL, atol=ATOL)
    torch.testing.assert_close(one.losses, other.losses, rtol=0, atol=ATOL)
    torch.testing.assert_close(one.aux_loss, other.aux_loss, rtol=0, atol=ATOL)
    assert one.gradients.keys() == other.gradients.keys()
    for name, gradient in one.gradients.items():
        torch.testing.assert_close(
            gradient, other.gradients[name], rtol=0, atol=ATOL, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module", params=MODELS)
def models(request) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Policy and a differently seeded reference."""
    return random_model(request.param, seed=1), random_model(request.param, seed=2)


def assert_layouts_agree(models: tuple[PreTrainedModel, PreTrainedModel], pairs: list[PreferencePair]) -> None:
    shared, unshared, padded = pack(pairs), pack(pairs, share_prefix=False), pad(pairs)
    results = [run(*models, batch) for batch in (shared, unshared, padded)]
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_layouts_agree_on_one_batch_of_all_kinds(models):
    assert_layouts_agree(models, list(PAIRS.values()))


@pytest.mark.parametrize("kind", PAIRS)
def test_layouts_agree_on_a_single_pair(models, kind):
    assert_layouts_agree(models, [PAIRS[kind]])


def test_pairs_of_a_pack_do_not_see_each_other(models):
    """Rows of one big pack are those of each pair packed alone."""
    pairs = list(PAIRS.values())
    with torch.no_grad():
        scorer = PairScorer(models[0].eval())
        together, alone = pack(pairs), [pack([one]) for one in pairs]
        rows = row_log_probs(scorer(together)[0], together.target_counts, average_log_prob=True)
        single = [row_log_probs(scorer(one)[0], one.target_counts, average_log_prob=True) for one in alone]
    torch.testing.assert_close(rows, torch.cat(single), rtol=ATOL, atol=ATOL)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["minimind2", "minimind3_moe", "qwen3"])
def test_a_model_trains_the_same_by_flex_attention(name, compiled, monkeypatch):
    """Through the scorer, with gradient checkpointing, in blocks that are compiled and that are not."""
    for attribute, value in (("_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True), ("_validate_device", lambda *_: None)):
        monkeypatch.setattr(flex_attention, attribute, value)  # torch keeps its uncompiled form from training
    results = []
    for backend in ("sdpa", "flex"):
        policy, reference = random_model(name, seed=1), random_model(name, seed=2)
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        for block in policy.base_model.layers if compiled else ():
            block.compile(dynamic=True, backend="eager")
        results.append(run(policy, reference, pack(list(PAIRS.values())), backend))
    assert_same(*results)


@pytest.mark.parametrize("name", ["minimind2", "minimind3"])
def test_sharing_a_prefix_is_exact_in_float64(name):
    policy, reference = random_model(name, seed=1).double(), random_model(name, seed=2).double()
    pairs = list(PAIRS.values())
    shared, unshared = (run(policy, reference, pack(pairs, share_prefix=share)) for share in (True, False))
    assert shared.rows.dtype == torch.float64
    torch.testing.assert_close(shared.rows, unshared.rows, rtol=0, atol=1e-12)
    torch.testing.assert_close(shared.losses, unshared.losses, rtol=0, atol=1e-12)
    for key, gradient in shared.gradients.items():
        torch.testing.assert_close(unshared.gradients[key], gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["minimind2_moe", "minimind3_moe"])
def test_auxiliary_loss_and_its_own_gradient_agree(name):
    """In the sum with the DPO loss a wrong auxiliary gradient could hide behind the tolerance: look at it
    alone, and with a coefficient of 1, at which it is as large as the DPO loss."""
    model = random_model(name, seed=1).train()
    model.config.router_aux_loss_coef = 1.0
    pairs = list(PAIRS.values())
    results = []
    for batch in (pack(pairs), pack(pairs, share_prefix=False), pad(pairs)):
        model.zero_grad()
        _, aux_loss = PairScorer(model)(batch)
        aux_loss.backward()
        results.append((aux_loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    assert results[0][0] > 0.5
    assert results[0][1]["model.layers.0.mlp.gate.weight"].abs().max() > 1e-3
    for aux_loss, gradients in results[1:]:
        torch.testing.assert_close(aux_loss, results[0][0], rtol=0, atol=ATOL)
        for key, gradient in results[0][1].items():
            torch.testing.assert_close(gradients[key], gradient, rtol=0, atol=ATOL)


@pytest.mark.parametrize("damage", ["plain causal attention", "positions run on", "prefix one too long"])
def test_the_comparison_would_see_a_wrong_pack(damage):
    """A pack laid out or attended wrongly differs by far more than the tolerance."""
    model, pairs = random_model("minimind2", seed=1).eval(), [PAIRS["plain"], PAIRS["multi_turn"]]
    right = pack(pairs)
    with torch.no_grad():
        wanted, _ = PairScorer(model)(right)
        if damage == "plain causal attention":
            model.config._attn_implementation = "sdpa"
            hidden = model.model(right.token_ids[None], position_ids=right.position_ids[None]).last_hidden_state[0]
            logits = model.lm_head(hidden[right.target_positions])
            got = logits.log_softmax(-1).gather(1, right.target_ids[:, None])[:, 0]
        else:
            if damage == "positions run on":
                wrong = dataclasses.replace(right, position_ids=torch.arange(len(right.token_ids)))
            else:
                (prefix, chosen, rejected), *rest = right.segments
                wrong = dataclasses.replace(right, segments=((prefix + 1, chosen - 1, rejected), *rest))
            got, _ = PairScorer(model)(wrong)
    assert (got - wanted).abs().max() > 1000 * ATOL


ROWS = (
    pair("What is the colour of the sky?", "It is blue.", "Go and look yourself, I am busy."),
    pair(
        "Two and two?",
        "Four.",
        "Four. Do you need your fingers for that, or can you count in your head by now?",
    ),
    {
        "chosen": conversation("Hello", "Good morning!", "Where is Rome?", "In Italy, a lovely country."),
        "rejected": conversation("Hello", "Good morning!", "Where is Rome?", "Not here."),
    },
    {
        "chosen": [{"role": "system", "content": "Be kind."}, *conversation("你好", "你好，很高兴见到你。")],
        "rejected": [{"role": "system", "content": "Be kind."}, *conversation("你好", "走开。")],
    },
)


@pytest.fixture
def rows_path(write_rows) -> Path:
    return write_rows(*ROWS)


@pytest.mark.parametrize("average", [True, False], ids=["mean", "sum"])
@pytest.mark.parametrize("name", ["minimind2", "minimind3", "minimind2_moe", "minimind3_moe"])
@pytest.mark.parametrize("max_length", [64, 24], ids=["whole", "truncated"])
def test_a_pack_equals_minimind_own_route(name, average, max_length, tokenizer, rows_path, tmp_path):
    """DPODataset -> logits -> logits_to_log_probs -> dpo_loss, as MiniMind's training script goes, is what a
    pack gives; loss and gradients. The auxiliary loss is left out: MiniMind counts pads in it."""
    torch.manual_seed(0)
    sizes = {**SIZES, **HEADS, "vocab_size": len(tokenizer), "use_moe": name.endswith("moe")}
    config = MiniMindConfig(generation=int(name[8]), initializer_range=0.1, **sizes)
    policy, reference = MiniMindForCausalLM(config), MiniMindForCausalLM(config)
    policy.train()
    reference.eval()

    dataset = DPODataset(rows_path, tokenizer, max_length=max_length)
    assert len(dataset) == len(ROWS)
    samples = [dataset[i] for i in range(len(dataset))]
    x, y, mask = (
        torch.stack([sample[f"{field}_{half}"] for half in ("chosen", "rejected") for sample in samples])
        for field in ("x", "y", "mask")
    )
    with torch.no_grad():
        golden_reference = logits_to_log_probs(reference(x).logits, y)
    golden_loss = dpo_loss(golden_reference, logits_to_log_probs(policy(x).logits, y), mask, BETA, average)
    golden_loss.backward()
    golden_gradients = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()

    table = load_table(
        rows_path,
        tokenizer,
        max_length=max_length,
        empty_think_ratio=1.0,
        num_workers=0,
        cache_dir=tmp_path / "cache",
    )
    batch = pack([table[i] for i in range(len(table))])
    assert isinstance(batch, PackedPairs)
    assert batch.num_pairs == len(ROWS)
    with torch.no_grad():
        reference_log_probs, _ = PairScorer(reference)(batch)
    log_probs, _ = PairScorer(policy)(batch)
    counts = batch.target_counts
    scores = (
        PairScores(rows=row_log_probs(one, counts, average), target_counts=counts)
        for one in (log_probs, reference_log_probs)
    )
    loss = SigmoidLoss(beta=BETA)(*scores).losses.mean()
    loss.backward()
    # Sums over a row's tokens are some twenty times its mean, and so is their rounding.
    atol = ATOL if average else 20 * ATOL
    torch.testing.assert_close(loss, golden_loss, rtol=0, atol=atol)
    for key, gradient in golden_gradients.items():
        torch.testing.assert_close(policy.get_parameter(key).grad, gradient, rtol=0, atol=atol)


def test_targets_of_all_layouts_are_the_same_tokens_in_the_same_order():
    """With shared prefixes a shared target is listed once; without, once per half."""
    for one, other in itertools.pairwise(PAIRS.values()):
        shared, padded = pack([one, other]), pad([one, other])
        assert torch.equal(shared.target_ids, padded.target_ids)
        assert torch.equal(shared.target_counts, padded.target_counts)
        unshared = pack([one, other], share_prefix=False)
        in_prefix, in_chosen, in_rejected = shared.target_counts.T
        expected = torch.stack((torch.zeros_like(in_prefix), in_prefix + in_chosen, in_prefix + in_rejected), dim=1)
        assert torch.equal(unshared.target_counts, expected)
