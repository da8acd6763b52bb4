"""Debian's Chromium, whose microphone is a recording."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")


@contextmanager
def chromium(recording: Path, *switches: str) -> Iterator[Any]:
    """A browser of playwright, started with `switches`. Skips the test without Chromium or playwright."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
    microphone = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
    recorded = f"--use-file-for-fake-audio-capture={recording}"
    with playwright.sync_playwright() as started:
        all_switches = ["--no-sandbox", "--disable-gpu", *microphone, recorded, *switches]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=all_switches)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def chromium_tab(recording: Path, *switches: str, **options: Any) -> Iterator[Any]:
    """A tab of a browser started with `switches`; `options` are those of playwright's new_page."""
    with chromium(recording, *switches) as browser:
        yield browser.new_page(**options)
