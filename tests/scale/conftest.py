"""Three replicas that most tests share, because they take half a minute to start."""

from collections.abc import Iterator

import pytest
from scaled import Scaled, scaling

from pplex.runtime.bundle import Bundle
from pplex.runtime.session import Runtime

pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'pplex-export[scale]'")


@pytest.fixture(scope="module")
def scaled(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scaled]:
    """Three replicas with two slots each, and a token for control."""
    log = tmp_path_factory.mktemp("scale") / "log"
    with scaling(tiny_bundle.folder, log, "--replicas", "3", PPLEX_CONTROL_TOKEN="boss") as running:
        yield running


@pytest.fixture(scope="session")
def alone(tiny_bundle: Bundle) -> Runtime:
    """A runtime to compare with, which has the only batch size of the replicas."""
    return Runtime(tiny_bundle, slots=2, threads=1, batches=[2])
