"""What tests on OpenCL devices share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from device.local_target import LocalTarget, find_local_devices
from device.runner_client import Runner


@pytest.fixture(scope="module", params=[device.driver.name for device in find_local_devices().devices])
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """On each OpenCL device at hand."""
    target = LocalTarget(request.param)
    yield Runner(target)
    target.close()
