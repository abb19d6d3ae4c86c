"""`result.json`, schema 1: what a run achieved, each number computed by a stage and none assumed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from results.statistics import SpeedUp, Spread
from structadmm.errors import InvariantError, UserError
from structadmm.files import read_json, write_json

SCHEMA = 1

# JSON has no infinity and no NaN, and neither is a result.
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100)]
Difference = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]

_RATIO_TOLERANCE = 1e-9  # a ratio is one float64 division of the two numbers beside it


class Record(BaseModel):
    """Base of all records: immutable, and without fields that nobody documented."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Accuracy(Record):
    """Percent of the test samples that are classified right, after the last epoch."""

    dense: Percent
    pruned: Percent
    test_samples: Count


class Reduction(Record):
    """A count before and after pruning, and before / after."""

    dense: Count
    pruned: Count
    ratio: Positive

    @classmethod
    def of(cls, dense: int, pruned: int) -> Reduction:
        """The record of two counts."""
        if dense <= 0 or pruned <= 0:
            raise InvariantError(f"counts of {dense} before and {pruned} after pruning: both must be positive")
        return cls(dense=dense, pruned=pruned, ratio=dense / pruned)

    @model_validator(mode="after")
    def _ratio_agrees(self) -> Reduction:
        if abs(self.ratio - self.dense / self.pruned) > _RATIO_TOLERANCE * self.ratio:
            raise ValueError(f"ratio {self.ratio} is not {self.dense} / {self.pruned}")
        return self


class Latency(Record):
    """Steady-state latency of one inference of one network, in milliseconds."""

    samples: Count
    min: Positive
    p10: Positive
    median: Positive
    mean: Positive
    p90: Positive
    p99: Positive

    @classmethod
    def of(cls, spread: Spread) -> Latency:
        """The record of a summary in milliseconds."""
        return cls(
            samples=spread.samples,
            min=spread.minimum,
            p10=spread.p10,
            median=spread.median,
            mean=spread.mean,
            p90=spread.p90,
            p99=spread.p99,
        )


class SpeedUpRecord(Record):
    """Median over the rounds of baseline over pruned in the same round, and its 95 % interval."""

    median: Positive
    ci95: tuple[Positive, Positive]

    @classmethod
    def of(cls, speed_up: SpeedUp) -> SpeedUpRecord:
        """The record of a computed speed-up."""
        return cls(median=speed_up.median, ci95=speed_up.ci95)


class Latencies(Record):
    """The two networks' latencies on one device, timed in turn.

    Attributes:
        warnings: why the times are doubtful, such as a clock that fell; what both networks share of it cancels.
    """

    device: str
    kind: Literal["host", "phone"]
    baseline: Latency
    pruned: Latency
    speedup: SpeedUpRecord
    warnings: tuple[str, ...] = ()


class Checks(Record):
    """Largest absolute difference of logits between each form of the network and the form before it."""

    masked_vs_shrunk: Difference
    shrunk_vs_onnx: Difference
    onnx_vs_device: Difference


class Result(Record):
    """What a run achieved."""

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    name: str
    accuracy: Accuracy
    conv_params: Reduction
    params: Reduction
    macs: Reduction
    latency_ms: Latencies
    checks: Checks
    tolerances: Checks
    environment: dict[str, Any]

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _checks_hold(self) -> Result:
        for name in Checks.model_fields:
            difference, tolerance = getattr(self.checks, name), getattr(self.tolerances, name)
            if difference > tolerance:
                raise ValueError(f"{name} differs by {difference:.3g}, more than its tolerance {tolerance:.3g}")
        return self


def write_result(path: Path, result: Result) -> None:
    """Write `result` as JSON."""
    write_json(path, result.model_dump(mode="json", by_alias=True))


R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R], schema: int, advice: str = "restore the file") -> R:
    """Read and validate a JSON file.

    Args:
        path: of the file.
        kind: what it must hold.
        schema: the version that this one reads.
        advice: what to do about a wrong one.

    Raises:
        UserError: the file is absent, of another schema, or wrong; names the first field that is.
    """
    values = read_json(path, schema=schema)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or path.name
        raise UserError(f"{path}: {place}: {first['msg']}: {advice}") from None


def read_result(path: Path) -> Result:
    """Read and validate a `result.json`.

    Raises:
        UserError: the file is absent, or is no result of schema 1.
    """
    return read_record(path, Result, SCHEMA, "run `structadmm report` again")
