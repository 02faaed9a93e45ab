"""The policy: the model that trains, in a DeepSpeed engine.

    batch -> score -> (K,) log-probs with a gradient -> (objective) -> backward -> step

DeepSpeed owns accumulation, clipping, precision, the optimizer and the schedule's stepping. What it does to 16-bit
gradients under ZeRO 1 and 2 takes fewer passes here, see shortcuts.py; else nothing is done to gradients but by
DeepSpeed. It is told which micro-batch is a step's last, since their number may vary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param, safe_set_local_fp32_param
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from minimind.data.packs import PairBatch
from minimind.engine.build import build_scorer, own_share, transformer_blocks
from minimind.engine.ds_config import ResolvedConfig
from minimind.engine.ds_zero import fit_bucket
from minimind.engine.patches.optimizer import take_shortcuts
from minimind.errors import ConfigError, TrainingError
from minimind.model.packed_attention import NATIVE
from minimind.ranks.process import World
from minimind.weights.empty import restore_buffers
from minimind.weights.sources import WeightSource


class Policy:
    """The model that trains.

    Args:
        source: start weights.
        resolved: the policy's DeepSpeed configuration.
        learning_rate_factor: global step (from 1) -> factor of the learning rate.
        world: the ranks.
        attention: what attends over packs, a name of `packed_attention.BACKENDS`.
    """

    def __init__(
        self,
        source: WeightSource,
        resolved: ResolvedConfig,
        learning_rate_factor: Callable[[int], float],
        world: World,
        attention: str = NATIVE,
    ) -> None:
        config = resolved.settings.config
        scorer = build_scorer(source, resolved.values, getattr(torch, config.optimisation.dtype), world, attention)
        if config.engine.gradient_checkpointing:
            # transformers has renamed it. Reentrant checkpointing would lose the gradient of the auxiliary loss.
            old = scorer.model.gradient_checkpointing_enable
            getattr(scorer.model, "activation_checkpointing_enable", old)({"use_reentrant": False})
        trained = [p for p in scorer.parameters() if p.requires_grad]
        self.engine, *_ = deepspeed.initialize(
            model=scorer,
            model_parameters=trained,
            # A ZeRO-3 parameter is empty here; DeepSpeed keeps its size.
            config=fit_bucket(resolved.values, sum(getattr(p, "ds_numel", p.numel()) for p in trained)),
            # LambdaLR counts from 0 and is asked once more after each step; global steps count from 1.
            lr_scheduler=lambda optimizer: LambdaLR(optimizer, lambda done: learning_rate_factor(done + 1)),
        )
        self.stage = resolved.stage
        self.world = world
        self.dtype = config.optimisation.dtype
        self._names = list(source.shapes())
        restore_buffers(self.engine.module.model)
        if self.dtype != "float32":
            self._set_master_weights(source)
        take_shortcuts(self.engine.optimizer, alone=world.size == 1)
        self.grad_norm = torch.zeros((), device=world.device)
        if config.engine.use_compile:
            self._compile_blocks()

    def _set_master_weights(self, source: WeightSource) -> None:
        """Give the optimizer's float32 weights the source's own values: DeepSpeed made them of the rounded 16-bit ones.

        Updates at a small learning rate are smaller than what the rounding took away.
        """
        for name, parameter in self.engine.module.model.named_parameters():
            self.world.watch.tick()
            # Left where it is mapped, in its own dtype: DeepSpeed copies this rank's part to where it belongs.
            value = source.read(name)
            if self.stage < 3:
                safe_set_full_fp32_param(parameter, value)
                continue
            # DeepSpeed's setter of whole tensors fails where ranks do not divide them.
            share = own_share(value, self.world)
            padding = -(-value.numel() // self.world.size) - share.numel()
            safe_set_local_fp32_param(parameter, functional.pad(share, (0, padding)) if padding else share)

    def _compile_blocks(self) -> None:
        """Compile each transformer block on its own. Blocks are alike, so one compile serves all; lengths change with
        every pack, so they are symbolic.

        Raises:
            ConfigError: the model does not say what its blocks are.
        """
        model = self.engine.module.model
        blocks = transformer_blocks(model)
        if not blocks:
            raise ConfigError(f"--use_compile 1: {type(model).__name__} does not say what its blocks are; use 0")
        for block in blocks:
            block.compile(dynamic=True)

    @property
    def monitor(self) -> Any:
        """DeepSpeed's monitor: `write_events([(tag, value, step)])`."""
        return self.engine.monitor

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next optimizer step."""
        return self.engine.get_lr()[0]

    def score(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Log-probs of a batch's targets, (K,) float32, and the auxiliary loss."""
        return self.engine(batch)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate the gradient of one micro-batch's share of a step's loss; `last`: the step has no more of them."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> None:
        """End a micro-batch; after a step's last the optimizer steps, and `grad_norm` is that step's.

        Raises:
            TrainingError: on every rank, before any weight changes, if the gradient is not finite. In float16 that is
                DeepSpeed's loss scaling at work, and left alone.
        """
        boundary = self.engine.is_gradient_accumulation_boundary()
        if boundary and self.stage == 0:
            # DeepSpeed keeps no norm at stage 0 in float32, and checks none; the gradients are whole and reduced here.
            grads = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
            self.grad_norm = torch.nn.utils.get_total_norm(grads)
            if self.dtype != "float16" and not self.grad_norm.isfinite():
                raise _not_finite()
        skipped = self.engine.skipped_steps
        self.engine.step()
        if boundary and self.stage > 0:
            norm = self.engine.get_global_grad_norm()
            self.grad_norm = torch.as_tensor(norm, dtype=torch.float32, device=self.world.device)
            if self.dtype != "float16" and self.engine.skipped_steps > skipped:
                raise _not_finite()

    def train(self) -> None:
        self.engine.train()

    def eval(self) -> None:
        self.engine.eval()

    def full_state(self) -> dict[str, Tensor]:
        """The weights in float32 on rank 0's CPU, under the model's own names; empty elsewhere. All ranks must call.

        Taken from the optimizer's master weights: small updates are there and not in bf16 weights.
        """
        model = self.engine.module.model
        parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        state = {}
        for name in self._names:
            self.world.watch.tick()
            tensor = parameters[name] if name in parameters else buffers[name]
            # Without an optimizer that shards (stage 0, float32) the parameter is its own master.
            full = safe_get_full_fp32_param(tensor) if name in parameters else None
            if self.world.is_main:
                state[name] = (tensor if full is None else full).detach().to("cpu", torch.float32, copy=True)
        return state

    def close(self) -> None:
        """Let monitors that upload in the background finish."""
        if not self.world.is_main:
            return
        if self.monitor.wandb_monitor is not None:
            import wandb

            wandb.finish()
        if self.monitor.comet_monitor is not None:
            self.monitor.comet_monitor.experiment.end()


def _not_finite() -> TrainingError:
    error = TrainingError("the gradient is not finite")
    error.agreed = True
    return error
