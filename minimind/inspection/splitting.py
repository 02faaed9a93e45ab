"""Splits held-out rows off, by prompt, or by text: no prompt is on both sides.

    sources -> prompt of each row -> choose_prompts -> train.jsonl of each source, eval.jsonl

The prompt of a conversation is what comes before its first answer; a text is a prompt as a whole here. Which prompts
are held out depends on the seed and the prompts alone, not on the order of rows or on the number of sources. Rows are
copied as they are; rows of other files than JSON become one line of JSON each.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from minimind.data.entries import entry_of
from minimind.data.shapes import ShapeOptions, parse_items
from minimind.data.sources import Content, RowError, Source
from minimind.durable import whole_file
from minimind.errors import ConfigError, DataError

Hashes = NDArray[np.uint64]
# Stands for a row that cannot be read. A prompt's hash is zero once in 2^64.
_NO_PROMPT = 0
_BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """The written files.

    Attributes:
        train: one file for each source, in their order.
        evaluation: held-out rows of all sources.
        train_rows, eval_rows: number of rows in them.
        prompts, eval_prompts: number of different prompts, and of those that are held out.
    """

    train: tuple[Path, ...]
    evaluation: Path
    train_rows: int
    eval_rows: int
    prompts: int
    eval_prompts: int


def split_rows(
    sources: Sequence[Source],
    shapes: Sequence[ShapeOptions],
    words: frozenset[str],
    *,
    share: float,
    seed: int,
    folder: Path,
) -> Split:
    """Write the rows of all sources into a file of held-out ones and files of the others.

    Rows that cannot be read stay with the others, so that the run refuses them as before.

    Args:
        shapes: how the rows of each source are read, and what they become.
        words: all words of the chat template's source.
        share: of the prompts that is held out.
        seed: chooses the prompts.
        folder: where the files are written.

    Raises:
        ConfigError: a source is one of the files that would be written, or there are fewer than two prompts.
        DataError: a file cannot be read or written.
    """
    train, evaluation = _paths(sources, folder)
    inputs = {file.resolve() for source in sources for file in source.files}
    for path in (*train, evaluation):
        if path.resolve() in inputs:
            raise ConfigError(f"{path} is read and would be overwritten; give another --out")
    prompts = [_prompts(source, options, words) for source, options in zip(sources, shapes, strict=True)]
    unique = np.unique(np.concatenate(prompts))
    unique = unique[unique != _NO_PROMPT]
    held_out = choose_prompts(unique, share, seed)
    masks = [np.isin(rows, held_out) for rows in prompts]
    _write(sources, masks, train, evaluation)
    eval_rows = sum(int(mask.sum()) for mask in masks)
    return Split(
        train=tuple(train),
        evaluation=evaluation,
        train_rows=sum(map(len, masks)) - eval_rows,
        eval_rows=eval_rows,
        prompts=len(unique),
        eval_prompts=len(held_out),
    )


def _write(
    sources: Sequence[Source], masks: Sequence[NDArray[np.bool_]], train: Sequence[Path], evaluation: Path
) -> None:
    """Write the rows of each source into its file, or, where its mask is true, into that of the held-out rows."""
    folder = evaluation.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _written(evaluation) as eval_file:
            for source, mask, path in zip(sources, masks, train, strict=True):
                with _written(path) as train_file:
                    for (_, content), is_eval in zip(source.rows(), mask, strict=True):
                        (eval_file if is_eval else train_file).write(one_line(content) + b"\n")
    except OSError as error:
        raise DataError(f"{folder}: cannot write the split rows ({error}); give another --out") from error


def choose_prompts(prompts: Hashes, share: float, seed: int) -> Hashes:
    """The prompts that are held out: this share of them, at least one, and not all.

    Args:
        prompts: different hashes.

    Raises:
        ConfigError: there are fewer than two.
    """
    if len(prompts) < 2:
        raise ConfigError(f"--eval_share {share:g}: the rows have {len(prompts)} prompts; two are needed to split them")
    number = min(max(round(share * len(prompts)), 1), len(prompts) - 1)
    return prompts[np.argsort(_shuffled(prompts, seed), kind="stable")[:number]]


def one_line(content: Content) -> bytes:
    """A row as one line of JSON, without its end.

    A row that cannot be read and has several lines becomes a JSON text of itself, which is refused as well.
    """
    if isinstance(content, RowError):
        return json.dumps(f"(a row that could not be read: {content})").encode()
    if isinstance(content, dict):
        # Columns that nothing reads may hold values that JSON has no form for, such as dates.
        return json.dumps(content, ensure_ascii=False, default=str).encode()
    line = content.strip().removeprefix(_BOM)
    if b"\n" not in line and b"\r" not in line:
        return line
    try:
        json.loads(line)
    except ValueError:
        return json.dumps(line.decode(errors="replace")).encode()
    # Within a valid text, line breaks are white space between values.
    return b" ".join(part.strip() for part in line.splitlines())


def _paths(sources: Sequence[Source], folder: Path) -> tuple[list[Path], Path]:
    if len(sources) == 1:
        return [folder / "train.jsonl"], folder / "eval.jsonl"
    return [folder / f"train_{number}.jsonl" for number in range(1, len(sources) + 1)], folder / "eval.jsonl"


def _prompts(source: Source, options: ShapeOptions, words: frozenset[str]) -> Hashes:
    """The prompt of each row of a source; _NO_PROMPT for rows that cannot be read."""
    found = array.array("Q")
    for _, content in source.rows():
        try:
            items = [] if isinstance(content, RowError) else parse_items(content, options)
        except RowError:
            items = []
        # All pairs of a row answer the same prompt.
        found.append(entry_of(items[0], words).identity[0] if items else _NO_PROMPT)
    return np.frombuffer(found, np.uint64) if found else np.empty(0, np.uint64)


def _shuffled(values: Hashes, seed: int) -> Hashes:
    """Other hashes of hashes, by the seed: the finaliser of SplitMix64 (Steele et al., 2014)."""
    start = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    mixed = values ^ start
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


@contextlib.contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    """A file that has its name only when it is complete."""
    with whole_file(path) as partial, partial.open("wb") as file:
        yield file
