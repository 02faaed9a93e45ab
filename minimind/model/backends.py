"""The rule by which a run settles what attends over its packs, once, before anything is built.

    name -> obstacle                                     what can be told without trying
    shape, pack -> choose_backend -> Choice              on a GPU: try, compare, time; the fastest that agrees

A backend agrees if values and gradients on random tensors are, token by token, those of SDPA in float32 as far as
rounding allows. A fast kernel that masks wrongly (lower-right alignment is promised nowhere), does not compile, or
compiles anew for every length is found here and left out with the reason, not in the middle of training.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from minimind.errors import ConfigError
from minimind.model import flex_attention, varlen_attention
from minimind.model.packed_attention import BACKENDS, FLEX, NATIVE, SDPA, VARLEN, Backend, PackLayout, by_segment

Segments = tuple[tuple[int, int, int], ...]
# Runs something often enough to say how many milliseconds it takes.
Clock = Callable[[Callable[[], object]], float]

# Parts of a length at which a mask that is off by one shows, empty ones among them, and packs of more numbers of
# blocks than torch forgives compiles: one that compiles for every length fails here. First a pack of more blocks than a
# model has heads: to a compiler numbers that are equal at first are one and the same.
_ODD_PAIRS = ((1, 3, 5), (0, 4, 3), (7, 1, 0), (3, 0, 4), (2, 9, 1))
CHECKED: tuple[Segments, ...] = tuple((*_ODD_PAIRS, (71 * n, 31 * n + 1, 53 * n)) for n in (8, *range(8), 9))
# SDPA's own rounding to 16 bits makes 0.8 epsilons of a gradient here, a mask that is off by one 40 and more of
# bfloat16's. In float32 sums go by their order, at some 1e-6.
_EPSILONS, _FLOAT32 = 8, 1e-4
_WARM_UP, _TIMED = 3, 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """Attention as a run asks for it: heads of queries, heads of keys and values, channels of a head; where, in what
    dtype, with how much dropout, how many channels the values have, where not as many as the keys (0: as many), and
    whether the CPU's kernels may be used (`--kernels`)."""

    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    dropout: float = 0.0
    value_dim: int = 0
    kernels: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What attends over packs.

    Attributes:
        name: of `BACKENDS`.
        lines: what to tell the user: how it was chosen, and why others were not.
    """

    name: str
    lines: tuple[str, ...]


def obstacle(name: str, device: torch.device, dtype: torch.dtype, dropout: float = 0.0) -> str | None:
    """Why a backend cannot be used there, as far as can be told without trying; None if nothing speaks against it."""
    if name == NATIVE:
        return None if device.type == "cpu" and dtype == torch.bfloat16 else "it is for bfloat16 on a CPU"
    if name == SDPA:
        return None
    if dropout:
        return f"the model drops {dropout:g} of its attention out, which only SDPA does"
    return (varlen_attention if name == VARLEN else flex_attention).obstacle(device, dtype)


def choose_backend(shape: AttentionShape, segments: Segments) -> Choice:
    """The backend for a run whose packs are like one with these segments; only a GPU has any to measure."""
    if shape.kernels and obstacle(NATIVE, shape.device, shape.dtype) is None:
        return Choice(name=NATIVE, lines=("attention over packs: the CPU's own kernel",))
    if shape.device.type != "cuda":
        return Choice(name=SDPA, lines=("attention over packs: torch's SDPA, segment by segment",))
    problems = {name: obstacle(name, shape.device, shape.dtype, shape.dropout) for name in (SDPA, VARLEN, FLEX)}
    candidates = {name: BACKENDS[name] for name, problem in problems.items() if problem is None}
    left_out = {name: problem for name, problem in problems.items() if problem is not None}
    return fastest(shape, segments, candidates, cuda_milliseconds, left_out)


def fastest(
    shape: AttentionShape,
    segments: Segments,
    candidates: Mapping[str, Backend],
    clock: Clock,
    left_out: Mapping[str, str] | None = None,
) -> Choice:
    """The rule itself: of the candidates that agree with SDPA the fastest, by a layer's forward and backward over a
    pack with these segments; SDPA if none does. `left_out`: others, and why they are no candidates."""
    problems, times = dict(left_out or {}), dict[str, float]()
    tokens = sum(map(sum, segments))
    for name, backend in candidates.items():
        try:
            problem = disagreement(shape, backend, (*CHECKED, segments))
            if problem is None:
                times[name] = clock(functools.partial(_results, backend, _random(shape, tokens), PackLayout(segments)))
        except Exception as error:  # noqa: BLE001 - compilers and kernels raise anything; there is always SDPA
            problem = _caught(name, error, shape.device)
        if problem is not None:
            problems[name] = problem
    name = min(times, key=times.__getitem__, default=SDPA)
    measured = ", ".join(f"{other} {ms:.2f} ms" for other, ms in times.items()) or "nothing could be measured"
    told = f"attention over packs: {name} ({measured}; a layer forward and backward over {tokens} tokens)"
    return Choice(name=name, lines=(told, *(f"  {other} is left out: {why}" for other, why in problems.items())))


def verify(shape: AttentionShape, name: str, segments: Segments) -> str | None:
    """Why a backend cannot be used for such a run, by trying it; None if it agrees."""
    if problem := obstacle(name, shape.device, shape.dtype, shape.dropout):
        return problem
    if name == NATIVE and not shape.kernels:
        return "--kernels torch does not use it"
    if name in (SDPA, NATIVE):  # what others are compared with; what has tests of its own
        return None
    try:
        return disagreement(shape, BACKENDS[name], (*CHECKED, segments))
    except Exception as error:  # noqa: BLE001 - as above
        return _caught(name, error, shape.device)


def disagreement(shape: AttentionShape, backend: Backend, packs: Sequence[Segments]) -> str | None:
    """How values and gradients of a backend differ from those of SDPA in float32 by more than rounding explains."""
    tolerance = _FLOAT32 if shape.dtype == torch.float32 else _EPSILONS * torch.finfo(shape.dtype).eps
    for segments in packs:
        tensors, pack = _random(shape, sum(map(sum, segments))), PackLayout(segments)
        exact = _results(by_segment, [x.float() for x in tensors], pack)
        got = _results(backend, tensors, pack)
        with torch.no_grad():  # as the reference calls it
            alone = backend(tensors[0], tensors[1], tensors[2], pack, shape.head_dim**-0.5)
        compared = zip(
            ("values", "queries' gradients", "keys' gradients", "values' gradients", "values without gradients"),
            (*got, alone),
            (*exact, exact[0]),
            strict=True,
        )
        for what, one, other in compared:
            difference = _difference(one, other)
            if not difference <= tolerance:  # NaN as well
                return (
                    f"its {what} differ from SDPA's in float32 by {difference:.2g} of a token's norm, where rounding "
                    f"explains {tolerance:.2g} ({sum(map(sum, segments))} tokens)"
                )
    return None


def cuda_milliseconds(run: Callable[[], object]) -> float:
    """The median of several runs on the GPU's own clock, after some to warm up."""
    for _ in range(_WARM_UP):
        run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(_TIMED + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in itertools.pairwise(marks))


