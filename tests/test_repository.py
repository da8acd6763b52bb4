"""The files around the code: everything they name exists and is correct."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def text(name: str) -> str:
    return (ROOT / name).read_text()


def test_licence_files_in_the_metadata_exist() -> None:
    assert PROJECT["license"] == "MIT" and text("LICENSE").startswith("MIT License\n")
    assert "Copyright (c) 2026 the pplex-export authors" in text("LICENSE")
    assert all((ROOT / name).is_file() for name in PROJECT["license-files"])


def test_notice_has_the_line_required_by_the_model_licence() -> None:
    notice = text("NOTICE")
    assert '"Licensed by NVIDIA Corporation under the NVIDIA Open Model License"' in notice
    assert "CC-BY-4.0" in notice and "Kyutai" in notice


def test_the_changelog_has_this_version() -> None:
    assert re.search(rf"^## {re.escape(PROJECT['version'])} - \d{{4}}-\d\d-\d\d$", text("CHANGELOG.md"), re.MULTILINE)


def test_hosted_ci_runs_the_required_checks() -> None:
    assert "- run: .ci/run\n" in text(".github/workflows/ci.yml")
    assert text(".ci/run").endswith("make lint\nmake test\n")
    for version in re.findall(r'"(3\.\d+)"', text(".github/workflows/ci.yml")):
        assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


def test_a_bug_report_asks_for_doctor() -> None:
    assert "pplex-export doctor --json" in text(".github/ISSUE_TEMPLATE/bug.yml")


def test_commits_are_linted_by_the_locked_linter() -> None:
    assert "\nruff==" in text("requirements/test.txt")
    assert set(re.findall(r"entry: (\S+ \w+)", text(".pre-commit-config.yaml"))) == {
        ".venv/bin/ruff check", ".venv/bin/ruff format",
    }  # fmt: skip


def test_links_between_the_documents_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
