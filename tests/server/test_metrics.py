"""Metrics and the log."""

from callers import FRAME, call, run, speech
from serving import Serve


def test_metrics_count_a_conversation(serve: Serve) -> None:
    async def visit(url: str) -> None:
        async with call(url) as caller:
            await (await caller.handshake()).talk(speech(10))

    with serve("--slots", "2") as server:
        run(visit(server.url))
        server.get("/api/chat?seed=x")
        server.wait_for(lambda: server.state()["used"] == 0)
        for stage in ("wait", "step", "encode", "total", "mimi_encode", "temporal", "depth", "mimi_decode"):
            assert server.metric(f'pplex_frame_seconds_count{{stage="{stage}"}}') == 10, stage
        assert server.metric("pplex_frames_total") == 10
        assert server.metric("pplex_batch_size_sum") == 10
        assert server.metric("pplex_slots") == 2
        assert server.metric('pplex_conversations_total{protocol="chat"}') == 1
        assert server.metric('pplex_partings_total{cause="client"}') == 1
        assert server.metric('pplex_refused_total{status="400"}') == 1
        assert server.metric('pplex_bytes_total{direction="in"}') == 10 * (4 * FRAME + 1)
        assert server.metric('pplex_bytes_total{direction="out"}') >= 10 * (4 * FRAME + 1)
        assert server.metric("pplex_event_loop_lag_seconds_count") > 10


def test_log_has_conversations_and_prompts_only_on_request(serve: Serve) -> None:
    async def visit(url: str, **query: str) -> str:
        async with call(url, text_prompt="My secret name is Zebedee.", **query) as caller:
            await (await caller.handshake()).talk(speech(2))
            identity: str = caller.session["id"]
            return identity

    for arguments, query, is_logged in (
        (["--token", "tok-en"], {"token": "tok-en"}, False),
        (["--log-prompts"], {}, True),
    ):
        with serve(*arguments) as server:
            identity = run(visit(server.url, **query))
            server.wait_for(lambda server=server: server.state()["used"] == 0)
            events = [event for event in server.events() if event.get("conversation") == identity]
            assert [event["event"] for event in events][-1] == "conversation ended"
            assert ("Zebedee" in server.log.read_text()) is is_logged
            assert "tok-en" not in server.log.read_text()
