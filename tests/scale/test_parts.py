"""Keys, merged metrics, followed logs and options, without Ray."""

import io
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pplex.scale.environment import environment
from pplex.scale.follow import Follower
from pplex.scale.keys import Keys
from pplex.scale.launch import TooManyError, check_proxy
from pplex.scale.metrics import merge
from pplex.scale.options import ReplicaOptions, ScaleOptions, secret_variables
from pplex.server.load_report import server_side
from pplex.server.metrics import Metrics
from pplex.server.options import BY_DEFAULT


def test_a_key_names_an_address_that_only_its_makers_can_read() -> None:
    keys, others = Keys(b"secret"), Keys(b"another secret")
    key = keys.make("10.0.0.7:4321")
    assert keys.address(key) == Keys(b"secret").address(key) == "10.0.0.7:4321"
    assert key != keys.make("10.0.0.7:4321")
    assert "10.0.0.7" not in key
    for wrong in (others.make("10.0.0.7:4321"), key[:-4], key.swapcase(), "", "ключ"):
        assert keys.address(wrong) is None


def test_merged_metrics_keep_every_sample_with_its_replica() -> None:
    pages = {}
    for replica, used in (("a", 3), ("b", 5)):
        metrics = Metrics()
        metrics.slots_used.set(used)
        metrics.refused.labels("503").inc(used)
        metrics.loop_lag.observe(0.015)
        pages[replica] = metrics.text().decode()
    families = {one.name: one for one in text_string_to_metric_families(merge(pages).decode())}
    used_by = {one.labels["replica"]: one.value for one in families["pplex_slots_used"].samples}
    assert used_by == {"a": 3, "b": 5}
    refused = [one for one in families["pplex_refused"].samples if one.name == "pplex_refused_total"]
    assert [(one.labels, one.value) for one in refused] == [
        ({"replica": "a", "status": "503"}, 3), ({"replica": "b", "status": "503"}, 5),
    ]  # fmt: skip
    buckets = [one for one in families["pplex_event_loop_lag_seconds"].samples if one.labels.get("le") == "0.02"]
    assert [one.value for one in buckets] == [1, 1]


def test_a_load_adds_up_the_counts_of_all_replicas() -> None:
    first, second = Metrics(), Metrics()
    before = merge({"a": first.text().decode(), "b": second.text().decode()}).decode()
    for metrics, late in ((first, 2), (second, 5)):
        metrics.late_frames.inc(late)
        metrics.dropped_frames.labels("backlog").inc(late)
        metrics.loop_lag.observe(0.0015)
    side = server_side(before, merge({"a": first.text().decode(), "b": second.text().decode()}).decode(), 1.0)
    assert (side.late_frames, side.dropped_frames, side.event_loop_lag_p99_ms) == (7, {"backlog": 7}, 2.0)


def test_logs_are_followed_by_whole_lines_also_of_later_files(tmp_path: Path) -> None:
    stream = io.StringIO()
    (tmp_path / "a.jsonl").write_text("one\nhal")
    with Follower(tmp_path, stream):
        deadline = time.monotonic() + 10
        while "one" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert stream.getvalue() == "one\n"
        (tmp_path / "b.jsonl").write_text("two\n")
        with (tmp_path / "a.jsonl").open("a") as file:
            file.write("f\n")
    assert sorted(stream.getvalue().splitlines()) == ["half", "one", "two"]


def test_options_survive_a_config_file() -> None:
    options = ReplicaOptions(bundle="/b", slots=3, origins=("https://example.org",), limits={"duration_s": 60.0})
    values = options.to_dict()
    assert values == {"bundle": "/b", "slots": 3, "origins": ["https://example.org"], "limits": {"duration_s": 60.0}}
    assert ReplicaOptions(**values).to_dict() == values


def test_a_replica_speaks_the_protocols_of_serve_or_those_that_are_named() -> None:
    assert ReplicaOptions(bundle="/b").of_server("127.0.0.1").protocols == BY_DEFAULT
    values = ReplicaOptions(bundle="/b", protocols=("chat",)).to_dict()
    assert values == {"bundle": "/b", "protocols": ["chat"]}
    assert ReplicaOptions(**values).of_server("127.0.0.1").protocols == ("chat",)


def test_a_replica_takes_telephone_calls_with_the_variable_of_its_auth_token(monkeypatch: pytest.MonkeyPatch) -> None:
    values = ReplicaOptions(bundle="/b", protocols=("twilio",), public_url="https://voice.example").to_dict()
    for name, value in secret_variables((), (), "0123abcd").items():
        monkeypatch.setenv(name, value)
    server = ReplicaOptions(**values).of_server("127.0.0.1")
    assert (server.protocols, server.twilio_auth_token) == (("twilio",), "0123abcd")
    assert server.public_url == "https://voice.example"


def test_control_is_an_option_and_its_tokens_are_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPLEX_CONTROL_TOKEN", "boss chief")
    server = ReplicaOptions(bundle="/b").of_server("127.0.0.1")
    assert (server.control_tokens, server.allow_control, server.memory_window) == (("boss", "chief"), False, None)
    values = ReplicaOptions(bundle="/b", allow_control=True, memory_window=2000).to_dict()
    assert values == {"bundle": "/b", "allow_control": True, "memory_window": 2000}
    server = ReplicaOptions(**values).of_server("127.0.0.1")
    assert (server.allow_control, server.memory_window) == (True, 2000)
    assert secret_variables((), ("boss", "chief")) == {"PPLEX_CONTROL_TOKEN": "boss chief"}


def test_replicas_transcribe_if_asked() -> None:
    assert ReplicaOptions(bundle="/b").of_server("127.0.0.1").transcriber is None
    values = ReplicaOptions(bundle="/b", transcriber="base.en").to_dict()
    assert values == {"bundle": "/b", "transcriber": "base.en"}
    assert ReplicaOptions(**values).of_server("127.0.0.1").transcriber == "base.en"


@pytest.mark.parametrize("minutes", [1, 60, 240])
def test_nothing_on_the_way_ends_before_the_longest_conversation(minutes: int) -> None:
    replica = ReplicaOptions(bundle="/b", limits={"duration_s": 60.0 * minutes})
    variables = environment(ScaleOptions(replica=replica, most=4))
    for name in ("RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S", "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"):
        assert int(variables[name]) > 60 * minutes + 30  # the time to resume
    assert replica.of_server("127.0.0.1").limits.drain_s >= 60 * minutes + 30


def test_the_proxy_in_python_may_carry_32_conversations() -> None:
    replica = ReplicaOptions(bundle="/b", slots=8)
    check_proxy(ScaleOptions(replica=replica, least=1, most=4), has_proxy=False)
    check_proxy(ScaleOptions(replica=replica, least=1, most=100), has_proxy=True)
    with pytest.raises(TooManyError, match="5 replicas with 8 slots are 40 conversations"):
        check_proxy(ScaleOptions(replica=replica, least=1, most=5), has_proxy=False)
