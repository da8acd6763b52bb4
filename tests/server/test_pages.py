"""Pages and other files that the server serves."""

import shutil
from pathlib import Path

import pytest
from callers import ask
from serving import Serve

from pplex.server.pages import PAGE


def test_a_folder_replaces_our_page(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>Their client</h1>")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "client.js").write_text("talk()")
    with serve("--static", str(tmp_path), "--slots", "1") as server:
        assert server.get("/") == (200, "<h1>Their client</h1>")
        assert server.get("/assets/client.js") == (200, "talk()")
        assert server.get("/page.js")[0] == 404
        assert server.get("/api/chat")[0] == 426


@pytest.mark.parametrize("layout", ["links to files", "a link to the folder", "links to links"])
def test_a_folder_of_links_is_served_completely(serve: Serve, tmp_path: Path, layout: str) -> None:
    """uv, Nix, Bazel and ConfigMaps install files as links."""
    store = shutil.copytree(PAGE, tmp_path / "store" / "page")
    folder = tmp_path / "page"
    if layout == "a link to the folder":
        folder.symlink_to(store)
    else:
        folder.mkdir()
        for path in store.iterdir():
            (folder / path.name).symlink_to(path)
    if layout == "links to links":
        data = tmp_path / "..2026"
        folder.rename(data)
        folder.mkdir()
        (folder / "..data").symlink_to(data)
        for path in store.iterdir():
            (folder / path.name).symlink_to(Path("..data") / path.name)
    with serve("--static", str(folder), "--slots", "1") as running:
        for path in store.iterdir():
            assert ask(running, f"/{path.name}")[:2] == (200, path.read_text()), path.name
        assert ask(running, "/")[0] == 200
        assert ask(running, "/none.js")[0] == 404
        logged = [event for event in running.events() if event["event"] == "request refused"]
        assert [(event["status"], event["path"]) for event in logged] == [(404, "/none.js")]
