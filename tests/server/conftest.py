"""A server that tests share, and a way to start others."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from bystander import BYSTANDER
from serving import Running, Serve, serving

from pplex.runtime.bundle import Bundle
from pplex.runtime.session import Runtime


@pytest.fixture(scope="session")
def serve(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Starts a server of the tiny bundle with the given arguments: `with serve("--slots", "2") as server:`."""
    return partial(serving, tiny_bundle.folder, tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="session")
def server(serve: Serve) -> Iterator[Running]:
    """A server with 4 slots for all tests; every test frees its slots."""
    with serve("--slots", "4", "--resume-seconds", "2", "--one-batch-size") as running:
        yield running


@pytest.fixture(scope="session")
def alone(tiny_bundle: Bundle) -> Runtime:
    """A runtime to compare with, which has the only batch size of the shared server."""
    return Runtime(tiny_bundle, slots=4, threads=1, batches=[4])


@pytest.fixture(scope="session")
def unharmed(tiny_bundle: Bundle) -> np.ndarray:
    """The replies that the bystander must hear, from a runtime without a server."""
    with Runtime(tiny_bundle, slots=1, threads=1).open("NATM1", "A bystander.", 77) as session:
        return np.stack([session.step(pcm).pcm for pcm in BYSTANDER])


@pytest.fixture(scope="session")
def target(serve: Serve) -> Iterator[Running]:
    """A server for attacks, with short timeouts."""
    with serve(limits={"heartbeat_s": 1.0, "header_s": 1.0, "resume_s": 0.3, "idle_s": 20.0}) as running:
        yield running
