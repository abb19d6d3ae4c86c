"""The `[train]` section of a configuration: what is trained, on what, and how it is pruned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

Structure = Literal["filter", "channel", "column", "nonstructured"]
Schedule = Literal["constant", "cosine", "step"]
_HELD_OUT = 0.05
CHECKSUMMED = ("cifar10", "fashion_mnist", "mnist")
"""Data sets whose publishers give checksums of the files, which `data.verify` compares."""
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


def _fits_json(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments are written into `pruning.json`, after the training: what cannot be is refused before."""
    for name, value in kwargs.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError(
                f"{name} is {value!r:.100}, expected what JSON can hold (strings, finite numbers, true or false, lists "
                "and tables of them): write it as a string, say, and convert that in the callable"
            ) from None
    return kwargs


Kwargs = Annotated[dict[str, Any], AfterValidator(_fits_json)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(_Section):
    """Which network to prune.

    Attributes:
        entry: a name from `train.models`, or `module:callable`.
        kwargs: arguments of that callable; a built-in model's `num_classes` and `in_channels` default to the data's.
        weights: state dict to start from (`.safetensors`, or a `.pt` that loads with `weights_only=True`), or nothing.
    """

    entry: str = "cifar_resnet18"
    kwargs: Kwargs = {}
    weights: Path | None = None


class DataConfig(_Section):
    """Which images to train and test on.

    Attributes:
        name: a name from `train.data`, or `module:callable` that returns a `Dataset`.
        root: folder that holds (or receives) the files; the user's cache folder by default.
        verify: refuse files whose checksum is not the published one.
        download: fetch absent files.
        augment: apply the data set's augmentation to the training images.
        held_out: fraction of the training images that are not trained on: the sensitivity of layers is measured on
            them, never on test images. By default 0.05 when a round has a `target`, else 0.
        kwargs: arguments of a `module:callable`; of `imagefolder`: `size` (224) and `memory_gib` (4.0), beyond which
            images are decoded batch by batch.
    """

    name: str = "digits"
    root: Path | None = None
    verify: bool = True
    download: bool = True
    augment: bool = True
    held_out: Fraction | None = None
    kwargs: Kwargs = {}


class OptimizerConfig(_Section):
    """The optimizer of every phase; each phase starts with a fresh one.

    Attributes:
        kind: which one.
        momentum: of SGD.
        nesterov: SGD with Nesterov's momentum.
        weight_decay: pull of the weights towards zero; pruned positions stay zero whatever it is.
    """

    kind: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OptimizerConfig:
        if self.kind == "sgd" and self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov needs momentum > 0: set nesterov = false or raise momentum")
        return self


class DenseConfig(_Section):
    """Training of the dense network, before any pruning.

    Attributes:
        epochs: how many; 0 takes the weights as they are.
        lr: highest learning rate.
        schedule: its course.
        warmup_epochs: in which it rises from zero.
    """

    epochs: Annotated[int, Field(ge=0)] = 20
    lr: Annotated[float, Field(gt=0.0)] = 0.1
    schedule: Schedule = "cosine"
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 1.0


class TargetConfig(_Section):
    """A budget for the whole network at the end of a round; the rate of every layer follows from its sensitivity.

    Met within 2 % where the size of a unit allows it, and never exceeded. The rates are printed, and recorded in
    `pruning.json`, in the form that `sparsity` takes.

    Attributes:
        measure: what the budget is about: weights of convolutions, all parameters, multiply-accumulates of one image,
            or the latency of one image by `costs`.
        reduction: how many times less than the dense network has.
        limit: an absolute budget instead, in the measure's unit (for a latency the unit of `costs`).
        costs: JSON table of what each layer costs (docs/training.md), for a latency.
        least_kept: fraction of a layer's living units that always stays.
        images: held-out images that sensitivity is measured on, at most.
    """

    measure: Literal["conv_params", "params", "macs", "latency"]
    reduction: Annotated[float, Field(gt=1.0)] | None = None
    limit: Annotated[float, Field(gt=0.0)] | None = None
    costs: Path | None = None
    least_kept: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    images: Annotated[int, Field(ge=1)] = 256

    @model_validator(mode="after")
    def _one_budget(self) -> TargetConfig:
        if (self.reduction is None) == (self.limit is None):
            raise ValueError("a target has either a reduction (such as 4.0) or a limit: give one of them")
        if self.measure == "latency" and self.costs is None:
            raise ValueError("a latency target needs costs, the table that `structadmm layer-costs` measures: give it")
        if self.measure != "latency" and self.costs is not None:
            raise ValueError(f"costs is the table of a latency target, the measure is {self.measure!r}: leave it out")
        return self


class RoundConfig(_Section):
    """One ADMM round: regularise towards a sparsity, prune hard, retrain under the mask.

    Attributes:
        structure: what is removed as a whole.
        sparsity: fraction of the units *still alive when the round starts* that it removes, so that rounds multiply:
            0.5 after 0.5 leaves a quarter. One number for every eligible layer, or layer name patterns
            (`"layer3.*"`, the first that matches counts) with a number each; layers that no pattern matches stay.
        target: a budget for the network instead of `sparsity`.
        block: kept columns come as aligned groups of this many input channels (columns only).
        multiple: kept filters or channels are rounded up to a multiple of this, as many as are alive.
        first_layer: prune the first convolution too, and filters that are coupled with its filters.
            Only for a single `sparsity` or a `target`; patterns name what they mean.
        linear: prune units that linear layers produce, too (hidden layers of a classifier).
        admm_epochs: epochs under the ADMM penalty.
        update_every: epochs between two updates of Z and U.
        ramp_epochs: of the ADMM phase, in which the sparsity of Z rises to the round's by a cubic schedule; 0, as ADMM
            is written, projects to the round's sparsity from the start (docs/training.md).
        retrain_epochs: epochs of masked retraining after the hard prune.
        penalise: `all` weights of the pruned layers, as ADMM is written, or only what is being `removed`, so that the
            others are free to make up for it (docs/training.md).
        loss_at: where the ADMM phase takes the loss: at the `weights`, as ADMM is written, or at their `projection`, so
            that what stays is trained as the network to come and units return by their gradient (docs/training.md).
            The latter with `penalise = "removed"`; `channel`, which removes filters as well, in place of `filter`.
        rho: initial penalty weight.
        rho_layers: penalty weight of layers that a name pattern matches, instead of `rho`.
        rho_growth: factor on rho at each update of Z and U.
        rho_max: rho grows no further than this.
        lr: learning rate of the ADMM phase.
        schedule: its course between two updates; it restarts at each, because the target has moved.
        retrain_lr: learning rate of the retraining.
        retrain_schedule: its course.
        converged_residual: the ADMM phase ends early once the primal residual of every layer is below this.
    """

    structure: Structure
    sparsity: Fraction | dict[str, Fraction] | None = None
    target: TargetConfig | None = None
    block: Annotated[int, Field(ge=1)] = 1
    multiple: Annotated[int, Field(ge=1)] = 1
    first_layer: bool = False
    linear: bool = False
    admm_epochs: Annotated[int, Field(ge=0)] = 10
    update_every: Annotated[int, Field(ge=1)] = 1
    ramp_epochs: Annotated[int, Field(ge=0)] = 0
    retrain_epochs: Annotated[int, Field(ge=0)] = 10
    penalise: Literal["all", "removed"] = "all"
    loss_at: Literal["weights", "projection"] = "weights"
    rho: Annotated[float, Field(gt=0.0)] = 1e-3
    rho_layers: dict[str, Annotated[float, Field(gt=0.0)]] = {}
    rho_growth: Annotated[float, Field(ge=1.0)] = 1.3
    rho_max: Annotated[float, Field(gt=0.0)] = 1.0
    lr: Annotated[float, Field(gt=0.0)] = 0.01
    schedule: Schedule = "constant"
    retrain_lr: Annotated[float, Field(gt=0.0)] = 0.01
    retrain_schedule: Schedule = "cosine"
    converged_residual: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None

    @field_validator("sparsity")
    @classmethod
    def _some_layer(cls, sparsity: float | dict[str, float] | None) -> float | dict[str, float] | None:
        if isinstance(sparsity, dict) and not sparsity:
            raise ValueError("no layer is named: give a number in [0, 1) or patterns such as {'layer3.*' = 0.5}")
        return sparsity

    @model_validator(mode="after")
    def _options_fit_the_structure(self) -> RoundConfig:
        if (self.sparsity is None) == (self.target is None):
            raise ValueError("a round has either a sparsity (such as 0.5) or a target: give one of them")
        if self.target is not None and self.structure == "nonstructured":
            raise ValueError("single weights save no filter and no column: give sparsity instead of target")
        if self.block != 1 and self.structure != "column":
            raise ValueError(f"block={self.block} is for columns, the round's structure is {self.structure!r}: drop it")
        if self.multiple != 1 and self.structure not in ("filter", "channel"):
            raise ValueError(f"multiple={self.multiple} is for filters and channels, not {self.structure!r}: drop it")
        if self.loss_at == "projection" and self.penalise != "removed":
            raise ValueError('loss_at="projection" pulls on what is removed alone: add penalise = "removed"')
        if self.loss_at == "projection" and self.structure == "filter":
            raise ValueError(
                'a filter that is gone has no gradient to return by: structure="channel" removes filters, too'
            )
        if self.ramp_epochs > self.admm_epochs:
            raise ValueError(
                f"ramp_epochs={self.ramp_epochs} must fit in admm_epochs={self.admm_epochs}: shorten the ramp"
            )
        if 0 < self.admm_epochs < self.update_every:
            raise ValueError(
                f"update_every={self.update_every} leaves admm_epochs={self.admm_epochs} without an update of Z and U: "
                "lower it"
            )
        return self


class DistillConfig(_Section):
    """Knowledge distillation from the dense network, in the ADMM and retraining phases (Hinton et al., 1503.02531).

    Attributes:
        weights: of another network of the same architecture to distil from: one that was trained for longer, or one
            that was pruned less; by default of the dense network that the run prunes.
        weight: of the distillation loss; the labels' loss has the rest.
        temperature: that both networks' logits are divided by.
        phases: "all", or "last" for the last round's retraining alone: the dense network's forward pass is a third of
            a step of its own training, and may be most of a step of what is left of it.
    """

    weights: Path | None = None
    weight: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    temperature: Annotated[float, Field(gt=0.0)] = 4.0
    phases: Literal["all", "last"] = "all"


class MixConfig(_Section):
    """Training on blends of two images, with the labels of both (mixup: Zhang et al., 1710.09412).

    With distillation the network learns what the dense network says of the blend, too, which teaches it more than the
    training images can, where the dense network is sure of nearly all of them (Beyer et al., 2106.05237).

    Attributes:
        alpha: the share of an image in its blend is drawn from Beta(alpha, alpha): 1 is uniform, less is mostly one
            of the two.
        phases: "all", the dense network's training among them, or "last" for the last round's retraining alone.
    """

    alpha: Annotated[float, Field(gt=0.0)] = 1.0
    phases: Literal["all", "last"] = "all"


class TrainConfig(_Section):
    """The `[train]` section.

    Attributes:
        seed: sets the initial weights, the order of the samples and their augmentation.
        precision: of the forward and backward pass; weights are float32 always.
        device: `auto` takes a GPU where there is one.
        threads: of the CPU; by default PyTorch's choice. Another count rounds otherwise, so resuming keeps the first.
        deterministic: take the kernels that always round alike; without, a GPU takes the fastest, and a run that is
            repeated or resumed differs in its last digits.
        checkpoint_every: epochs between two checkpoints; SIGTERM always writes one, and a killed run repeats what came
            after the last.
        compact: run forward and backward without the filters and channels that earlier rounds removed: the same but for
            rounding, and after a round of half of the filters three times as fast on a CPU. By default on a CPU; never
            with several processes.
        batch_size: global, over all processes and accumulation steps.
        accumulate: micro-batches that one optimizer step is split into.
        channels_last: memory format of images and weights; often faster.
        label_smoothing: share of the target that is spread over all classes.
        model: which network.
        data: which images.
        optimizer: of every phase.
        dense: training before any pruning.
        rounds: of pruning, in order.
        after: directory of a finished run whose pruned network, with its masks, these rounds go on from; the dense
            network is that run's. With `dense.epochs = 0` and without `model.weights`.
        distill: knowledge distillation from the dense network; none by default.
        mix: training on blends of two images; none by default.
    """

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu"] = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None
    deterministic: bool = True
    checkpoint_every: Annotated[int, Field(ge=1)] = 1
    compact: bool | None = None
    batch_size: Annotated[int, Field(ge=2)] = 128
    accumulate: Annotated[int, Field(ge=1)] = 1
    channels_last: bool = False
    label_smoothing: Fraction = 0.0
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    dense: DenseConfig = DenseConfig()
    rounds: Annotated[tuple[RoundConfig, ...], Field(min_length=1)]
    after: Path | None = None
    distill: DistillConfig | None = None
    mix: MixConfig | None = None

    @property
    def held_out(self) -> float:
        """The fraction of the training images that is not trained on."""
        if self.data.held_out is not None:
            return self.data.held_out
        return _HELD_OUT if any(entry.target is not None for entry in self.rounds) else 0.0

    @model_validator(mode="after")
    def _one_start(self) -> TrainConfig:
        if self.after is not None and self.model.weights is not None:
            raise ValueError("after and model.weights both say where to start: give one of them")
        if self.after is not None and self.dense.epochs != 0:
            raise ValueError(f"after goes on from a pruned network: set dense.epochs to 0, not {self.dense.epochs}")
        return self
