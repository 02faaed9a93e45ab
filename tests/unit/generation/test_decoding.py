"""Decoding: greedy, or samples that have the probabilities of the softmax and depend on their own seed alone."""

from __future__ import annotations

import pytest
import torch

from minimind.generation.decoding import Decoding, GumbelNoise

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, float("-inf")])


def sample(decoding, seeds, logits=LOGITS):
    """A token of each row."""
    scores = logits.expand(len(seeds), -1)
    return decoding.processors(seeds)(torch.zeros(len(seeds), 1, dtype=torch.long), scores).argmax(-1)


def test_samples_have_the_probabilities_of_the_softmax():
    found = sample(Decoding(temperature=0.5), range(4000)).bincount(minlength=5) / 4000
    torch.testing.assert_close(found, (LOGITS / 0.5).softmax(-1), rtol=0, atol=0.03)


def test_a_row_depends_on_its_own_seed_alone():
    noise, alone = GumbelNoise([5, 6]), GumbelNoise([6])
    for _ in range(3):
        assert torch.equal(noise(None, LOGITS.expand(2, -1))[1], alone(None, LOGITS[None])[0])
    again = GumbelNoise([6])
    assert torch.equal(again(None, LOGITS[None]), GumbelNoise([6])(None, LOGITS[None]))
    assert not torch.equal(again(None, LOGITS[None]), GumbelNoise([6])(None, LOGITS[None]))


@pytest.mark.parametrize(
    ("options", "tokens"),
    [({"top_k": 2}, {0, 1}), ({"top_p": 0.6}, {0}), ({"top_p": 0.7}, {0, 1}), ({}, {0, 1, 2, 3})],
)
def test_only_likely_tokens_are_sampled(options, tokens):
    assert set(sample(Decoding(temperature=1.0, **options), range(300)).tolist()) == tokens


def test_greedy_changes_nothing():
    assert len(Decoding().processors([1])) == 0
    assert len(Decoding(top_p=0.5, top_k=3).processors([1])) == 0


def test_a_repeated_token_is_penalised():
    scores = Decoding(repetition_penalty=4.0).processors([0])(torch.tensor([[0]]), LOGITS[None].clone())
    assert scores[0].tolist()[:2] == [0.5, 1.0]
