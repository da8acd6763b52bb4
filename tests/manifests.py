"""Reads the Kubernetes manifests of deploy/ as `kubectl apply -k` would send them, and their pods."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parent.parent / "deploy" / "kubernetes"
TOOLS = Path(sys.prefix) / "deploy"  # requirements/deploy.txt
KUBECTL = TOOLS / "bin" / "kubectl"
Object = dict[str, Any]


def skip_without_tools() -> None:
    if not KUBECTL.exists():
        pytest.skip(f"{KUBECTL} is missing: make .venv/test installs it")


@cache
def rendered(name: str) -> tuple[Object, ...]:
    """The objects of a folder of deploy/kubernetes, by kustomize."""
    return render(FOLDER / name)


def combined(folder: Path, *components: str) -> tuple[Object, ...]:
    """The objects of the base with components, as in a kustomization of a user in `folder`."""
    paths = {name: os.path.relpath(FOLDER / name, folder) for name in ("base", *components)}
    base = paths.pop("base")
    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": [base], "components": list(paths.values())})
    )
    return render(folder)


def render(folder: Path) -> tuple[Object, ...]:
    skip_without_tools()
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def checked(code: str, text: str) -> str:
    """The output of Python code that reads `text`, with the packages of requirements/deploy.txt."""
    skip_without_tools()
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=text,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TOOLS)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def one(objects: tuple[Object, ...], kind: str) -> Object:
    (found,) = (each for each in objects if each["kind"] == kind)
    return found


def pods(objects: tuple[Object, ...]) -> Iterator[tuple[str, Object]]:
    """Every pod's template, by the name of its first container; those of a RayService too."""
    for each in objects:
        for template in _templates(each):
            yield template["spec"]["containers"][0]["name"], template


def _templates(value: Any) -> Iterator[Object]:
    if isinstance(value, Mapping):
        if "containers" in value.get("spec", {}):
            yield dict(value)
        else:
            for inner in value.values():
                yield from _templates(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _templates(inner)


def containers(template: Object) -> list[Object]:
    """All containers of a pod; those that start first are first."""
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def option(arguments: list[str], name: str, default: float) -> float:
    """The value of an option in a container's arguments."""
    found = [argument.partition("=")[2] for argument in arguments if argument.startswith(f"{name}=")]
    return float(found[-1]) if found else default
