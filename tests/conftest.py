"""Shared fixtures: golden folders, and a bundle built once from each."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from folders import TINY

from pplex.export.build import build
from pplex.export.source import Source
from pplex.runtime.bundle import Bundle, open_bundle

# Small convolutions on several threads mostly wait for each other, all the more on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def on_the_processor() -> Iterator[None]:
    """What does not ask for a GPU does not get one, where there is one: most tests look into the host's memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pplex.runtime.backend.has_cuda_provider", lambda: False)
        yield


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Bundle]:
    """Builds the bundle of a golden folder's checkpoint, once."""

    @cache
    def make(golden: Path) -> Bundle:
        out = tmp_path_factory.mktemp("bundles") / golden.name
        return open_bundle(build(Source(golden / "checkpoint", None, None), out))

    return make


@pytest.fixture(scope="session")
def tiny_bundle(bundle_of: Callable[[Path], Bundle]) -> Bundle:
    """The bundle of tests/golden/tiny; read only."""
    return bundle_of(TINY)
