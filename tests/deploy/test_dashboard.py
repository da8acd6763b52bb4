"""The dashboard of deploy/grafana: Grafana's types can read it, and a real Prometheus answers each of its questions."""

import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from callers import call, run, speech
from manifests import checked
from serving import Running, serving
from steering import done

from pplex.runtime.bundle import Bundle
from pplex.server.metrics import Metrics

DASHBOARD = Path(__file__).parent.parent.parent / "deploy" / "grafana" / "pplex.json"
CONFIG = """
scrape_configs:
  - job_name: pplex
    scrape_interval: 250ms
    static_configs:
      - targets: ["127.0.0.1:{port}"]
"""
VALID = """
import json, sys
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
given = json.load(sys.stdin)
read = json.loads(JSONEncoder().encode(Dashboard.from_json(given)))
missing = set(given) - set(read)
assert not missing, missing
for mine, theirs in zip(given["panels"], read["panels"], strict=True):
    assert mine.items() <= theirs.items(), (mine, theirs)
"""


def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text()))


def queries() -> list[tuple[str, str]]:
    return [(panel["title"], target["expr"]) for panel in dashboard()["panels"] for target in panel["targets"]]


def test_grafana_can_read_it() -> None:
    checked(VALID, DASHBOARD.read_text())


def test_every_metric_exists() -> None:
    registry = Metrics().registry
    names = {sample.name for family in registry.collect() for sample in family.samples}
    names |= {f"{family.name}_total" for family in registry.collect() if family.type == "counter"}  # without labels yet
    names |= {
        f"{family.name}_{end}"
        for family in registry.collect()
        if family.type == "histogram"
        for end in ("bucket", "sum", "count")
    }
    asked = {name for _, query in queries() for name in re.findall(r"\b(?:pplex|process)_\w+", query)}
    assert asked and asked <= names, asked - names


def test_panels_do_not_overlap() -> None:
    taken = set[tuple[int, int]]()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


@pytest.fixture(scope="module")
def prometheus(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prometheus that reads a server, after a conversation."""
    if (program := shutil.which("prometheus")) is None:
        pytest.skip("Prometheus is missing: apt-get install prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serving(tiny_bundle.folder, folder, "--allow", "control") as server:
        (folder / "prometheus.yaml").write_text(CONFIG.format(port=server.port))
        command = [program, f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}"]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
        with process:
            try:
                url = f"http://127.0.0.1:{port}"
                run(_use(server, url), 60)
                yield url
            finally:
                process.kill()


async def _use(server: Running, url: str) -> None:
    """An order, a refusal, and input without effect: a counter with a label exists once it has counted."""
    server.wait_for(lambda: _answers(url, "up == 1"), 60)
    server.get("/api/chat?seed=x")
    async with call(server.url, control="1", no_such_parameter="1") as caller:
        await (await caller.handshake()).talk(speech(25))
        await done(caller, "rebuild", facts="The salad is good.")
    server.wait_for(lambda: server.state()["used"] == 0)
    # The last counter to appear. A rate needs two samples.
    server.wait_for(lambda: _answers(url, "rate(pplex_partings_total[1m])"), 30)


def _answers(url: str, query: str) -> list[Any]:
    try:
        with urllib.request.urlopen(
            f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}", timeout=10
        ) as answer:
            return list(json.load(answer)["data"]["result"])
    except OSError:
        return []


# Nothing is cut, dropped or transcribed in the test.
SILENT = {"dropped: {{reason}}", "cut: {{reason}}", "utterances: {{result}}"}
EVERY_QUERY = [
    pytest.param(target["expr"], id=f"{panel['title']}: {target['legendFormat']}")
    for panel in json.loads(DASHBOARD.read_text())["panels"]
    for target in panel["targets"]
    if target["legendFormat"] not in SILENT
]


@pytest.mark.parametrize("query", EVERY_QUERY)
def test_prometheus_answers(prometheus: str, query: str) -> None:
    asked = query.replace("$__rate_interval", "1m").replace("$instance", ".*")
    assert "$" not in asked
    assert _answers(prometheus, asked), asked
