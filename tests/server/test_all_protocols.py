"""All protocols at once on one server, under the load tool."""

import json

from click.testing import CliRunner
from serving import Serve

from pplex.cli import main

KEY, PROTOCOLS = "secret-key", "chat,live,realtime,twilio"


def test_sixteen_conversations_of_four_protocols_miss_no_frame(serve: Serve) -> None:
    """On a slow machine two seconds of audio wait: they are not dropped."""
    with serve("--slots", "16", "--backlog", "25", "--token", KEY, "--protocols", PROTOCOLS) as server:
        command = ["load", server.url, "--protocol", PROTOCOLS, "--sessions", "16", "--minutes", "0.1", "--json"]
        done = CliRunner().invoke(main, [*command, "--token", KEY])
        report = json.loads(done.stdout)
        assert report["sessions"] == {"asked": 16, "ready": 16, "refused": 0, "failed": 0}
        assert list(report["parts"]) == PROTOCOLS.split(",")
        for protocol, part in report["parts"].items():
            answered = part["frames"]["unpaired" if protocol == "realtime" else "answered"]
            assert answered >= 0.9 * part["frames"]["sent"] > 0, protocol
            assert part["frames"]["missing"] == part["frames"]["dropped"] == 0, protocol
        server.wait_for(lambda: server.state()["used"] == 0)
        for protocol in PROTOCOLS.split(","):
            assert server.metric(f'pplex_conversations_total{{protocol="{protocol}"}}') == 4
