"""The policy: the model that trains, in a DeepSpeed engine.

    batch -> score -> (K,) log-probs with a gradient -> (objective) -> backward -> step

DeepSpeed owns accumulation, clipping, precision, the optimizer and the schedule's stepping. Its ZeRO-1/2 optimizer is
patched to make fewer passes over 16-bit gradients (patches/first_step.py); nothing else here touches gradients. The
policy tells DeepSpeed which micro-batch is the last of a global step, because their number may vary from step to step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_local_fp32_param,
)
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from minimind.data.packs import Batch
from minimind.engine.build import build_scorer, choose_trained, own_range, own_share, transformer_blocks
from minimind.engine.ds_config import ResolvedConfig
from minimind.engine.ds_optimizer import ADAMW_8BIT, MUON, kind_of, make_8bit, muon_obstacle
from minimind.engine.ds_zero import fit_bucket
from minimind.engine.monitor import RunMonitor
from minimind.engine.patches.first_step import patch_optimizer
from minimind.engine.patches.partitions import full_numel
from minimind.engine.patches.registry import select_patches
from minimind.errors import ConfigError, TrainingError
from minimind.model.dropout import turn_off_dropout
from minimind.model.packed_attention import NATIVE
from minimind.ranks.world import World
from minimind.weights.adapters import AdapterSource
from minimind.weights.construction import restore_computed_buffers
from minimind.weights.sources import WeightSource


class Policy:
    """The model that trains.

    Args:
        source: start weights.
        resolved: the policy's DeepSpeed configuration.
        learning_rate_factor: global step (from 1) -> factor of the learning rate.
        world: the ranks.
        attention: attention backend over packs, a name of `packed_attention.BACKENDS`.
        on_progress: called after each tensor while weights are read, set or gathered.
        adapters: adapters that train instead of the weights; None: the weights train.
        keep_start: keep the start adapter too, frozen, for the reference.

    Attributes:
        has_adapters: adapters train instead of the weights.
        is_compiled: its blocks are compiled.
        frozen: name of each part that a text does not reach -> its number of tensors.
    """

    def __init__(
        self,
        source: WeightSource,
        resolved: ResolvedConfig,
        learning_rate_factor: Callable[[int], float],
        world: World,
        attention: str = NATIVE,
        on_progress: Callable[[], object] = lambda: None,
        adapters: AdapterSource | None = None,
        keep_start: bool = False,
    ) -> None:
        config = resolved.settings.config
        dtype = getattr(torch, config.optimisation.dtype)
        patches = select_patches(config.engine.disable_patches, speaks=world.is_main)
        coefficient = config.model.router_aux_loss_coef
        scorer = build_scorer(source, resolved.values, dtype, world, attention, patches, on_progress, coefficient)
        if not config.model.dropout:
            turn_off_dropout(scorer.model)
        self.frozen = choose_trained(scorer.model, resolved.stage, adapters, keep_start)
        if config.engine.gradient_checkpointing:
            # Newer transformers have renamed the method. Reentrant checkpointing loses the auxiliary loss's gradient.
            old = scorer.model.gradient_checkpointing_enable
            getattr(scorer.model, "activation_checkpointing_enable", old)({"use_reentrant": False})
        trained = [p for p in scorer.parameters() if p.requires_grad]
        kind = kind_of(resolved.values)
        if kind == MUON and (obstacle := muon_obstacle(scorer.model)):
            raise ConfigError(obstacle, agreed=True)
        # A ZeRO-3 parameter has no elements here, but its full size.
        values = fit_bucket(resolved.values, sum(full_numel(p) for p in trained))
        optimizer = make_8bit(values.pop("optimizer")["params"]) if kind == ADAMW_8BIT else None
        self.engine, *_ = deepspeed.initialize(
            model=scorer,
            model_parameters=trained,
            config=values,
            optimizer=optimizer,
            # LambdaLR calls this with the number of finished steps; global steps count from 1.
            lr_scheduler=lambda optimizer: LambdaLR(optimizer, lambda done: learning_rate_factor(done + 1)),
        )
        self.engine.monitor = RunMonitor(self.engine.monitor, lambda: self.engine.global_steps)
        self.stage, self.dtype, self.world = resolved.stage, config.optimisation.dtype, world
        self._source, self._adapters, self._on_progress = source, adapters, on_progress
        self.has_adapters = adapters is not None
        restore_computed_buffers(self.engine.module.model)
        if self.dtype != "float32":
            self._set_master_weights()
        patch_optimizer(self.engine.optimizer, world, patches)
        self.grad_norm = torch.zeros((), device=world.device)
        self.is_compiled = config.engine.use_compile
        if self.is_compiled:
            self._compile_blocks()

    def _set_master_weights(self) -> None:
        """Set the optimizer's float32 weights to the start values. DeepSpeed made them from rounded 16-bit weights.

        At a small learning rate an update is smaller than that rounding error.
        """
        for name, parameter in self.engine.module.model.named_parameters():
            self._on_progress()
            if not parameter.requires_grad:
                continue  # the optimizer does not have it
            # A memory-mapped tensor in the file's dtype. DeepSpeed copies only this rank's part of it.
            value = (self._source if self._adapters is None else self._adapters).read(name)
            if self.stage < 3:
                safe_set_full_fp32_param(parameter, value)
                continue
            # DeepSpeed's setter of whole tensors fails if the number of ranks does not divide their size.
            share = own_share(value, self.world)
            padding = -(-value.numel() // self.world.size) - share.numel()
            safe_set_local_fp32_param(parameter, functional.pad(share, (0, padding)) if padding else share)

    def _compile_blocks(self) -> None:
        """Compile each transformer block separately.

        Blocks have the same code, so one compilation serves all. Lengths are symbolic, because every pack has another.

        Raises:
            ConfigError: the model class does not name its blocks.
        """
        model = self.engine.module.model
        blocks = transformer_blocks(model)
        if not blocks:
            raise ConfigError(f"--use_compile 1: {type(model).__name__} does not name its blocks; use 0")
        for block in blocks:
            block.compile(dynamic=True)

    @property
    def monitor(self) -> RunMonitor:
        """The engine's monitor: `write_events([(tag, value, step)])`."""
        return self.engine.monitor

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next optimizer step."""
        return self.engine.get_lr()[0]

    def score(self, batch: Batch, distributions: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probs of a batch's targets, (K,) float32, and the auxiliary loss.

        Args:
            distributions: add the two columns of `PairScorer.distributions` to the log-probs.
        """
        self.engine.module.distributions = distributions
        try:
            return self.engine(batch)
        finally:
            self.engine.module.distributions = False

    def add_collisions(self) -> None:
        """From now on log-probs have a column more, see `PairScorer.forward`."""
        self.engine.module.collisions = True

    @torch.no_grad()
    def look_ahead(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Log-probs of the targets of several batches, (K,) float32 each, without gradient and in eval mode."""
        self.engine.eval()
        log_probs = [self.engine(batch)[0] for batch in batches]
        self.engine.train()
        return log_probs

    @torch.no_grad()
    def probe(self, batch: Batch, training: bool = False) -> Tensor:
        """Log-probs of a batch's targets, (K,) float32, of a model that may fail; the engine is usable afterwards.

        Args:
            training: compute in train mode, else in eval mode.
        """
        self.engine.train(training)
        try:
            return self.engine(batch.to_device(self.world.device))[0]
        except Exception:
            if self.stage == 3:
                # The hooks that release a module's weights have not run for the modules that failed.
                self.engine.empty_partition_cache()
            raise
        finally:
            self.engine.train()

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate the gradient of one micro-batch's share of a global step's loss.

        Args:
            loss: scalar; the shares of a step's micro-batches add up to the step's loss.
            last: this is the step's last micro-batch.
        """
        self.engine.set_gradient_accumulation_boundary(last)
        # The loss is this micro-batch's share already. DeepSpeed would divide it by accumulation_steps, but a token
        # budget makes other numbers of micro-batches.
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> None:
        """End a micro-batch. After the last one of a global step the optimizer steps and `grad_norm` is set.

        Raises:
            TrainingError: on every rank, before any weight changes, if the gradient is not finite. Not in float16,
                where DeepSpeed skips such a step and lowers the loss scale.
        """
        boundary = self.engine.is_gradient_accumulation_boundary()
        if boundary and self.stage == 0:
            # Here, in float32, DeepSpeed computes and checks no norm. Gradients are complete and reduced.
            grads = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
            self.grad_norm = torch.nn.utils.get_total_norm(grads)
            if not self.grad_norm.isfinite():
                raise _not_finite()
        skipped = self.engine.skipped_steps
        self.engine.step()
        if boundary and self.stage > 0:
            norm = self.engine.get_global_grad_norm()
            self.grad_norm = torch.as_tensor(norm, dtype=torch.float32, device=self.world.device)
            # ZeRO's optimizers take a norm that is not finite for an overflow, and skip the step.
            if self.dtype != "float16" and self.engine.skipped_steps > skipped:
                raise _not_finite()

    def train(self) -> None:
        self.engine.train()

    def eval(self) -> None:
        self.engine.eval()

    def full_state(self) -> dict[str, Tensor]:
        """The float32 weights on rank 0's CPU, by the model's own names; empty on other ranks. All ranks must call.

        They are the optimizer's float32 weights, because bf16 weights do not contain small updates. Of a policy with
        adapters they are the adapters' (`AdapterSource`'s names), and the weights have not changed.
        """
        model = self.engine.module.model
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        buffers = dict(model.named_buffers())
        state = {}
        for name in self._source.shapes() if self._adapters is None else trained:
            self._on_progress()
            if name in trained:
                full = safe_get_full_fp32_param(trained[name])
                # At stage 0 in float32 there is no separate float32 copy: the parameter itself is the weight.
                tensor = trained[name] if full is None else full
            elif name in buffers:
                tensor = buffers[name]
            elif self.world.is_main:
                # Frozen, so it has not changed. Under ZeRO-3 no rank has the whole of it.
                tensor = self._source.read(name)
            if self.world.is_main:
                state[name] = tensor.detach().to("cpu", torch.float32, copy=True)
        return state

    def own_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name of each trained parameter, and this rank's ZeRO-3 share of its float32 weights, (n,).

        All ranks must call. Whatever the policy's stage is, the share is that of a ZeRO-3 shard. Below stage 3 each
        parameter is gathered for it, one at a time.
        """
        for name, parameter in self.engine.module.model.named_parameters():
            if not parameter.requires_grad:
                continue
            if self.stage == 3:
                start, stop = own_range(full_numel(parameter), self.world)
                # The last ranks' shares end with padding.
                yield name, safe_get_local_fp32_param(parameter)[: stop - start]
                continue
            # At stage 0 in float32 the parameter itself is the weight.
            full = safe_get_full_fp32_param(parameter)
            yield name, own_share((parameter if full is None else full).detach(), self.world)

    def close(self) -> None:
        """Wait for monitors that upload in the background."""
        if not self.world.is_main:
            return
        self.monitor.close()
        if self.monitor.inner.wandb_monitor is not None:
            import wandb

            wandb.finish()
        if self.monitor.inner.comet_monitor is not None:
            self.monitor.inner.comet_monitor.experiment.end()


def _not_finite() -> TrainingError:
    return TrainingError("the gradient is not finite", agreed=True)
