"""Tokenising a file: chunks in file order, reasons of bad rows, worker processes."""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing.synchronize
import pickle
import signal
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from minimind.data import identity, tokens, worker_pool
from minimind.data.encoder import TurnEncoder
from minimind.data.encoding import EncodingOptions
from minimind.data.packs import pack, pad
from minimind.data.pairs import LengthLimit
from minimind.data.rows import BadRow
from minimind.data.shapes import Items, ShapeOptions
from minimind.data.sources import open_source
from minimind.data.table import PreferencePair
from minimind.data.text_encoder import TextEncoder
from minimind.data.tokens import END_CUT, LOST, PROMPT_CUT, WRONG, Chunk, tokenize
from tests.conftest import conversation, pair
from tests.unit.data.tables import LONG_QUESTION, ROWS, SHORT

OPTIONS = EncodingOptions()


def plain(chunks: list[Chunk]) -> list[dict]:
    """Chunks as plain lists, which can be compared."""
    return [
        {**vars(chunk), "tokens": chunk.tokens.tolist(), "mask": chunk.mask.tolist(), "scores": str(chunk.scores)}
        for chunk in chunks
    ]


def bad_rows(path, tokenizer, max_length: int) -> list[BadRow]:
    (chunk,) = tokenize(
        open_source(path), TurnEncoder(tokenizer, OPTIONS), LengthLimit(max_length=max_length), num_workers=0
    )
    return chunk.bad


def test_chunk_concatenates_the_rows(write_rows, tokenizer):
    encoder = TurnEncoder(tokenizer, OPTIONS)
    (chunk,) = tokenize(
        open_source(write_rows(*ROWS, "{broken", SHORT)), encoder, LengthLimit(max_length=64), num_workers=0
    )
    rows = [encoder.encode(row[half], 1) for row in (*ROWS, SHORT) for half in ("chosen", "rejected")]
    assert chunk.tokens.tolist() == list(itertools.chain.from_iterable(row.tokens for row in rows))
    assert chunk.mask.tolist() == list(itertools.chain.from_iterable(row.mask for row in rows))
    assert chunk.lengths == [len(row.tokens) for row in rows]
    assert chunk.lines == [1, 2, 3, 5]
    for prefix, chosen, rejected in zip(chunk.prefixes, rows[::2], rows[1::2], strict=True):
        assert chosen.tokens[:prefix] == rejected.tokens[:prefix]
        assert chosen.tokens[prefix] != rejected.tokens[prefix]


def test_row_that_the_template_rejects_is_bad(write_rows, tokenizer):
    strict = copy.deepcopy(tokenizer)
    reject = "{% for m in messages if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endfor %}"
    strict.chat_template = reject + tokenizer.chat_template
    question, answer = ROWS[0]["chosen"]
    with_tool = {
        "chosen": [question, {"role": "tool", "content": "4"}, answer],
        "rejected": [question, {"role": "tool", "content": "4"}, ROWS[0]["rejected"][1]],
    }
    reason = "the chat template rejects the row: no tools"
    assert bad_rows(write_rows(ROWS[0], with_tool), strict, 64) == [BadRow(line=2, reason=reason, tokenized=False)]


def test_pair_that_truncation_leaves_without_an_answer_is_lost_and_not_bad(write_rows, tokenizer):
    encoder = TurnEncoder(tokenizer, OPTIONS)
    (chunk,) = tokenize(
        open_source(write_rows(SHORT, LONG_QUESTION)), encoder, LengthLimit(max_length=12), num_workers=0
    )
    assert chunk.bad == []
    # The short row loses what follows its answer.
    assert chunk.cuts == [END_CUT, END_CUT | LOST]
    assert chunk.lengths == [12] * 4
    assert chunk.full_lengths == [
        len(encoder.encode(row[half], 1).tokens) for row in (SHORT, LONG_QUESTION) for half in ("chosen", "rejected")
    ]


def test_row_without_a_token_that_counts_is_bad_and_tokenised(write_rows, tokenizer):
    """The encoder clears the mask of one half, as a mask that misses a turn would."""

    class OneHalf(TurnEncoder):
        def encode_compared(self, messages, row_number, *given):
            compared = super().encode_compared(messages, row_number, *given)
            if messages[-1]["content"] == "No.":
                compared.row.mask[1:] = [0] * (len(compared.row.mask) - 1)
            return compared

    (chunk,) = tokenize(
        open_source(write_rows(SHORT)), OneHalf(tokenizer, OPTIONS), LengthLimit(max_length=64), num_workers=0
    )
    (bad,) = chunk.bad
    assert (bad.line, bad.tokenized) == (1, True)
    assert bad.reason.startswith("no token of 'rejected' counts")
    assert chunk.lines == [1]
    assert chunk.cuts == [WRONG]


