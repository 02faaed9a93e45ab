"""Chooses the attention backend of a run, once, before the engines are built.

    name, device, dtype -> backend_obstacle -> reason or None         known without running the backend
    shape, pack -> choose_backend -> BackendChoice                    on a GPU: run, compare, time; the fastest wins

A backend is correct if its outputs and gradients on random tensors equal those of SDPA in float32 within rounding,
token by token. This check rejects a fast kernel that masks wrongly (no documentation promises lower-right alignment),
does not compile, or recompiles for each length, before training starts.
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
from minimind.model.packed_attention import (
    BACKENDS,
    FLEX,
    NATIVE,
    SDPA,
    VARLEN,
    Backend,
    PackSegments,
    Segments,
    sdpa_by_segment,
)

# Runs a function several times and returns the milliseconds of one run.
Timer = Callable[[Callable[[], object]], float]

# Packs for the check. Short and empty parts make a mask visible that is wrong by one position. The packs have more
# different numbers of blocks of 128 than torch allows recompiles, so a kernel that is compiled for each length fails
# here. The first pack has more blocks than a model has heads, because torch treats sizes that are equal in the first
# call as one symbol.
_ODD_PAIRS = ((1, 3, 5), (0, 4, 3), (7, 1, 0), (3, 0, 4), (2, 9, 1))
CHECK_PACKS: tuple[Segments, ...] = tuple((*_ODD_PAIRS, (71 * n, 31 * n + 1, 53 * n)) for n in (8, *range(8), 9))
# Tolerances, as a fraction of a token's norm: for 16 bits in epsilons of the dtype, for float32 as a number. Measured
# here: SDPA's own rounding to 16 bits changes a gradient by 0.8 epsilons, a mask that is wrong by one position by 40
# epsilons of bfloat16 or more, and the order of float32 sums changes results by about 1e-6.
_EPSILONS, _FLOAT32 = 8, 1e-4
_WARM_UP, _TIMED = 3, 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """The attention of one layer of a run's model.

    Attributes:
        heads, kv_heads: number of query heads, and of key and value heads.
        head_dim: channels of a query or key head.
        dtype, device: of query, key and value.
        dropout: probability with which attention weights are dropped in training.
        value_dim: channels of a value head; 0 means head_dim.
        kernels: whether the project's CPU kernels may be used (`--kernels`).
    """

    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    dropout: float = 0.0
    value_dim: int = 0
    kernels: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackendChoice:
    """The attention backend of a run.

    Attributes:
        name: a key of `BACKENDS`.
        lines: messages for the user: how it was chosen, and for each rejected backend the reason.
    """

    name: str
    lines: tuple[str, ...]


def backend_obstacle(name: str, device: torch.device, dtype: torch.dtype, dropout: float = 0.0) -> str | None:
    """The reason why a backend does not support this device, dtype or dropout; None if it may support them."""
    if name == NATIVE:
        return None if device.type == "cpu" and dtype == torch.bfloat16 else "it supports only bfloat16 on a CPU"
    if name == SDPA:
        return None
    if dropout:
        return f"the model has attention dropout {dropout:g}, which only SDPA supports"
    return (varlen_attention if name == VARLEN else flex_attention).obstacle(device, dtype)


def choose_backend(shape: AttentionShape, segments: Segments) -> BackendChoice:
    """The backend for a run whose packs resemble one with these segments. Backends are measured only on a GPU."""
    if shape.kernels and backend_obstacle(NATIVE, shape.device, shape.dtype) is None:
        return BackendChoice(name=NATIVE, lines=("attention over packs: the project's CPU kernel",))
    if shape.device.type != "cuda":
        return BackendChoice(name=SDPA, lines=("attention over packs: torch's SDPA, segment by segment",))
    obstacles = {
        name: backend_obstacle(name, shape.device, shape.dtype, shape.dropout) for name in (SDPA, VARLEN, FLEX)
    }
    candidates = {name: BACKENDS[name] for name, reason in obstacles.items() if reason is None}
    rejected = {name: reason for name, reason in obstacles.items() if reason is not None}
    return choose_fastest(shape, segments, candidates, cuda_milliseconds, rejected)


def choose_fastest(
    shape: AttentionShape,
    segments: Segments,
    candidates: Mapping[str, Backend],
    timer: Timer,
    rejected: Mapping[str, str] | None = None,
) -> BackendChoice:
    """The fastest of the candidates that agree with SDPA; SDPA if none agrees.

    Args:
        segments: the pack over which forward and backward of one layer are timed.
        candidates: backends by name.
        timer: measures a function.
        rejected: backends that are no candidates, with the reasons, for the messages.

    Raises:
        ConfigError: a candidate has left the GPU unusable for this process.
    """
    problems, times = dict(rejected or {}), dict[str, float]()
    tokens = sum(map(sum, segments))
    for name, backend in candidates.items():
        try:
            problem = disagreement(shape, backend, (*CHECK_PACKS, segments))
            if problem is None:
                times[name] = timer(
                    functools.partial(_results, backend, _random(shape, tokens), PackSegments(segments))
                )
        except Exception as error:  # noqa: BLE001 - compilers and kernels raise any type; SDPA remains
            problem = _failure(name, error, shape.device)
        if problem is not None:
            problems[name] = problem
    name = min(times, key=times.__getitem__, default=SDPA)
    measured = ", ".join(f"{other} {ms:.2f} ms" for other, ms in times.items()) or "no backend could be measured"
    message = f"attention over packs: {name} ({measured}; forward and backward of one layer over {tokens} tokens)"
    reasons = (f"  {other} is not used: {reason}" for other, reason in problems.items())
    return BackendChoice(name=name, lines=(message, *reasons))


def check_backend(shape: AttentionShape, name: str, segments: Segments) -> str | None:
    """The reason why a backend cannot be used, found by running it on random tensors; None if it agrees with SDPA.

    Raises:
        ConfigError: the backend has left the GPU unusable for this process.
    """
    if problem := backend_obstacle(name, shape.device, shape.dtype, shape.dropout):
        return problem
    if name == NATIVE and not shape.kernels:
        return "it is a CPU kernel, and --kernels torch excludes these"
    if name in (SDPA, NATIVE):  # SDPA is the reference of this check; unit tests compare the CPU kernel with it
        return None
    try:
        return disagreement(shape, BACKENDS[name], (*CHECK_PACKS, segments))
    except Exception as error:  # noqa: BLE001 - as above
        return _failure(name, error, shape.device)


def disagreement(shape: AttentionShape, backend: Backend, packs: Sequence[Segments]) -> str | None:
    """A message about the first result that differs from SDPA's in float32 by more than rounding; None if all agree."""
    tolerance = _FLOAT32 if shape.dtype == torch.float32 else _EPSILONS * torch.finfo(shape.dtype).eps
    for segments in packs:
        tensors, pack = _random(shape, sum(map(sum, segments))), PackSegments(segments)
        exact = _results(sdpa_by_segment, [x.float() for x in tensors], pack)
        got = _results(backend, tensors, pack)
        with torch.no_grad():  # as the reference model calls it: without gradients a kernel may take another path
            inference = backend(tensors[0], tensors[1], tensors[2], pack, shape.head_dim**-0.5)
        compared = zip(
            ("output", "query gradient", "key gradient", "value gradient", "output without gradients"),
            (*got, inference),
            (*exact, exact[0]),
            strict=True,
        )
        for result, one, other in compared:
            difference = _difference(one, other)
            if not difference <= tolerance:  # written so that NaN fails too
                return (
                    f"its {result} differs from SDPA's in float32 by {difference:.2g} of a token's norm; rounding "
                    f"explains at most {tolerance:.2g} ({sum(map(sum, segments))} tokens)"
                )
    return None


