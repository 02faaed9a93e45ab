"""Answers of the model to a few prompts, before and after training: shows what training changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minimind.training.console import Console
from minimind.training.events import End, Listener, Start
from minimind.weights.construction import model_from_tensors
from minimind.weights.sources import WeightSource, open_weights, tensors


class Samples(Listener):
    """Shows greedy answers of the start weights and of the written weights. Rank 0 alone has this listener.

    Args:
        prompts: user messages.
        source: the start weights.
        trained: folder of the weights that the run writes.
        console: where the answers are shown.
    """

    name = "samples"

    def __init__(
        self,
        *,
        prompts: Sequence[str],
        source: WeightSource,
        tokenizer: PreTrainedTokenizerBase,
        trained: Path,
        console: Console,
    ) -> None:
        self._prompts, self._source, self._tokenizer = prompts, source, tokenizer
        self._trained, self._console = trained, console
        self._before: list[str] = []

    def on_start(self, event: Start) -> None:
        self._before = source_answers(self._source, self._tokenizer, self._prompts)

    def on_end(self, event: End) -> None:
        if not event.finished:
            return
        # Read back from disk, so that the samples also show that the written weights work.
        after = source_answers(open_weights(self._trained, {}), self._tokenizer, self._prompts)
        self._console.say("\nAnswers to held-out prompts, before and after:")
        for prompt, old, new in zip(self._prompts, self._before, after, strict=True):
            self._console.say(f"\n  {prompt}\n    before  {old}\n    after   {new}")


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int = 64
) -> list[str]:
    """The model's greedy answer to each prompt, as one user turn."""
    # Imported here: only the demo has samples, and a start should not wait for what it does not use.
    from minimind.generation.batch import generate
    from minimind.generation.decoding import Decoding

    # Rendered first and tokenised without special tokens: the template contains them already.
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        for prompt in prompts
    ]
    ids = tokenizer(texts, add_special_tokens=False).input_ids
    return [one.text.strip() for one in generate(model, tokenizer, ids, Decoding(max_new_tokens=max_new_tokens))]


def source_answers(source: WeightSource, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    """Answers of the model in a weight source, computed in float32 on this process's CPU."""
    state = {name: tensor.float() for name, tensor in tensors(source)}
    return answers(model_from_tensors(source.config, state), tokenizer, prompts)
