"""Tokenises texts, for pretraining.

text -> start token | tokens of the text | end token

A special token inside a text is tokenised as the text that it is, so that no text can forge the end of a document.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from minimind.data.control_tokens import ControlTokens
from minimind.data.encoding import TEXT, EncodingOptions, RowEncoder, TokenizedRow
from minimind.data.template import PLAIN
from minimind.errors import DataError


class TextEncoder(RowEncoder):
    """Encodes texts.

    Attributes:
        start, end: token ids around each text; the start is empty for a tokenizer without a start token.

    Raises:
        DataError: the tokenizer has no end token, or gives no places of tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: EncodingOptions) -> None:
        super().__init__(tokenizer, options)
        if tokenizer.eos_token_id is None:
            raise DataError(
                f"{tokenizer.name_or_path}: the tokenizer has no end token (eos_token), which separates texts"
            )
        self.start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.end = [tokenizer.eos_token_id]
        self._controls = ControlTokens(tokenizer)

    def encode_text(self, text: str) -> TokenizedRow:
        """Tokens of a text between its start and its end; all of them count.

        Raises:
            RowError: the tokenizer rejects the text, or does not keep special tokens in it apart.
        """
        shielded = self._controls.shield([{"role": "user", "content": text}], PLAIN, {})
        ids = self._controls.tokenize(shielded.messages[0]["content"], shielded=shielded.number > 0).ids
        tokens = [*self.start, *ids, *self.end]
        return TokenizedRow(tokens, [1] * len(tokens))

    def key(self) -> list[Any]:
        return [TEXT, self.start, self.end]