def cuda_milliseconds(run: Callable[[], object]) -> float:
    """Median milliseconds of several runs after a warm-up, measured with events on the GPU."""
    for _ in range(_WARM_UP):
        run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(_TIMED + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in itertools.pairwise(marks))


def _failure(name: str, error: Exception, device: torch.device) -> str:
    """The exception of a backend as one line.

    Raises:
        ConfigError: the GPU is unusable for this process. After an illegal memory access, for example, CUDA reports the
            same error from each later call, so no other backend could run.
    """
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except RuntimeError as broken:
            raise ConfigError(
                f"the check of {name} attention left the GPU unusable for this process ({_brief(broken)}); start again "
                "with --attention sdpa"
            ) from error
    return _brief(error)


def _brief(error: Exception) -> str:
    # Two lines, because the first line of a compiler's error only names the compiler.
    lines = " ".join(str(error).split("\n")[:2]).strip()
    return f"{type(error).__name__}: {lines[:200]}" if lines else type(error).__name__


def _random(shape: AttentionShape, tokens: int) -> list[Tensor]:
    """Query (1, heads, T, D), key and value (1, kv heads, T, D), and a gradient of the output (1, T, heads, D)."""
    generator = torch.Generator(shape.device).manual_seed(tokens)
    value_dim = shape.value_dim or shape.head_dim
    sizes = [(1, heads, tokens, shape.head_dim) for heads in (shape.heads, shape.kv_heads)]
    sizes += [(1, shape.kv_heads, tokens, value_dim), (1, tokens, shape.heads, value_dim)]
    return [torch.randn(size, generator=generator, device=shape.device).to(shape.dtype) for size in sizes]


def _results(backend: Backend, tensors: Sequence[Tensor], pack: PackSegments) -> list[Tensor]:
    """Output and gradients of query, key and value, each with tokens before heads: (1, T, heads, D)."""
    leaves = [x.detach().requires_grad_() for x in tensors[:3]]
    out = backend(leaves[0], leaves[1], leaves[2], pack, leaves[0].shape[-1] ** -0.5)
    return [out.detach(), *(grad.transpose(1, 2) for grad in torch.autograd.grad(out, leaves, tensors[3]))]


def _difference(got: Tensor, exact: Tensor) -> float:
    """The largest difference of a token's vector (all heads), relative to its own norm plus the mean norm.

    The mean is added because a gradient near zero is a difference of large terms and has their rounding error.
    """
    norms = exact.flatten(2).norm(dim=-1)
    return float(((got.float() - exact).flatten(2).norm(dim=-1) / (norms + norms.mean())).max())
