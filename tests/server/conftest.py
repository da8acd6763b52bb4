"""A server that tests share, and a way to start others."""

from collections.abc import Iterator
from functools import partial

import pytest
from serving import Running, Serve, serving

from pplex.runtime.bundle import Bundle


@pytest.fixture(scope="session")
def serve(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Starts a server of the tiny bundle with the given arguments: `with serve("--slots", "2") as server:`."""
    return partial(serving, tiny_bundle.folder, tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="session")
def server(serve: Serve) -> Iterator[Running]:
    """A server with 4 slots that tests share; they leave its slots free."""
    with serve("--slots", "4", "--resume-seconds", "2", "--one-batch-size") as running:
        yield running
