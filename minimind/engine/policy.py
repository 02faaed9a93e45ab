"""The policy: the model that trains, in a DeepSpeed engine.

    batch -> score -> (K,) log-probs with a gradient -> (objective) -> backward -> step

DeepSpeed owns accumulation, clipping, precision, the optimizer and the schedule's stepping; nothing here does
arithmetic of its own with gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from minimind.data.pack import PairBatch
from minimind.engine.build import build_scorer
from minimind.engine.ds_config import ResolvedConfig
from minimind.engine.process import World
from minimind.weights.sources import WeightSource, parameter_shapes


class Policy:
    """The model that trains.

    Args:
        source: start weights.
        resolved: the policy's DeepSpeed configuration.
        learning_rate_factor: global step (from 1) -> factor of the learning rate.
        world: the ranks.
    """

    def __init__(
        self,
        source: WeightSource,
        resolved: ResolvedConfig,
        learning_rate_factor: Callable[[int], float],
        world: World,
    ) -> None:
        config = resolved.settings.config
        scorer = build_scorer(source, resolved.values, getattr(torch, config.dtype), world)
        if config.gradient_checkpointing:
            # transformers has renamed it. Reentrant checkpointing would lose the gradient of the auxiliary loss.
            old = scorer.model.gradient_checkpointing_enable
            getattr(scorer.model, "activation_checkpointing_enable", old)({"use_reentrant": False})
        self.engine, *_ = deepspeed.initialize(
            model=scorer,
            model_parameters=[p for p in scorer.parameters() if p.requires_grad],
            config=resolved.values,
            # LambdaLR counts from 0 and is asked once more after each step; global steps count from 1.
            lr_scheduler=lambda optimizer: LambdaLR(optimizer, lambda done: learning_rate_factor(done + 1)),
        )
        self.stage = resolved.stage
        self.world = world
        self.grad_norm = torch.zeros((), device=world.device)
        if config.use_compile:
            self._compile_blocks()

    def _compile_blocks(self) -> None:
        """Compile each transformer block on its own, before ZeRO-3's hooks would come into the graphs.

        Blocks are alike, so one compile serves all; lengths change with every pack, so they are symbolic.
        """
        model = self.engine.module.model
        for module in model.modules():
            if type(module).__name__ in model._no_split_modules:
                module.compile(dynamic=True)

    @property
    def monitor(self) -> Any:
        """DeepSpeed's monitor: `write_events([(tag, value, step)])`."""
        return self.engine.monitor

    @property
    def model_config(self) -> Any:
        return self.engine.module.model.config

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next optimizer step."""
        return self.engine.get_lr()[0]

    def score(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Log-probs of a batch's targets, (K,) float32, and the auxiliary loss."""
        return self.engine(batch)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of one micro-batch's mean loss."""
        self.engine.backward(loss)

    def step(self) -> None:
        """End a micro-batch; DeepSpeed decides whether the optimizer steps. Then `grad_norm` is that step's."""
        boundary = self.engine.is_gradient_accumulation_boundary()
        if boundary and self.stage == 0:
            # DeepSpeed keeps no norm at stage 0 in float32; the gradients are whole and reduced here.
            grads = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
            self.grad_norm = torch.nn.utils.get_total_norm(grads)
        self.engine.step()
        if boundary and self.stage > 0:
            norm = self.engine.get_global_grad_norm()
            self.grad_norm = torch.as_tensor(norm, dtype=torch.float32, device=self.world.device)

    def train(self) -> None:
        self.engine.train()

    def eval(self) -> None:
        self.engine.eval()

    def full_state(self) -> dict[str, Tensor]:
        """The weights in float32 on rank 0's CPU, under the model's own names; empty elsewhere. All ranks must call.

        Taken from the optimizer's master weights: small updates are there and not in bf16 weights.
        """
        model = self.engine.module.model
        names = parameter_shapes(model) if self.stage < 3 else dict(model.named_parameters())
        parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        state = {}
        for name in names:
            tensor = parameters[name] if name in parameters else buffers[name]
            full = safe_get_full_fp32_param(tensor) if name in parameters else None
            value = tensor if full is None else full
            if self.world.is_main:
                state[name] = value.detach().to("cpu", torch.float32, copy=True).view(value.shape)
        return state
