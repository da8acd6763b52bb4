"""Work between frames: who gets the next chunk, and what happens to the work of a conversation that ends."""

from collections.abc import Generator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from pplex.runtime.errors import SlotError, SteeringError
from pplex.server.background import Background, Work
from pplex.server.metrics import Metrics


class Window:
    """A runtime whose memory window asks for rebuilds: chunks of each."""

    def __init__(self, seen: list[str], *chunks: int):
        self._seen, self.waiting, self.memory = seen, list(chunks), SimpleNamespace(rebuilt=0)

    def work(self) -> bool:
        if self.waiting:
            self._seen.append("window")
            self.waiting[0] -= 1
            if not self.waiting[0]:
                self.waiting.pop(0)
                self.memory.rebuilt += 1
        return bool(self.waiting)


def work(seen: list[str], name: str, chunks: int, error: Exception | None = None) -> Work:
    def chunked() -> Generator[None, None, str]:
        try:
            for number in range(chunks):
                seen.append(name)
                if number < chunks - 1:
                    yield
            if error is not None:
                raise error
            return name
        except GeneratorExit:
            seen.append(f"{name} closed")
            raise

    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return Work(name, chunked(), future, lambda: seen.append(f"{name} looked"))


def run(background: Background, runtime: Window) -> int:
    turns = 0
    while background.run_one_chunk(runtime):  # type: ignore[arg-type]
        turns += 1
    return turns


def test_newcomers_and_rebuilds_take_turns_and_rebuilds_follow_one_another() -> None:
    seen: list[str] = []
    background = Background(Metrics())
    for name in ("new a", "new b"):
        background.prime(work(seen, name, 2))
    for name in ("one", "two"):
        background.rebuild(work(seen, name, 3))
    assert run(background, Window(seen)) == 10
    rebuilds = [name for name in seen if name in ("one", "two")]
    assert rebuilds == ["one"] * 3 + ["two"] * 3
    chunks = [name for name in seen if "looked" not in name][:8]
    assert [name.startswith("new") for name in chunks] == [False, True] * 4
    assert chunks[1::2] == ["new a", "new b"] * 2
    assert seen.count("one looked") == 1


def test_a_rebuild_for_the_memory_window_comes_before_those_that_have_not_begun() -> None:
    seen: list[str] = []
    background, runtime = Background(Metrics()), Window(seen, 2, 3)
    background.rebuild(work(seen, "one", 2))
    run(background, runtime)
    assert [name for name in seen if "looked" not in name] == ["window"] * 5 + ["one"] * 2
    seen.clear()
    background.rebuild(work(seen, "two", 3))
    background.run_one_chunk(runtime)  # type: ignore[arg-type]
    runtime.waiting.append(1)
    run(background, runtime)
    assert [name for name in seen if "looked" not in name] == ["two"] * 3 + ["window"]


def test_errors_and_results_reach_their_futures() -> None:
    background = Background(Metrics())
    good, refused = work([], "good", 2), work([], "bad", 2, SteeringError("no"))
    background.rebuild(refused)
    background.prime(good)
    run(background, Window([]))
    assert good.future.result(0) == "good"
    with pytest.raises(SteeringError, match="no"):
        refused.future.result(0)


def test_a_conversation_that_ends_takes_its_work_with_it_and_the_next_rebuild_begins() -> None:
    seen: list[str] = []
    background = Background(Metrics())
    gone, stays = work(seen, "gone", 5), work(seen, "stays", 2)
    for each in (gone, stays, work(seen, "gone", 1)):
        background.rebuild(each)
    background.run_one_chunk(Window(seen))  # type: ignore[arg-type]
    background.drop("gone")
    assert seen == ["gone", "gone closed"]
    with pytest.raises(SlotError):
        gone.future.result(0)
    run(background, Window(seen))
    assert stays.future.result(0) == "stays" and seen.count("gone") == 1
