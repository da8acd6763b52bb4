"""A visit to our page in Chromium or Firefox: press, enter, look, and check that everything fits."""

import time
from pathlib import Path
from typing import Any, Protocol

SIZES = {"desktop": (1280, 800), "phone": (390, 844), "small": (320, 568)}
FOR_PROGRAMMERS = ("WebSocket", "bytearray", "Bearer", "parameter", "orklet", "undefined", "null", "Error", "{", "<p>")


class BrowserTab(Protocol):
    """The actions that tabs of both browsers offer."""

    def goto(self, url: str) -> None: ...
    def before_each_page(self, script: str) -> None: ...
    def evaluate(self, expression: str) -> Any: ...
    def resize(self, width: int, height: int) -> None: ...
    def picture(self, path: Path) -> None: ...
    def close(self) -> None: ...


class ChromiumTab:
    """A tab of Chromium, controlled by playwright."""

    def __init__(self, browser: Any):
        self._page = browser.new_context().new_page()

    def goto(self, url: str) -> None:
        self._page.goto(url)

    def before_each_page(self, script: str) -> None:
        self._page.add_init_script(script)

    def evaluate(self, expression: str) -> Any:
        return self._page.evaluate(expression)

    def resize(self, width: int, height: int) -> None:
        self._page.set_viewport_size({"width": width, "height": height})

    def picture(self, path: Path) -> None:
        self._page.screenshot(path=path)

    def close(self) -> None:
        self._page.context.close()


class Visit:
    """A tab with our page, and the checks on it."""

    def __init__(self, tab: BrowserTab, browser: str, pictures: Path):
        self.tab, self.browser, self._pictures = tab, browser, pictures

    def load(self, url: str, before: str = "") -> None:
        """Load the page and wait until it is ready; `before` is a script that runs before the page's own."""
        if before:
            self.tab.before_each_page(before)
        self.tab.goto(url)
        self.wait_for("document.body.dataset.state === 'ready'")

    def press(self) -> None:
        """Press the button of the page."""
        self.tab.evaluate("document.querySelector('#talk').click()")

    def enter(self, field: str, text: str) -> None:
        self.tab.evaluate(f"void (document.querySelector('#{field}').value = {text!r})")

    def talk(self) -> None:
        """Press Talk, and wait for the conversation and its first words."""
        self.press()
        self.wait_for("document.body.dataset.state === 'talking'")
        self.wait_for("document.querySelector('#transcript').textContent.length > 0")

    def wait_for(self, condition: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not self.tab.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < end, f"{condition} is still not so; the page says {self.said()!r}"
            time.sleep(0.1)

    def said(self) -> str:
        """The page's text about its state: the status line and the alert above it."""
        return self.tab.evaluate(
            "[...document.querySelectorAll('.problem, #problem, #status')]"
            ".filter((e) => e.getBoundingClientRect().height > 1).map((e) => e.textContent).join(' ')"
        )

    def look(self, name: str, words: str) -> None:
        """The page says `words` without programmers' terms and fits every screen; pictures are saved.

        On a busy machine audio may come late while a picture is taken, and the page says that for a moment.
        """
        for size, (width, height) in SIZES.items():
            self.tab.resize(width, height)
            end, is_steady = time.monotonic() + 20, False
            while not is_steady:
                self._wait_until_said(words, end)
                self.tab.picture(self._pictures / f"{name}-{self.browser}-{size}.png")
                is_steady = words in self.said()
            assert not [word for word in FOR_PROGRAMMERS if word in self.said()]
            assert self.tab.evaluate(MISFITS) == {"wide": [], "underBar": [], "button": True}, f"{name}, {size}"

    def _wait_until_said(self, words: str, end: float) -> None:
        while words not in self.said():
            assert time.monotonic() < end, f"the page says {self.said()!r}, not {words!r}"
            time.sleep(0.1)


# Elements wider than the window, elements under the bar (in the form: after scrolling to its end), and
# whether the button can be pressed.
MISFITS = """(() => {
    const box = (element) => element.getBoundingClientRect();
    const name = (element) => element.id || element.tagName;
    const bar = document.querySelector("#bar");
    const shown = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility()
        && !element.closest(".unseen, option, #examples input") && box(element).height > 1);
    const overflows = (element) => element.scrollWidth > element.clientWidth + 1;
    const wide = shown.filter((element) => box(element).right > innerWidth + 1 || box(element).left < -1
        || (element.matches("#status, #problem") && overflows(element)));
    if (overflows(document.documentElement)) wide.push(document.documentElement);
    if (!document.body.classList.contains("calling")) scrollTo(0, 1e6);
    const underBar = shown.filter((element) => !bar.contains(element) && !element.contains(bar)
        && !element.parentElement.closest("#transcript") && box(element).bottom > box(bar).top + 1);
    const talk = document.querySelector("#talk");
    const { left, top, width, height } = box(talk);
    const button = document.elementFromPoint(left + width / 2, top + height / 2) === talk && top + height <= innerHeight;
    scrollTo(0, 0);
    return { wide: wide.map(name), underBar: underBar.map(name), button };
})()"""