def _caught(name: str, error: Exception, device: torch.device) -> str:
    """What a backend's failure comes to in a line.

    Raises:
        ConfigError: it broke the GPU for this process (an illegal access, say): nothing can run on it any more.
    """
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except RuntimeError as broken:
            raise ConfigError(
                f"trying {name} attention broke the GPU for this process ({_brief(broken)}): start again with "
                "--attention sdpa"
            ) from error
    return _brief(error)


def _brief(error: Exception) -> str:
    # A compiler's first line only says which compiler it is.
    lines = " ".join(str(error).split("\n")[:2]).strip()
    return f"{type(error).__name__}: {lines[:200]}" if lines else type(error).__name__


def _random(shape: AttentionShape, tokens: int) -> list[Tensor]:
    """Query, key, value (1, heads, T, D), and a gradient of the output (1, T, heads, D)."""
    generator = torch.Generator(shape.device).manual_seed(tokens)
    value_dim = shape.value_dim or shape.head_dim
    sizes = [(1, heads, tokens, shape.head_dim) for heads in (shape.heads, shape.kv_heads)]
    sizes += [(1, shape.kv_heads, tokens, value_dim), (1, tokens, shape.heads, value_dim)]
    return [torch.randn(size, generator=generator, device=shape.device).to(shape.dtype) for size in sizes]


def _results(backend: Backend, tensors: Sequence[Tensor], pack: PackLayout) -> list[Tensor]:
    """Output (1, T, heads, D), and the gradients of query, key, value, the heads behind the tokens as well."""
    leaves = [x.detach().requires_grad_() for x in tensors[:3]]
    out = backend(leaves[0], leaves[1], leaves[2], pack, leaves[0].shape[-1] ** -0.5)
    return [out.detach(), *(grad.transpose(1, 2) for grad in torch.autograd.grad(out, leaves, tensors[3]))]


def _difference(got: Tensor, exact: Tensor) -> float:
    """The largest difference of a token's vector (all heads), relative to its own norm and the mean one together: a
    token whose gradient is nearly zero has the rounding of what cancelled out."""
    norms = exact.flatten(2).norm(dim=-1)
    return float(((got.float() - exact).flatten(2).norm(dim=-1) / (norms + norms.mean())).max())
