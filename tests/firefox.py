"""Debian's Firefox without a window, controlled over WebDriver BiDi, for the tests of our page.

Without a loudspeaker, Firefox neither plays audio nor gives the microphone to a page. `loudspeaker` starts one that
plays to nobody.
"""

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
PULSEAUDIO = shutil.which("pulseaudio")
START_S, ANSWER_S = 60, 30
PREFERENCES = {
    "app.update.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "media.autoplay.default": 0,
    "media.navigator.permission.disabled": True,
    "media.navigator.streams.fake": True,  # a fake microphone with a tone
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.proxy.type": 0,
    "nimbus.rollouts.enabled": False,
    "toolkit.telemetry.enabled": False,
}


@contextmanager
def loudspeaker(folder: Path) -> Iterator[Mapping[str, str]]:
    """PulseAudio with its files in `folder` and a silent device; yields the environment variables to use it."""
    assert PULSEAUDIO is not None
    home = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}
    socket = f"module-native-protocol-unix socket={folder}/native auth-anonymous=1"
    command = [PULSEAUDIO, "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", "--disable-shm=yes"]
    with (folder / "pulseaudio.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "-L", "module-null-sink", "-L", socket], stderr=log, env={**os.environ, **home}
        )
    try:
        end = time.monotonic() + START_S
        while not (folder / "native").exists():
            assert process.poll() is None and time.monotonic() < end, (folder / "pulseaudio.log").read_text()
            time.sleep(0.05)
        yield {**home, "PULSE_SERVER": f"unix:{folder}/native"}
    finally:
        process.terminate()
        process.wait(ANSWER_S)


class Firefox:
    """One Firefox with its profile in `folder` and extra environment variables. `close` ends it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]):
        lines = (f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in PREFERENCES.items())
        (folder / "user.js").write_text("".join(lines))
        self._log = (folder / "firefox.log").open("w+")
        assert FIREFOX is not None
        command = [FIREFOX, "--headless", "--no-remote", "--profile", str(folder), "--remote-debugging-port", "0"]
        self._process = subprocess.Popen(
            [*command, "about:blank"], stdout=self._log, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._answers = dict[int, asyncio.Future[dict[str, Any]]]()
        self._await(self._connect(self._address(folder / "firefox.log")))
        self.call("session.new", capabilities={})

    def call(self, method: str, **params: Any) -> Any:
        """The result of one protocol command. Raises RuntimeError with Firefox's message if it fails."""
        answer = self._await(self._ask(method, params))
        if answer["type"] == "error":
            raise RuntimeError(f"{method}: {answer['message']}")
        return answer["result"]

    def tab(self) -> "FirefoxTab":
        """A new tab, with storage of its own."""
        user = self.call("browser.createUserContext")["userContext"]
        return FirefoxTab(self, self.call("browsingContext.create", type="tab", userContext=user)["context"])

    def close(self) -> None:
        """End the process and the reader of its answers."""
        self._process.terminate()
        self._process.wait(ANSWER_S)
        self._await(self._socket.close())
        self._await(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._log.close()

    def _address(self, log: Path) -> str:
        end = time.monotonic() + START_S
        while not (found := re.search(r"BiDi listening on (ws://\S+)", log.read_text())):
            assert self._process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        return f"{found[1]}/session"

    async def _connect(self, address: str) -> None:
        self._client = ClientSession()
        self._socket: ClientWebSocketResponse = await self._client.ws_connect(address, max_msg_size=0)
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type is WSMsgType.TEXT:
                answer = json.loads(message.data)
                if answer.get("id") in self._answers:
                    self._answers.pop(answer["id"]).set_result(answer)

    async def _ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        number = time.monotonic_ns()
        answer = self._answers[number] = self._loop.create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(ANSWER_S):
            return await answer

    def _await(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class FirefoxTab:
    """A tab of Firefox, with the actions that tests need."""

    def __init__(self, firefox: Firefox, context: str):
        self._firefox, self._context = firefox, context

    def goto(self, url: str) -> None:
        self._firefox.call("browsingContext.navigate", context=self._context, url=url, wait="complete")

    def before_each_page(self, script: str) -> None:
        """Run a script in each page before the page's own scripts."""
        body = f"() => {{ {script} }}"
        self._firefox.call("script.addPreloadScript", functionDeclaration=body, contexts=[self._context])

    def evaluate(self, expression: str) -> Any:
        """The awaited value of a JavaScript expression, through JSON; it counts as a gesture of the user."""
        result = self._firefox.call(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await ({expression})) ?? 'null')()",
            target={"context": self._context},
            awaitPromise=True,
            userActivation=True,
        )
        assert result["type"] == "success", result["exceptionDetails"]["text"]
        return json.loads(result["result"]["value"])

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height}
        self._firefox.call("browsingContext.setViewport", context=self._context, viewport=size)

    def picture(self, path: Path) -> None:
        """Save the visible part of the page as a PNG."""
        picture = self._firefox.call("browsingContext.captureScreenshot", context=self._context)
        path.write_bytes(base64.b64decode(picture["data"]))

    def close(self) -> None:
        self._firefox.call("browsingContext.close", context=self._context)
