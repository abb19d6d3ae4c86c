"""A training run: phases in order, each epoch followed by a checkpoint from which an interrupted run goes on."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from torch import Tensor, nn

from structadmm.errors import UserError
from structadmm.graph import capture
from structadmm.graph.count import unread_parameters
from structadmm.progress import Reporter, SilentReporter
from train import foreach
from train.admm import Admm, Residual
from train.checkpoint import (
    Checkpoint,
    Position,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
    save_tensors,
)
from train.config import RoundConfig, TargetConfig, TrainConfig
from train.constraint import Constraint
from train.data.dataset import Dataset
from train.data.images import Images
from train.earlier import Earlier
from train.future import conflict
from train.import_path import source_of
from train.layers import Network
from train.living import FindSmaller, LivingPart
from train.loop import Loop, make_accelerator, make_optimizer
from train.masking import MaskedTraining, hard_prune
from train.rounds import Phase, RoundPlan, distilled, phases, plan_round
from train.stage_files import CHECKPOINT, DENSE, HISTORY
from train.target import Budget, as_toml, dry_run, measured_damages

_SIGTERM_STATUS = 128 + signal.SIGTERM


class TrainingRun:
    """The state of a run, from the first epoch to the last.

    Args:
        config: of the run.
        model: with its initial weights.
        dataset: loaded.
        held_out: uint8 images that sensitivity is measured on.
        out: directory of the run's files; a checkpoint in it is resumed.
        reporter: shows progress.
        find_smaller: finds the network that masks leave, for `compact`.
        teacher: a network like `model` to distil from; by default the dense network of the run.
        earlier: the run that this one goes on from; `model` has its pruned weights.

    Raises:
        UserError: the model has nothing to prune, or the checkpoint belongs to another configuration or architecture.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        dataset: Dataset,
        held_out: Images,
        out: Path,
        reporter: Reporter,
        find_smaller: FindSmaller | None = None,
        teacher: nn.Module | None = None,
        earlier: Earlier | None = None,
    ) -> None:
        self._config = config
        self._earlier = earlier
        self._teacher = teacher
        self._find_smaller = find_smaller
        self._held_out = held_out
        self._out = out
        self._accelerator = make_accelerator(config)
        self._main: bool = self._accelerator.is_main_process
        self._reporter = reporter if self._main else SilentReporter()
        graph, state = capture(model, (dataset.normalised(dataset.test_images[:2]),))
        self._graph = graph
        self._constants = {name: state[name] for name, entry in graph.state.items() if entry.kind == "constant"}
        fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        self.network = Network.of(graph, fixed)
        unused = unread_parameters(graph)
        if unused:
            self._reporter.say(
                f"warning: {', '.join(unused[:3])}{' and others' if len(unused) > 3 else ''} reach no output: "
                "they are neither pruned nor counted"
            )
        if not self.network.layers:
            raise UserError(
                f"model {config.model.entry!r} has no convolution to prune: set train.model.entry to a network that has"
            )
        self._loop = Loop(config, self._accelerator, model, dataset)
        self.model = self._loop.model
        self._parameters = dict(self.model.named_parameters())
        self._phases = phases(config)
        self.masks: dict[str, Tensor] = {}
        self.record: dict[str, Any] = {"rounds": [], "targets": {}}
        self._position = Position()
        self._rho: dict[str, float] = {}
        self._history_bytes = 0
        self._resumed: Checkpoint | None = None
        self._stop = False
        # Every round is planned before the first epoch: a mistake in the last must not cost a night.
        if earlier is not None:
            self._position = Position(global_epoch=earlier.epochs)
            self.masks = {name: mask.to(self._accelerator.device) for name, mask in earlier.masks.items()}
        for note in dry_run(config.rounds, self.network, graph, self._state(), self.masks):
            self._reporter.say(note)
        if self._main:
            for stale in out.glob(".*.tmp"):
                stale.unlink()  # half-written by a process that was killed
        if (out / CHECKPOINT).exists():
            self._resume(load_checkpoint(out / CHECKPOINT))

    @property
    def earlier_rounds(self) -> list[dict[str, Any]]:
        """What `pruning.json` says of the rounds of the runs that this one goes on from."""
        return [] if self._earlier is None else self._earlier.rounds

    @property
    def device_name(self) -> str:
        """What it trains on: `cpu`, or the GPU's name."""
        device = self._accelerator.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    @property
    def is_main_process(self) -> bool:
        """The process that writes the run's files."""
        return self._main

    def wait_for_everyone(self) -> None:
        """Return when every process has come here."""
        self._accelerator.wait_for_everyone()

    def execute(self) -> None:
        """Run all phases that are left. A SIGTERM ends the process with a checkpoint at the current step."""
        with self._sigterm_requests_a_checkpoint():
            for index in range(self._position.phase, len(self._phases)):
                self._run_phase(self._phases[index])
                self._position = replace(self._position, phase=index + 1, epoch=0, done=False)

    def _run_phase(self, phase: Phase) -> None:
        plan: RoundPlan | None = None
        admm: Admm | None = None
        config = self._config.rounds[phase.round] if phase.round >= 0 else None
        if phase.kind == "admm" and config is not None:
            plan = self._plan(phase.round, config)
            if phase.epochs and plan.constraints:
                admm = Admm(
                    self._parameters,
                    _constraints_of_update(plan, config, 0),
                    self.masks,
                    plan.rho(config),
                    removed_only=config.penalise == "removed",
                    at_projection=config.loss_at == "projection",
                )
        self._loop.living = self._without_zeros(self.model, self.masks)
        if distilled(self._config, phase) is not None and self._loop.teacher is None:
            self._loop.teacher = self._make_teacher()
        optimizer = make_optimizer(self._config.optimizer, self.model, phase.lr)
        masked = MaskedTraining(self._parameters, self.masks)
        if self._resumed is not None:
            load_optimizer_tensors(optimizer, self._parameters, self._resumed.part("optimizer"))
            if admm is not None and self._resumed.rho:
                admm.load_state(self._resumed.tensors, self._resumed.rho)
            self._resumed = None
        title = "dense" if phase.round < 0 else f"round {phase.round + 1} {phase.kind}"
        steps = self._loop.batches(0).steps
        if phase.epochs and not self._position.done:
            with self._reporter.task(f"train: {title}", phase.epochs * steps) as task:
                task.advance(self._position.epoch * steps + self._position.step)
                while self._position.epoch < phase.epochs and not self._position.done:
                    self._run_epoch(phase, plan, optimizer, admm, masked, task)
        if phase.kind == "dense":
            self._finish_dense()
        elif plan is not None:
            self._finish_admm(phase, self._settled(phase.round, plan))
        else:
            self._finish_retrain(phase)

    def _without_zeros(self, model: nn.Module, masks: Mapping[str, Tensor]) -> LivingPart | None:
        """What `masks` leave of `model`; None where it is not to be run by itself, or nothing less."""
        compact = self._config.compact
        if compact is None:
            # On a GPU the launches of the slices cost as much as small layers do.
            compact = self._accelerator.device.type == "cpu"
        if self._find_smaller is None or not compact or not masks or self._accelerator.num_processes > 1:
            return None
        # Which filters are left is found by walking the graph: many small steps, that a GPU would each be asked for.
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        state = {name: tensor.detach().cpu() for name, tensor in {**self._constants, **own}.items()}
        smaller = self._find_smaller(self._graph, state, {name: mask.cpu() for name, mask in masks.items()})
        return None if smaller is None else LivingPart(smaller, model)

    def _state(self) -> dict[str, Tensor]:
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def _plan(self, index: int, config: RoundConfig) -> RoundPlan:
        if config.target is None:
            return plan_round(config, self.network, self.masks)
        budget = Budget(config, self.network, self._graph)
        chosen = self.record["targets"].get(str(index))
        if chosen is None:
            chosen = self._agreed(self._choose(budget, config.target) if self._main else None)
            self.record["targets"][str(index)] = chosen
        return budget.plan(chosen["keeps"], self.masks)

    def _choose(self, budget: Budget, target: TargetConfig) -> dict[str, Any]:
        images = self._held_out[: target.images]
        damages = measured_damages(self.model, lambda: self._loop.inference_batches(images), self.masks, self._reporter)
        allocation = budget.allocate(self._state(), self.masks, damages)
        self._reporter.say(budget.describe(allocation.size))
        self._reporter.say(f"these rates can be pinned in place of target: {as_toml(allocation.rates)}")
        return {"keeps": allocation.keeps, "size": allocation.size, "sensitivity": allocation.sensitivity}

    def _settled(self, index: int, plan: RoundPlan) -> RoundPlan:
        chosen = self.record["targets"].get(str(index))
        if chosen is None:
            return plan
        budget = Budget(self._config.rounds[index], self.network, self._graph)
        allocation = budget.settle(chosen["keeps"], self._state(), self.masks)
        chosen["target"] = budget.record(allocation, chosen["size"])
        chosen["rates"] = allocation.rates
        if allocation.keeps != chosen["keeps"]:
            self._reporter.say(f"after ADMM, {budget.describe(allocation.size)}: {as_toml(allocation.rates)}")
        return budget.plan(allocation.keeps, self.masks)

    def _agreed(self, value: dict[str, Any] | None) -> dict[str, Any]:
        """The main process's value, in every process: sums may round differently in each."""
        values = [value]
        if self._accelerator.num_processes > 1:
            broadcast_object_list(values)
        assert values[0] is not None  # the main process has one
        return values[0]

    def _run_epoch(
        self,
        phase: Phase,
        plan: RoundPlan | None,
        optimizer: torch.optim.Optimizer,
        admm: Admm | None,
        masked: MaskedTraining,
        task: Any,
    ) -> None:
        position = self._loop.train_epoch(phase, self._position, optimizer, admm, masked, task, stop=lambda: self._stop)
        if position.step < self._loop.batches(position.global_epoch).steps:
            self._position = position
            self._checkpoint(optimizer, admm)
            self._leave()
        self._refuse_broken_weights(phase, position)
        masked.check()
        finished = position.epoch + 1
        done = False
        residuals: dict[str, Residual] = {}
        if admm is not None and plan is not None:
            config = self._config.rounds[phase.round]
            if finished % config.update_every == 0:
                residuals = self._update(phase, plan, admm, finished // config.update_every)
                limit = config.converged_residual if finished >= config.ramp_epochs else None
                done = limit is not None and max((value.primal for value in residuals.values()), default=0.0) < limit
        started = time.perf_counter()
        with admm.at_loss_point() if admm is not None else nullcontext():
            test = self._loop.evaluate()
        samples = self._loop.samples(position.global_epoch)
        line = {
            "type": "epoch",
            "phase": phase.kind,
            "round": phase.round,
            "epoch": finished,
            "loss": position.loss_sum / samples,
            "train_accuracy": 100.0 * position.correct / samples,
            "test_accuracy": test.accuracy,
            "lr": optimizer.param_groups[0]["lr"],
            "seconds": position.seconds + time.perf_counter() - started,
        }
        self._append(line)
        task.advance(0, note=f"loss {line['loss']:.3f}, test {test.accuracy:.2f} %")
        where = "dense" if phase.round < 0 else f"round {phase.round + 1} {phase.kind}"
        self._reporter.say(
            f"{where} {finished}/{phase.epochs}: loss {line['loss']:.3f}, train {line['train_accuracy']:.2f} %, "
            f"test {test.accuracy:.2f} %, {line['seconds']:.1f} s{_told(residuals)}"
        )
        self._position = replace(
            position,
            epoch=finished,
            global_epoch=position.global_epoch + 1,
            step=0,
            loss_sum=0.0,
            correct=0,
            seconds=0.0,
            done=done,
        )
        stopping = self._all_asked_to_stop()
        if stopping or self._position.global_epoch % self._config.checkpoint_every == 0:
            self._checkpoint(optimizer, admm)
        if stopping:
            self._leave()

    def _update(self, phase: Phase, plan: RoundPlan, admm: Admm, update: int) -> dict[str, Residual]:
        config = self._config.rounds[phase.round]
        rho = admm.rho
        residuals = admm.update(config.rho_growth, config.rho_max, _constraints_of_update(plan, config, update))
        self._append(
            {
                "type": "residuals",
                "round": phase.round,
                "update": update,
                "rho": max(rho.values(), default=0.0),
                "layers": {name: asdict(value) for name, value in residuals.items()},
            }
        )
        return residuals

    def _finish_dense(self) -> None:
        if self._earlier is not None:
            self._take_over(self._earlier)
            return
        test = self._loop.evaluate()
        self.record["dense"] = {"correct": test.correct, "total": test.total}
        if self._main:
            save_tensors(self._out / DENSE, self.model.state_dict())
        self._accelerator.wait_for_everyone()
        self._reporter.say(f"dense network: {test.accuracy:.2f} % of {test.total} test images")

    def _take_over(self, earlier: Earlier) -> None:
        self.record["dense"] = earlier.dense
        if self._main:
            earlier.copy_dense(self._out)
            (self._out / HISTORY).write_bytes(earlier.history)
        self._history_bytes = len(earlier.history)
        self._accelerator.wait_for_everyone()
        self._reporter.say(
            f"going on from {earlier.stage.parent}: {earlier.epochs} epochs and {len(earlier.rounds)} rounds before"
        )

    def _finish_admm(self, phase: Phase, plan: RoundPlan) -> None:
        self.masks = hard_prune(self.model, plan.constraints, self.masks, self.network.coupling.groups)
        test = self._loop.evaluate()
        chosen = self.record["targets"].get(str(phase.round), {})
        self.record["rounds"].append(
            {
                "structure": self._config.rounds[phase.round].structure,
                "units": {name: {"before": before, "kept": kept} for name, (before, kept) in plan.units.items()},
                "unpruned": [{"layers": list(entry.layers), "reason": entry.reason} for entry in plan.unpruned],
                "hard_pruned_correct": test.correct,
                **{key: value for key, value in chosen.items() if key in ("target", "rates", "sensitivity")},
            }
        )
        self._append({"type": "hard_prune", "round": phase.round, "test_accuracy": test.accuracy, "units": plan.units})

    def _finish_retrain(self, phase: Phase) -> None:
        test = self._loop.evaluate()
        self.record["rounds"][phase.round]["retrained_correct"] = test.correct
        self.record["pruned"] = {"correct": test.correct, "total": test.total}
        structure = self._config.rounds[phase.round].structure
        self._reporter.say(f"round {phase.round + 1} ({structure}): {test.accuracy:.2f} % of {test.total} test images")

    def _make_teacher(self) -> Callable[[Tensor], Tensor]:
        teacher: nn.Module = copy.deepcopy(self.model)  # on the model's device, in its memory format
        given = self._teacher
        teacher.load_state_dict(load_file(self._out / DENSE) if given is None else given.state_dict())
        teacher.requires_grad_(False)
        teacher.eval()
        # One that was pruned itself need not compute its zeros.
        nonzero = {name: tensor != 0 for name, tensor in teacher.named_parameters()}
        return self._without_zeros(teacher, nonzero) or teacher

    def _refuse_broken_weights(self, phase: Phase, position: Position) -> None:
        # The loss of a step is that of the weights before it: the last step of an epoch shows in the weights alone.
        if not bool(foreach.norms([parameter.detach() for parameter in self._parameters.values()]).isfinite().all()):
            raise UserError(
                f"weights are not finite after step {position.step} of epoch {position.epoch + 1}, {phase.kind} phase "
                f"(learning rate up to {phase.lr:.3g}): lower the learning rate"
            )

    def _checkpoint(self, optimizer: torch.optim.Optimizer, admm: Admm | None) -> None:
        if self._main:
            names: Mapping[Tensor, str] = {parameter: name for name, parameter in self._parameters.items()}
            tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
            tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(optimizer, names).items()}
            tensors |= {f"mask.{name}": value for name, value in self.masks.items()}
            if admm is not None:
                tensors |= admm.state()
            save_checkpoint(
                self._out / CHECKPOINT,
                Checkpoint(
                    position=self._position,
                    tensors=tensors,
                    rho=admm.rho if admm is not None else {},
                    config=self._config.model_dump(mode="json"),
                    threads=torch.get_num_threads(),
                    history_bytes=self._history_bytes,
                    record=self.record,
                ),
            )
        self._accelerator.wait_for_everyone()

    def _resume(self, checkpoint: Checkpoint) -> None:
        path = self._out / CHECKPOINT
        different = conflict(checkpoint.config, self._config.model_dump(mode="json"), checkpoint.position.phase)
        if different is not None:
            raise UserError(
                f"{path} belongs to another configuration (train.{different} differs): restore it, or delete "
                f"{self._out} to start over"
            )
        try:
            self.model.load_state_dict(checkpoint.part("model"))
        except RuntimeError as error:
            problem = str(error).replace("\n", " ").replace("\t", " ")
            raise UserError(f"{path} is of another architecture ({problem[:200]}): delete it to start over") from error
        device = self._accelerator.device
        self.masks = {name: mask.to(device) for name, mask in checkpoint.part("mask").items()}
        self.record = checkpoint.record
        self._position = checkpoint.position
        self._history_bytes = checkpoint.history_bytes
        self._resumed = checkpoint
        history = self._out / HISTORY
        size = history.stat().st_size if history.exists() else 0
        if size < checkpoint.history_bytes:
            raise UserError(f"{history} is shorter than its checkpoint says: delete {self._out} to start over")
        if self._main and size > checkpoint.history_bytes:
            # Lines after the checkpoint are of epochs that are done again.
            with history.open("r+b") as stream:
                stream.truncate(checkpoint.history_bytes)
        self._reporter.say(f"resuming after {checkpoint.position.global_epoch} epochs from {path}")
        for entry in (self._config.model.entry, self._config.data.name):
            source = source_of(entry)
            if source is not None and source.stat().st_mtime > path.stat().st_mtime:
                self._reporter.say(f"warning: {source} was changed since; the run goes on with {entry} as it is now")

    def _append(self, line: dict[str, Any]) -> None:
        if not self._main:
            return
        if line["round"] >= 0:
            line = {**line, "round": line["round"] + len(self.earlier_rounds)}
        data = (json.dumps(line, allow_nan=False) + "\n").encode()
        with (self._out / HISTORY).open("r+b" if self._history_bytes else "wb") as stream:
            stream.seek(self._history_bytes)
            stream.write(data)
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
        self._history_bytes += len(data)

    @contextmanager
    def _sigterm_requests_a_checkpoint(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may install handlers
            return

        def request(_signal: int, _frame: object) -> None:
            self._stop = True

        before = signal.signal(signal.SIGTERM, request)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _all_asked_to_stop(self) -> bool:
        if self._accelerator.num_processes == 1:
            return self._stop
        asked = torch.tensor(int(self._stop), device=self._accelerator.device)
        return int(self._accelerator.reduce(asked, reduction="sum")) > 0

    def _leave(self) -> None:
        self._reporter.say("stopped by SIGTERM after a checkpoint: the same command goes on from it")
        raise SystemExit(_SIGTERM_STATUS)


def _constraints_of_update(plan: RoundPlan, config: RoundConfig, update: int) -> tuple[Constraint, ...]:
    """What Z satisfies from update `update` on (0 is the start of the phase) to the next."""
    if config.ramp_epochs == 0:
        return plan.constraints
    return plan.ramped((update + 1) * config.update_every / config.ramp_epochs)


def _told(residuals: Mapping[str, Residual]) -> str:
    if not residuals:
        return ""
    worst = max(residuals, key=lambda name: residuals[name].primal)
    dual = math.hypot(*(value.dual for value in residuals.values()))
    return f", residuals: primal up to {residuals[worst].primal:.3f} ({worst}), dual {dual:.3g}"
