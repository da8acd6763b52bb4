"""The panel for control on every screen, in both browsers."""

import pytest
from serving import Serve
from visits import Visit


@pytest.mark.usefixtures("sound")
def test_the_panel_fits_every_screen(visit: Visit, serve: Serve) -> None:
    with serve("--slots", "1", "--allow", "control") as server:
        _look(visit, server.url)


def _look(visit: Visit, url: str) -> None:
    visit.load(url)
    visit.talk()
    visit.wait_for("!document.querySelector('#control').hidden")
    visit.enter("words", "7:30")
    visit.tab.evaluate("document.querySelector('#say').click()")
    visit.wait_for("document.querySelector('#answer').textContent.includes('several ways')")
    visit.look("control", "Talking. Say something.")