def test_difference_that_truncation_cuts_off_is_lost(write_rows, tokenizer):
    long = "one two three four five six seven eight nine ten eleven twelve "
    path = write_rows(SHORT, pair("Count", long + "thirteen", long + "no more"))
    (chunk,) = tokenize(open_source(path), TurnEncoder(tokenizer, OPTIONS), LengthLimit(max_length=16), num_workers=0)
    assert (chunk.bad, chunk.cuts) == ([], [0, END_CUT | LOST])
    assert chunk.prefixes[1] == 16


def test_prompts_are_cut_if_asked(write_rows, tokenizer):
    encoder = TurnEncoder(tokenizer, OPTIONS)
    path, limit = write_rows(ROWS[1]), len(encoder.encode(ROWS[1]["chosen"], 1).tokens) - 1
    for cut_prompt, cuts in ((False, [END_CUT]), (True, [PROMPT_CUT])):
        (chunk,) = tokenize(
            open_source(path), encoder, LengthLimit(max_length=limit, cut_prompt=cut_prompt), num_workers=0
        )
        assert chunk.cuts == cuts


def test_part_that_the_template_leaves_out_makes_a_bad_row(write_rows, tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = tokenizer.chat_template.replace("{%- if tools %}", "{%- if false %}")
    (bad,) = bad_rows(write_rows(SHORT, {**SHORT, "tools": [{"name": "add"}]}), plain, 64)
    assert (bad.line, bad.tokenized) == (2, False)
    assert bad.reason.startswith("the chat template leaves out the column 'tools'")


def test_rows_with_columns_of_no_use_are_counted(write_rows, tokenizer):
    rows = [{**SHORT, "id": 1}, {**SHORT, "id": 2, "note": "x"}, SHORT, "{broken"]
    (chunk,) = tokenize(
        open_source(write_rows(*rows)), TurnEncoder(tokenizer, OPTIONS), LengthLimit(max_length=64), num_workers=0
    )
    assert chunk.unused == {"column 'id'": 2, "column 'note'": 1}


@pytest.fixture
def two_cores(monkeypatch):
    """Chunks of 8 rows and workers from 32 rows on, so that small files start them."""
    monkeypatch.setattr(tokens, "_ROWS_PER_TASK", 8)
    monkeypatch.setattr(tokens.os, "sched_getaffinity", lambda pid: {0, 1})


@pytest.fixture
def many_rows(write_rows):
    """40 lines; one of the first is blank and one of the last is no JSON."""
    lines = [json.dumps(pair(f"Number {i}?", f"It is {i}.", f"Not {i}!" * (1 + i % 3))) for i in range(40)]
    lines[5] = ""
    lines[35] = "{broken"
    return write_rows(*lines)


@pytest.fixture
def pools(monkeypatch):
    """Pools that `tokenize` starts, by the number of processes that it asks for. One real worker runs, forked, since
    a spawned one imports for seconds. It gets a pickled tokenizer as a spawned one does."""
    asked = {}

    def start(workers, context, *, initializer, initargs):
        assert context.get_start_method() == "spawn"
        forked = multiprocessing.get_context("fork")
        initargs = pickle.loads(pickle.dumps(initargs))
        asked[workers] = ProcessPoolExecutor(1, forked, initializer=initializer, initargs=initargs)
        return asked[workers]

    monkeypatch.setattr(worker_pool, "ProcessPoolExecutor", start)
    return asked


def test_worker_processes_give_the_same_chunks_and_get_no_interrupts(two_cores, many_rows, pools, tokenizer):
    encoder = TurnEncoder(tokenizer, OPTIONS)
    limit = LengthLimit(max_length=64)
    serial, chunks = (tokenize(open_source(many_rows), encoder, limit, num_workers=workers) for workers in (0, 3))
    serial, parallel = list(serial), [next(chunks)]
    assert list(pools) == [2]
    assert signal.SIGINT in pools[2].submit(signal.pthread_sigmask, signal.SIG_BLOCK, []).result()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    parallel += chunks
    assert [len(chunk.lines) + len(chunk.bad) for chunk in serial] == [8, 8, 8, 8, 7]
    assert [row.line for chunk in serial for row in chunk.bad] == [36]
    assert [line for chunk in serial for line in chunk.lines] == [n for n in range(1, 41) if n not in (6, 36)]
    assert plain(parallel) == plain(serial)


def test_without_room_for_semaphores_this_process_tokenises(two_cores, many_rows, tokenizer, monkeypatch):
    """/dev/shm is full: the operating system makes no semaphore."""

    def no_room(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(multiprocessing.synchronize._multiprocessing, "SemLock", no_room)
    encoder, limit = TurnEncoder(tokenizer, OPTIONS), LengthLimit(max_length=64)
    serial = list(tokenize(open_source(many_rows), encoder, limit, num_workers=0))
    with pytest.warns(UserWarning, match=r"one process tokenises.*/dev/shm.*No space left"):
        chunks = list(tokenize(open_source(many_rows), encoder, limit, num_workers=2))
    assert plain(chunks) == plain(serial)


@pytest.mark.parametrize(
    ("rows", "num_workers", "cores"),
    [(31, 2, 2), (40, 1, 2), (40, 2, 1)],
    ids=["few rows", "one worker allowed", "one core"],
)
def test_no_worker_starts_where_it_would_gain_nothing(
    two_cores, pools, write_rows, tokenizer, monkeypatch, rows, num_workers, cores
):
    monkeypatch.setattr(tokens.os, "sched_getaffinity", lambda pid: set(range(cores)))
    encoder = TurnEncoder(tokenizer, OPTIONS)
    chunks = list(
        tokenize(open_source(write_rows(*[SHORT] * rows)), encoder, LengthLimit(max_length=64), num_workers=num_workers)
    )
    assert [line for chunk in chunks for line in chunk.lines] == list(range(1, rows + 1))
    assert pools == {}


def test_every_target_of_the_masks_is_a_target_of_the_pack(write_rows, tokenizer):
    """--last_turn_only: the first answers share tokens that count in the half alone whose last answer they are."""
    rows = [
        {"chosen": conversation("q", "Sure I can", "more", "d"), "rejected": conversation("q", "Sure I can not")},
        {"chosen": conversation("q", "Sure"), "rejected": conversation("q", "Sure", "more", "no")},
        {"chosen": conversation("q", "Yes", "more", "a"), "rejected": conversation("q", "Yes", "more", "b")},
    ]
    encoder = TurnEncoder(tokenizer, EncodingOptions(last_turn_only=True))
    (chunk,) = tokenize(open_source(write_rows(*rows)), encoder, LengthLimit(max_length=64), num_workers=0)
    starts = np.concatenate(([0], np.cumsum(chunk.lengths)))
    halves = [(chunk.tokens[a:b], chunk.mask[a:b]) for a, b in itertools.pairwise(starts)]
    pairs = [
        PreferencePair(
            chosen=chosen[0], chosen_mask=chosen[1], rejected=rejected[0], rejected_mask=rejected[1],
            prefix=prefix, index=line,
        )
        for chosen, rejected, prefix, line in zip(halves[::2], halves[1::2], chunk.prefixes, chunk.lines, strict=True)
    ]  # fmt: skip
    for batch in (pack(pairs), pad(pairs)):
        shared, chosen, rejected = batch.target_counts.T.tolist()
        assert [s + c for s, c in zip(shared, chosen, strict=True)] == [int(p.chosen_mask.sum()) for p in pairs]
        assert [s + r for s, r in zip(shared, rejected, strict=True)] == [int(p.rejected_mask.sum()) for p in pairs]


def test_rows_of_a_task_have_the_tokens_that_each_has_alone(write_rows, tokenizer, monkeypatch):
    """Rows of a task are rendered and tokenised together."""
    rows = [pair(f"Question {number}?", f"Yes {'so ' * number}", "<|im_end|> no") for number in range(40)]
    source, limit = open_source(write_rows(*rows)), LengthLimit(max_length=64)
    (together,) = tokenize(source, TurnEncoder(tokenizer, OPTIONS), limit, num_workers=0)
    monkeypatch.setattr(tokens, "_ROWS_PER_TASK", 1)
    alone = list(tokenize(source, TurnEncoder(tokenizer, OPTIONS), limit, num_workers=0))
    assert len(alone) == 40
    assert together.tokens.tolist() == [token for chunk in alone for token in chunk.tokens.tolist()]
    assert together.mask.tolist() == [value for chunk in alone for value in chunk.mask.tolist()]


def test_a_text_of_many_pieces_is_hashed_once(write_rows, tokenizer, monkeypatch):
    """For each piece, a file that is one text of megabytes would take minutes."""
    calls, hashed = [], identity._hash
    monkeypatch.setattr(identity, "_hash", lambda value: calls.append(value) or hashed(value))
    text = "One of many words. " * 50
    encoder = TextEncoder(tokenizer, EncodingOptions(mask="text"))
    limit = LengthLimit(max_length=16, cut_prompt=False, long_text="split")
    source = open_source(write_rows({"text": text}))
    (chunk,) = tokenize(source, encoder, limit, ShapeOptions(items=Items.TEXTS), num_workers=0)
    assert len(chunk.lines) > 10
    assert calls == [text]
    assert [chunk.identities[place] for place in range(2, 3 * len(chunk.lines), 3)] == list(range(len(chunk.lines)))
