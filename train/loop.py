"""One epoch of training and one evaluation, on Hugging Face `accelerate`."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

# Its functions take the process group of the moment of import as their default argument and keep it for ever: imported
# before there is a group, it keeps none.
import torch.distributed.nn.functional
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional

from structadmm.errors import UserError
from structadmm.progress import Task
from train.admm import Admm
from train.batch_norm import synchronise_batch_norms
from train.checkpoint import Position
from train.config import DistillConfig, OptimizerConfig, TrainConfig
from train.data.batches import EpochBatches, derived_seed
from train.data.dataset import Dataset
from train.data.images import Images, select
from train.living import LivingPart
from train.masking import MaskedTraining
from train.rounds import Phase, distilled, mixed

_EVALUATION_BATCH = 500
# On a GPU reading a loss waits for the queue, so that is done once in a while; the failed step is named all the same.
_GPU_LOSS_CHECK_STEPS = 20


@contextmanager
def reproducible(threads: int, deterministic: bool = True) -> Iterator[None]:
    """A fixed thread count and deterministic kernels, or the fastest ones, for as long as the context is open.

    Sums over another number of threads round differently. Where a GPU has no deterministic kernel, PyTorch warns.
    """
    before = (
        torch.get_num_threads(),
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=torch.cuda.is_available())
    # Filling memory that is about to be written is a debugging aid and costs bandwidth.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.benchmark = before[1]
        torch.use_deterministic_algorithms(before[2], warn_only=before[3])
        torch.utils.deterministic.fill_uninitialized_memory = before[4]  # type: ignore[attr-defined]


@contextmanager
def process_group() -> Iterator[None]:
    """Shut the group of processes down at the end, however it comes, and its threads with it.

    A thread of Gloo's that drops a tensor while the interpreter shuts down aborts a process that has done all its work.
    The threads end with the group's last reference, which the wrapped network holds: whoever trains lets go of it
    inside this context.
    """
    try:
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            gc.collect()  # a module wrapped for several processes refers to itself


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The process's place among its peers, its device and its precision.

    The state that `accelerate` keeps for the life of a process is dropped first: two runs of one process may differ in
    precision.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    return Accelerator(cpu=on_cpu, mixed_precision="bf16" if config.precision == "bf16" else "no")


def make_optimizer(config: OptimizerConfig, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """A fresh optimizer over all trainable parameters."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.kind == "sgd":
        return torch.optim.SGD(
            parameters,
            lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            foreach=True,
        )
    kind = torch.optim.Adam if config.kind == "adam" else torch.optim.AdamW
    return kind(parameters, lr, weight_decay=config.weight_decay, foreach=True)


def learning_rate(phase: Phase, epochs_done: float) -> float:
    """The learning rate at a point of a phase: a pure function, so that resuming needs no scheduler state.

    Args:
        phase: what is trained.
        epochs_done: of the phase, fractions included.
    """
    segment = min(phase.restart_every, phase.epochs)
    into_segment = epochs_done % segment
    warmup = min(phase.warmup_epochs, segment / 2)
    if epochs_done < warmup:
        # Rises to the full rate at the end of the warm-up; never zero, or the first step would be lost.
        return phase.lr * max(epochs_done / warmup, 1e-2)
    progress = (into_segment - warmup) / (segment - warmup) if epochs_done < segment else into_segment / segment
    if phase.schedule == "constant":
        return phase.lr
    if phase.schedule == "cosine":
        return phase.lr * 0.5 * (1 + math.cos(math.pi * progress))
    return phase.lr * (1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01)


