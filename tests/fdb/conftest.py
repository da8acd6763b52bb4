"""A judge for the tests of scores."""

from collections.abc import Callable, Iterator

import pytest
from judge_server import JudgeServer, Reply

from pplex.fdb.judge import Judge


@pytest.fixture
def judge_with() -> Iterator[Callable[..., tuple[Judge, JudgeServer]]]:
    servers = list[JudgeServer]()

    def make(*replies: Reply) -> tuple[Judge, JudgeServer]:
        servers.append(JudgeServer(*replies))
        return Judge(servers[-1].url, "a-model", "secret", pause_s=0.01), servers[-1]

    yield make
    for server in servers:
        server.close()
