"""Samples: answers before and after training, for a finished run only."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from minimind import demo
from minimind.training.events import End, Start
from minimind.training.listeners.samples import Samples, source_answers
from minimind.weights.io import save_huggingface
from minimind.weights.sources import open_weights, tensors


@pytest.fixture(scope="module")
def source():
    return open_weights(demo.WEIGHT_PATH, {})


@pytest.fixture
def made(source, tokenizer, tmp_path):
    import torch

    state = {name: tensor.float() for name, tensor in tensors(source)}
    save_huggingface(source.config, state, tmp_path / "trained", tokenizer, torch.float32)
    printed = []
    listener = Samples(
        prompts=["What do horses eat?"],
        source=source,
        tokenizer=tokenizer,
        trained=tmp_path / "trained",
        console=SimpleNamespace(say=printed.append),
    )
    return listener, printed


def test_the_same_weights_give_the_same_answer_before_and_after(made, source, tokenizer):
    listener, printed = made
    listener.on_start(Start(step=0, total_steps=3))
    listener.on_end(End(step=3, finished=True))
    (answer,) = source_answers(source, tokenizer, ["What do horses eat?"])
    assert answer
    assert printed[1] == f"\n  What do horses eat?\n    before  {answer}\n    after   {answer}"


def test_a_stopped_run_shows_nothing(made):
    listener, printed = made
    listener.on_end(End(step=2, finished=False, reason="SIGTERM"))
    assert printed == []