@dataclass(frozen=True)
class Evaluation:
    """How many of the test images are classified correctly."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """Percent."""
        return 100.0 * self.correct / self.total


class Loop:
    """A model, its data and its processes.

    Args:
        config: of the run.
        accelerator: from `make_accelerator`.
        model: moved to the accelerator's device; its parameters are trained in place.
        dataset: moved there, too.
    """

    def __init__(self, config: TrainConfig, accelerator: Accelerator, model: nn.Module, dataset: Dataset) -> None:
        device = accelerator.device
        if config.batch_size < accelerator.num_processes:
            raise UserError(
                f"train.batch_size = {config.batch_size} leaves some of {accelerator.num_processes} processes without "
                "an image: raise it, or start fewer processes"
            )
        self._config = config
        self._accelerator = accelerator
        self._format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = model.to(device=device, memory_format=self._format)  # type: ignore[call-overload]
        if accelerator.num_processes > 1:
            synchronise_batch_norms(self.model)
        self._prepared: nn.Module = accelerator.prepare_model(self.model)
        self.dataset = replace(
            dataset,
            train_images=dataset.train_images.to(device),
            train_labels=dataset.train_labels.to(device),
            test_images=dataset.test_images.to(device),
            test_labels=dataset.test_labels.to(device),
        )
        if self.batches(0).steps == 0:
            raise UserError(
                f"{len(dataset.train_labels)} training images are left, expected at least "
                f"{max(2, accelerator.num_processes)}: lower train.data.held_out, or give more images"
            )
        self.teacher: Callable[[Tensor], Tensor] | None = None
        self.living: LivingPart | None = None

    def batches(self, global_epoch: int, mix: float | None = None) -> EpochBatches:
        """This process's batches of an epoch, blended if `mix` is given."""
        return EpochBatches(
            self.dataset,
            self._config.batch_size,
            seed=self._config.seed,
            epoch=global_epoch,
            augment=self._config.data.augment,
            mix=mix,
            rank=self._accelerator.process_index,
            processes=self._accelerator.num_processes,
        )

    def train_epoch(
        self,
        phase: Phase,
        position: Position,
        optimizer: torch.optim.Optimizer,
        admm: Admm | None,
        masked: MaskedTraining,
        task: Task,
        stop: Callable[[], bool],
    ) -> Position:
        """Train from `position` to the end of its epoch, or until `stop` asks for a checkpoint.

        Returns:
            The position reached; its `step` equals the number of steps when the epoch is complete.

        Raises:
            UserError: the loss is not finite; names the step and the learning rate.
        """
        started = time.perf_counter()
        distill, mix = distilled(self._config, phase), mixed(self._config, phase)
        batches = self.batches(position.global_epoch, None if mix is None else mix.alpha)
        self.model.train()
        pending: list[Tensor] = []
        correct: Tensor | int = position.correct
        loss_sum = position.loss_sum
        every = 1 if self._accelerator.device.type == "cpu" else _GPU_LOSS_CHECK_STEPS
        step = position.step
        # A signal reaches the processes between different steps, and all must stop after the same one.
        interruptible = self._accelerator.num_processes == 1
        for images, targets in batches.batches(position.step):
            # Each step's dropout depends on its place alone, not on what this process drew before.
            torch.manual_seed(
                derived_seed(self._config.seed, position.global_epoch, step, self._accelerator.process_index)
            )
            lr = learning_rate(phase, position.epoch + step / batches.steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            with admm.at_loss_point() if admm is not None else nullcontext():
                loss, hits = self._backward(images, targets, batches.size(step), distill)
            if admm is not None:
                admm.add_penalty_gradient()
            masked.mask_gradients()
            optimizer.step()
            pending.append(loss * batches.size(step))
            correct = correct + hits
            step += 1
            if len(pending) >= every or step == batches.steps:
                loss_sum += self._checked_sum(pending, phase, position, step, optimizer)
                pending.clear()
            task.advance(1)
            if interruptible and step < batches.steps and stop():
                break
        loss_sum += self._checked_sum(pending, phase, position, step, optimizer)
        return replace(
            position,
            step=step,
            loss_sum=loss_sum,
            correct=int(correct),
            seconds=position.seconds + time.perf_counter() - started,
        )

    def samples(self, global_epoch: int) -> int:
        """Training samples of an epoch, over all processes."""
        batches = self.batches(global_epoch)
        return sum(batches.size(step) for step in range(batches.steps))

    def _backward(
        self, images: Tensor, targets: Tensor, global_size: int, distill: DistillConfig | None
    ) -> tuple[Tensor, Tensor]:
        """Accumulate the gradient of the global batch's mean loss; returns that mean and the correct predictions.

        A prediction for a blend is correct when it is the class of the greater share.
        """
        images = images.contiguous(memory_format=self._format)
        # As many in every process, whose passes wait for each other, and none of a single image: see `EpochBatches`.
        parts = max(1, min(self._config.accumulate, global_size // (2 * self._accelerator.num_processes)))
        total = torch.zeros((), device=images.device)
        hits = torch.zeros((), dtype=torch.int64, device=images.device)
        # Processes' gradients are averaged, so each scales its sum to the global mean, whatever its share was.
        scale = self._accelerator.num_processes / global_size
        micro_batches = zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True)
        for part, (inputs, wanted) in enumerate(micro_batches):
            last = part == parts - 1
            sync: AbstractContextManager[Any] = nullcontext() if last else self._accelerator.no_sync(self._prepared)
            with sync:
                logits = self._logits(inputs)
                loss = functional.cross_entropy(
                    logits, wanted, reduction="sum", label_smoothing=self._config.label_smoothing
                )
                if distill is not None and self.teacher is not None:
                    loss = (1 - distill.weight) * loss + distill.weight * self._distillation(logits, inputs, distill)
                self._accelerator.backward(loss * scale)
            total += loss.detach()
            labels = wanted if wanted.ndim == 1 else wanted.argmax(dim=1)
            hits += (logits.detach().argmax(dim=1) == labels).sum()
        if self._accelerator.num_processes > 1:
            total = self._accelerator.reduce(total, reduction="sum")
            hits = self._accelerator.reduce(hits, reduction="sum")
        return total / global_size, hits

    def _logits(self, images: Tensor) -> Tensor:
        """Of the whole network, or of what masks leave of it where that is known."""
        if self.living is None:
            # The wrapper around it is for gradients: evaluation is not synchronised.
            model = self._prepared if self.model.training else self.model
            return cast(Tensor, model(images))
        with self._accelerator.autocast():
            return self.living(images).float()

    def _distillation(self, logits: Tensor, images: Tensor, distill: DistillConfig) -> Tensor:
        assert self.teacher is not None  # the caller checked
        with torch.no_grad(), self._accelerator.autocast():
            target = self.teacher(images).float()
        T = distill.temperature
        # T^2 keeps the gradient's size independent of the temperature (Hinton et al., 1503.02531, section 2).
        divergence = functional.kl_div(
            functional.log_softmax(logits / T, dim=1),
            functional.log_softmax(target / T, dim=1),
            reduction="sum",
            log_target=True,
        )
        return divergence * T * T

    @staticmethod
    def _checked_sum(
        losses: list[Tensor], phase: Phase, position: Position, end: int, optimizer: torch.optim.Optimizer
    ) -> float:
        if not losses:
            return 0.0
        values = torch.stack(losses).double().tolist()
        for offset, value in enumerate(values):
            if not math.isfinite(value):
                step = end - len(values) + offset
                where = "the dense network" if phase.round < 0 else f"round {phase.round + 1}, {phase.kind}"
                raise UserError(
                    f"loss is {value} at step {step + 1} of epoch {position.epoch + 1} of {where} "
                    f"(learning rate {optimizer.param_groups[0]['lr']:.3g}): lower the learning rate"
                )
        return float(sum(values))

    def inference_batches(self, images: Images) -> Iterator[Tensor]:
        """Normalise uint8 images batch by batch, on the model's device and in its memory format."""
        for begin in range(0, len(images), _EVALUATION_BATCH):
            part = images[begin : begin + _EVALUATION_BATCH]
            found = self.dataset.normalised(part.to(self._accelerator.device))
            yield found.contiguous(memory_format=self._format)

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """Classify all test images in evaluation mode."""
        self.model.eval()
        total = len(self.dataset.test_labels)
        rank, processes = self._accelerator.process_index, self._accelerator.num_processes
        share = range(total * rank // processes, total * (rank + 1) // processes)
        correct = torch.zeros((), dtype=torch.int64, device=self._accelerator.device)
        chosen = torch.arange(share.start, share.stop)
        labels = torch.split(self.dataset.test_labels[share.start : share.stop], _EVALUATION_BATCH)
        batches = self.inference_batches(select(self.dataset.test_images, chosen))
        for inputs, expected in zip(batches, labels, strict=True):
            correct += (self._logits(inputs).argmax(dim=1) == expected).sum()
        if processes > 1:
            correct = self._accelerator.reduce(correct, reduction="sum")
        return Evaluation(int(correct), total)
