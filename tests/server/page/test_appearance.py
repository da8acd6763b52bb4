"""The page's colours, and its size on a desktop and a phone."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from our_page import DESKTOP, PAGE, PHONE, Tab, expect_state, wait_for
from serving import Running


def _colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_required_by_wcag(scheme: str) -> None:
    light, dark = (PAGE / "colors.css").read_text().split("prefers-color-scheme: dark", 1)
    colours = _colours(light if scheme == "light" else dark)
    for front, back, least in [
        *((front, back, 4.5) for front in ("text", "soft") for back in ("ground", "surface")),
        *(
            ("on-accent", "accent", 4.5),
            ("on-stop", "stop", 4.5),
            ("wrong", "wrong-tint", 4.5),
            ("text", "accent-tint", 4.5),
        ),
        *(("edge", "surface", 3), ("accent", "ground", 3), ("accent", "line", 3)),
    ]:
        one, two = sorted((_luminance(colours[front]), _luminance(colours[back])))
        assert (two + 0.05) / (one + 0.05) >= least, (front, back)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_page_fits_desktop_phone_and_small_screens(
    open_tab: Callable[..., Tab], two: Running, pictures: Path, size: str, scheme: str
) -> None:
    tab = open_tab(color_scheme=scheme, viewport=DESKTOP if size == "desktop" else PHONE)
    tab.goto(two.url)
    expect_state(tab, "ready")
    tab.screenshot(path=pictures / f"page-{size}-{scheme}.png")
    _assert_fits(tab)
    tab.get_by_role("button", name="Talk").click()
    expect_state(tab, "talking")
    wait_for(tab, lambda: len(tab.locator("#transcript").inner_text()) > 60)
    tab.screenshot(path=pictures / f"talking-{size}-{scheme}.png")
    _assert_fits(tab)
    tab.set_viewport_size({"width": 320, "height": 500})
    _assert_fits(tab)


def _assert_fits(tab: Tab) -> None:
    """Nothing scrolls sideways, and the button is in sight."""
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = tab.locator("#talk").bounding_box()
    assert box["height"] >= 44
    assert box["y"] + box["height"] <= tab.viewport_size["height"]
