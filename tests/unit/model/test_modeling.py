"""The whole model behind Hugging Face's interface: cache, padding, checkpointing, saving, and wrong calls."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from minimind import MiniMindConfig, MiniMindForCausalLM
from minimind.weights.io import save_huggingface

KINDS = {
    "minimind2": {"generation": 2},
    "minimind3": {"generation": 3},
    "minimind2_moe": {"generation": 2, "use_moe": True},
    "minimind3_moe": {"generation": 3, "use_moe": True},
}
VOCAB = 61


def make(kind: str, **fields) -> MiniMindForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCAB}
    config = MiniMindConfig(**{**sizes, "initializer_range": 0.2, **KINDS[kind], **fields})
    return MiniMindForCausalLM(config).eval()


@pytest.fixture(scope="module", params=KINDS)
def model(request) -> MiniMindForCausalLM:
    return make(request.param)


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2])
def test_bf16_logits_are_bitwise_equal_with_and_without_hooks(model, batch, either_kernels):
    """ZeRO-3 hooks the layers of the policy, while those of the reference are fused. The first margin must be 0."""
    rounded = copy.deepcopy(model).bfloat16()
    at_once, calls = rounded(tokens(batch, 70)).logits, []
    for module in rounded.modules():
        module.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(rounded(tokens(batch, 70)).logits, at_once)
    assert len(calls) > 20


@torch.no_grad()
def test_float32_embeddings_are_accepted_under_autocast(model, either_kernels):
    rounded, embedded = copy.deepcopy(model).bfloat16(), torch.randn(1, 70, model.config.hidden_size)
    with torch.autocast("cpu", torch.bfloat16):
        assert rounded(inputs_embeds=embedded).logits.isfinite().all()


@torch.no_grad()
def test_greedy_generation_is_the_same_with_and_without_cache(model):
    prompt = tokens(1, 6)
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached = model.generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=True, **settings)
    # By hand, the whole text again for every token.
    text = prompt
    for _ in range(12):
        text = torch.cat((text, model(text).logits[:, -1:].argmax(-1)), dim=1)
    assert cached.shape == (1, 18)
    assert torch.equal(cached, text)
    assert torch.equal(
        model.generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=False, **settings), text
    )
    # A model that only repeats itself would pass without looking at its past.
    assert len(set(text[0, 6:].tolist())) > 3


@torch.no_grad()
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_logits_with_a_cache_equal_those_of_the_whole_text(model, name):
    """Under both names of the argument: `past_key_values` until transformers 5.24, `cache` since."""
    ids = tokens(2, 9)
    whole = model(ids).logits
    out = model(ids[:, :5], use_cache=True)
    parts, cache = [out.logits], out.get("cache", out.get("past_key_values"))
    for position in range(5, 9):
        out = model(ids[:, position : position + 1], **{name: cache}, use_cache=True)
        parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)


def test_cache_under_both_names_is_an_error(model):
    cache = model(tokens(1, 3), use_cache=True)[-1]
    with pytest.raises(ValueError, match="not both"):
        model(tokens(1, 1), cache=cache, past_key_values=cache)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_the_logits_of_tokens(model, side):
    """Left padding also shifts positions. Rotary attention depends only on their differences."""
    row, pads = tokens(1, 7), torch.full((1, 4), 59)
    ones, zeros = torch.ones_like(row), torch.zeros_like(pads)
    left = side == "left"
    ids = torch.cat((pads, row) if left else (row, pads), dim=1)
    mask = torch.cat((zeros, ones) if left else (ones, zeros), dim=1)
    # In a batch with a row that has no padding.
    batch, masks = (
        torch.cat((ids, tokens(1, 11, seed=1))),
        torch.cat((mask, torch.ones(1, 11, dtype=torch.int64))),
    )
    padded = model(batch, attention_mask=masks).logits[:1, slice(4, None) if left else slice(0, 7)]
    torch.testing.assert_close(padded, model(row).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_left_padded_rows_generate_the_same_as_alone(model):
    short, long = tokens(1, 4), tokens(1, 7, seed=1)
    ids = torch.cat((F.pad(short, (3, 0), value=59), long))
    mask = torch.tensor([[0] * 3 + [1] * 4, [1] * 7])
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    both = model.generate(ids, attention_mask=mask, **settings)[:, 7:]
    for index, row in enumerate((short, long)):
        alone = model.generate(row, attention_mask=torch.ones_like(row), **settings)[0, row.shape[1] :]
        assert torch.equal(both[index], alone)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["minimind2_moe", "minimind3_moe"])
def test_auxiliary_loss_ignores_padding(kind):
    model = make(kind).train()
    row = tokens(1, 7)
    padded = model(F.pad(row, (0, 4), value=59), attention_mask=torch.tensor([[1] * 7 + [0] * 4]))
    torch.testing.assert_close(padded.aux_loss, model(row).aux_loss)
    assert padded.aux_loss > 0


@torch.no_grad()
def test_logits_do_not_depend_on_later_tokens(model):
    ids = tokens(1, 8)
    changed = ids.clone()
    changed[0, 5] = (ids[0, 5] + 1) % VOCAB
    one, other = model(ids).logits[0], model(changed).logits[0]
    torch.testing.assert_close(one[:5], other[:5], rtol=0, atol=1e-5)
    assert (one[5:] - other[5:]).abs().amax(1).min() > 1e-4


def gradients(model: MiniMindForCausalLM, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    out = model.train()(ids, labels=ids)
    (out.loss + out.aux_loss).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_gives_the_same_gradients(kind):
    model, ids = make(kind, router_aux_loss_coef=1.0), tokens(2, 9)
    plain = gradients(model, ids)
    calls = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    checkpointed = gradients(model, ids)
    assert len(calls) == 2, "the layer must run again in backward, or nothing was checkpointed"
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_auto_model_reads_what_save_huggingface_writes(kind, tied, tokenizer, tmp_path):
    model = make(kind, tie_word_embeddings=tied)
    save_huggingface(model.config, model.state_dict(), tmp_path / "saved", tokenizer, torch.float32)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert type(again) is MiniMindForCausalLM
    assert again.config.generation == model.config.generation
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    # Not equal to the bit: how memory is aligned can choose another kernel.
    ids = tokens(2, 9)
    torch.testing.assert_close(again.eval()(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied


def test_embeddings_and_head_are_one_tensor_unless_untied():
    tied, untied = make("minimind2"), make("minimind2", tie_word_embeddings=False)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


@torch.no_grad()
def test_labels_give_the_next_token_loss(model):
    ids = tokens(2, 8)
    labels = ids.clone()
    labels[0, :4] = -100
    out = model(ids, labels=labels)
    log_probs = out.logits.log_softmax(-1)
    # Position t predicts token t + 1: row 0 counts tokens 4 to 7, row 1 tokens 1 to 7.
    counted = [(0, t) for t in range(4, 8)] + [(1, t) for t in range(1, 8)]
    expected = -torch.stack([log_probs[row, t - 1, ids[row, t]] for row, t in counted]).mean()
    torch.testing.assert_close(out.loss, expected)


@torch.no_grad()
def test_logits_to_keep_selects_positions(model):
    ids = tokens(2, 8)
    whole = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, whole[:, -3:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([1, 4])).logits, whole[:, [1, 4]])


@torch.no_grad()
def test_embeddings_can_be_given_instead_of_tokens(model):
    ids = tokens(2, 8)
    embeddings = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeddings).logits, model(ids).logits)


@pytest.mark.parametrize(
    "arguments", [{}, {"input_ids": torch.ones(1, 2).long(), "inputs_embeds": torch.ones(1, 2, 32)}]
)
def test_tokens_and_embeddings_together_or_neither_are_errors(arguments):
    with pytest.raises(ValueError, match="give either input_ids or inputs_embeds, not both"):
        make("minimind2")(**arguments)


@torch.no_grad()
def test_aux_loss_is_zero_in_eval_mode_and_for_dense_models(model):
    assert model.eval()(tokens(1, 5)).aux_loss == 0
    assert make("minimind2").train()(tokens(1, 5)).aux_loss == 0


@torch.no_grad()
def test_dropout_is_active_only_in_train_mode():
    model, ids = make("minimind2", dropout=0.5), tokens(1, 6)
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)


@torch.no_grad()
def test_bf16_logits_are_close_to_float32(model, either_kernels):
    """bf16 has 8 significant bits; after two layers the logits differ by a few per cent."""
    ids = tokens(2, 8)
    truth = model(ids).logits
    half = MiniMindForCausalLM(model.config).eval()
    half.load_state_dict(model.state_dict())
    out = half.bfloat16()(ids).logits
    assert out.dtype == torch.bfloat16
    assert (out.float() - truth).norm() < 0.1 * truth.norm()


def test_new_experts_have_the_configured_standard_deviation():
    model = make("minimind3_moe", initializer_range=0.05)
    stack = model.model.layers[0].mlp.experts.up_proj
    assert stack.std().item() == pytest.approx(0.05, rel=0.1)
    assert (stack[0] != stack[1]).all()


def test_the_default_model_is_minimind2():
    with torch.device("meta"):
        model = MiniMindForCausalLM()
    assert model.config.generation == 2
    # MiniMind2's own count, 25.8 million: V H + L (q, o: 2 H^2; k, v: 2 H 128; feed-forward 3 H 1408; norms 2
    # H) + H
    h = 512
    layer = 2 * h * h + 2 * h * 128 + 3 * h * 1408 + 2 * h
    assert sum(parameter.numel() for parameter in model.parameters()) == 6400 * h + 8 * layer + h == 25_829_888


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_kept_positions_equal_those_of_a_full_forward(kind, checkpointed):
    """Positions that the last block skips change neither the kept positions, nor gradients, nor the auxiliary loss."""
    model, ids, keep = make(kind).train(), tokens(2, 9), torch.tensor([1, 4, 4, 8])
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    results = []
    for kept in (None, keep):
        model.zero_grad()
        out = model.model(ids, keep=kept)
        hidden = out.last_hidden_state if kept is not None else out.last_hidden_state[:, keep]
        (hidden.square().sum() + out.aux_loss).backward()
        results.append([hidden.detach(), out.aux_loss.detach(), *(p.grad for p in model.model.parameters())])
    for whole, part in zip(*results, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-6)


def test_last_block_computes_only_kept_positions():
    model, widths = make("minimind3"), []
    model.model.layers[-1].mlp.register_forward_hook(lambda module, inputs, out: widths.append(out.shape[1]))
    model.model(tokens(1, 9), keep=torch.tensor([2, 5]))
    assert widths == [2]
