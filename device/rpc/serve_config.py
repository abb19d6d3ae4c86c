"""What a server of one device is told."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from device.rpc.address import LOOPBACK


class ServeConfig(BaseModel):
    """Of one `structadmm rpc serve`.

    Attributes:
        device: as `--device` takes it.
        tracker: HOST:PORT.
        key: under which tuners ask for it.
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        give_up_s: how long a tracker may be away, and a device that was there before.
        idle_s: how long a client may be silent inside its session.
        max_trial_s: largest time-out of a candidate that a client may ask for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    device: str
    tracker: str
    key: str
    host: str = LOOPBACK
    port: int = Field(default=0, ge=0, le=65535)
    give_up_s: float = Field(default=600.0, ge=0)
    idle_s: float = Field(default=120.0, gt=0)
    max_trial_s: float = Field(default=300.0, gt=0)


class Predecessor(BaseModel):
    """What a bridge that ended leaves to the next one, kept by their supervisor.

    Attributes:
        served: whether the device was there: then one that is away may come back.
        sessions: directories on a phone whose sessions nobody tidied up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    served: bool = False
    sessions: tuple[str, ...] = ()
