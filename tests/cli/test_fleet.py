"""`pplex-export plan --fleet`: its answers, and the options that it refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pplex.cli import main
from pplex.fleet.erlang import erlang_c

FAST = ("--hours", "0.5")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["plan", "--fleet", *arguments])


def answer(*arguments: str) -> dict:
    result = run(*FAST, "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_load_of_three_figures_that_contradict_each_other_is_the_larger_one() -> None:
    result = run("--conversations", "500", "--minutes", "6", "--arrivals", "2/s", "--gpu", "l4", *FAST)
    assert result.exit_code == 0
    assert result.stdout.startswith("99 replicas of 8 slots: 792 slots for 720.0 conversations at once.\n")
    assert "memory of L4 in int8" in result.stdout
    assert re.search(r"contradict each other: 2/s of 6 min each are 720 conversations at once, not 500", result.stdout)


def test_json_has_the_formula_the_simulation_and_the_cost() -> None:
    found = answer(
        "--arrivals", "30/min", "--minutes", "2", "--slots", "8", "--price-per-hour", "3.6", "--waiting", "2%"
    )
    load, slots = 0.5 * 121, 8 * found["replicas"]  # a second of priming
    assert found["demand"]["load"] == pytest.approx(load)
    assert found["formula"]["waiting"] == pytest.approx(erlang_c(slots, load)) and found["formula"]["waiting"] <= 0.02
    simulated = found["simulation"]
    assert simulated["asked"] == sum(
        simulated[name] for name in ("at_once", "waited", "timed_out", "sent_away", "refused")
    )
    assert found["enough"] and simulated["waiting"] <= 0.02
    minutes = simulated["talk_s"] / 60
    assert found["cost_per_minute"] == pytest.approx(simulated["replicas"] * 0.5 * 3.6 / minutes)
    assert any("Assumed, not measured: priming" in note for note in found["notes"])


def test_too_few_replicas_are_a_failed_check() -> None:
    result = run("--conversations", "60", "--minutes", "2", "--slots", "8", "--replicas", "7", *FAST)
    assert result.exit_code == 1 and "This is not enough for 1 %." in result.stdout
    assert "waiting, by Erlang C  100 %" in result.stdout


def test_more_replicas_than_the_formula_needs_are_found_if_the_balancer_is_blind() -> None:
    load = ("--conversations", "12", "--minutes", "1", "--slots", "4", "--mtbf-hours", "0", "--hours", "2")
    least, random = answer(*load), answer(*load, "--balance", "random")
    assert least["replicas"] == least["formula"]["replicas"] == random["formula"]["replicas"] < random["replicas"]


def test_a_day_with_a_quiet_night_is_scaled() -> None:
    result = run("--conversations", "20", "--minutes", "4", "--slots", "4", "--quiet", "20%", "--hours", "24")
    assert result.exit_code == 0, result.output
    fewest, most, target = re.search(
        r"autoscaler\s+(\d+) to (\d+) replicas, ([\d.]+) clients each", result.stdout
    ).groups()
    assert int(fewest) < int(most) and 0 < float(target) < 4
    assert "Drains cut conversations after 30 s." in result.stdout


LOAD = ("--arrivals", "1/s", "--minutes", "1")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--arrivals", "2", "--minutes", "6", "--slots", "4"], "'2' is not a rate of arrivals"),
        (["--arrivals", "-2/s", "--minutes", "6", "--slots", "4"], "'-2/s' is not a rate"),
        (["--arrivals", "1/s", "--minutes", "nan", "--slots", "4"], "nan is not a number up to"),
        (["--conversations", "inf", "--minutes", "1", "--slots", "4"], "inf is not a number up to"),
        (["--arrivals", "1/s", "--minutes", "-1", "--slots", "4"], "-1.0 is not in the range x>0"),
        (["--conversations", "500", "--slots", "4"], "A fleet needs two of these three"),
        ([*LOAD], "Name its --gpu, or give --slots"),
        ([*LOAD, "--slots", "4", "--waiting", "1"], "'1' is not a probability"),
        ([*LOAD, "--gpu", "l4", "--gpu", "h100"], "one kind of replica: give --gpu only once"),
        ([*LOAD, "--slots", "4", "--precision", "int4"], "need a --gpu"),
        ([*LOAD, "--slots", "4", "--memory", "24GB"], "need a --gpu"),
        ([*LOAD, "--slots", "0"], "0 is not in the range"),
    ],
)
def test_wrong_options_are_usage_errors(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and words in " ".join(result.stderr.split()), result.output


@pytest.mark.parametrize("flag, value", [("--arrivals", "2/s"), ("--slots", "4"), ("--quiet", "20%"), ("--seed", "1")])
def test_options_of_a_fleet_need_fleet(flag: str, value: str) -> None:
    result = CliRunner().invoke(main, ["plan", flag, value])
    assert result.exit_code == 2 and f"{flag} is for a fleet: add --fleet." in result.stderr


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([*LOAD, "--gpu", "rtx-9090"], "Unknown GPU"),
        ([*LOAD, "--gpu", "l4", "--slots", "200"], "The rest holds"),
        ([*LOAD, "--measured", "nowhere.json"], "is not a report with measured frames"),
        (["--arrivals", "999/s", "--minutes", "60", "--slots", "200"], "too many to simulate"),
    ],
)
def test_what_cannot_be_planned_is_an_error(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 1 and words in " ".join(result.stderr.split()), result.output


def test_a_missing_simulator_is_named_with_the_extra() -> None:
    code = "import sys; sys.modules['simpy'] = None; from pplex.cli import main; main()"
    command = [sys.executable, "-c", code, "plan", "--fleet", *LOAD, "--slots", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "needs simpy, which is not installed: pip install 'pplex-export[fleet]'" in done.stderr


@pytest.mark.slow
def test_the_command_of_the_documentation_gives_the_figures_of_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text()
    command, printed = re.search(
        r"```sh\npplex-export plan --fleet (.*)\n```\n\n```\n(.*?)```", text, re.DOTALL
    ).groups()
    result = run(*command.split())
    assert result.stdout.strip() == printed.strip()
