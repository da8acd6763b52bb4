"""The options of `plan --fleet`, and its question. Called by `cli.engines`."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pplex.cli.command import checked
from pplex.cli.options import Number
from pplex.cli.progress import names_bar
from pplex.runtime.errors import ConfigError

if TYPE_CHECKING:
    from pplex.fleet.plan import FleetQuestion
    from pplex.fleet.report import FleetReport
    from pplex.fleet.slots import SlotCount


def _parsed(name: str) -> Callable[..., Any]:
    """The callback for a parser of `fleet.demand`, which is imported when it is used."""

    def parse(text: str) -> Any:
        from pplex.fleet import demand

        return getattr(demand, name)(text)

    return checked(parse)


_POSITIVE, _FROM_0, _SHARE = Number(0, min_open=True), Number(0), _parsed("parse_share")
_OPTIONS: Mapping[str, Mapping[str, Any]] = {  # by flag; the defaults are those of fleet.rules and fleet.plan
    "--arrivals": {"metavar": "RATE", "callback": _parsed("parse_rate"), "help": "Such as 2/s or 120/min."},
    "--minutes": {"type": _POSITIVE, "help": "Mean length of a conversation."},
    "--conversations": {"type": _POSITIVE, "help": "Conversations at once, on average."},
    "--slots": {"type": click.IntRange(1, 256), "help": "Slots of a replica.  [default: memory's, and --measured]"},
    "--measured": {"type": click.Path(path_type=Path), "help": "Report of bench stages: it limits the slots."},
    "--waiting": {"metavar": "SHARE", "callback": _SHARE, "help": "Clients that may wait.  [default: 1%]"},
    "--replicas": {"type": click.IntRange(1, 10_000), "help": "Judge this number of replicas."},
    "--queue": {"type": click.IntRange(0), "help": "As for serve, like the next three."},
    "--queue-seconds": {"type": _POSITIVE},
    "--drain-seconds": {"type": _FROM_0},
    "--resume-seconds": {"type": _FROM_0},
    "--lost": {
        "metavar": "SHARE",
        "callback": _SHARE,
        "help": "Conversations that end without a goodbye.  [default: 0]",
    },
    "--priming-seconds": {"type": _FROM_0, "help": "[default: 1]"},
    "--start-seconds": {"type": _FROM_0, "help": "Until a new replica is ready.  [default: 120]"},
    "--mtbf-hours": {"type": _FROM_0, "help": "Mean time until a replica fails; 0: never.  [default: 1000]"},
    "--balance": {"type": click.Choice(["least", "random"]), "help": "Who gets a newcomer.  [default: least]"},
    "--quiet": {"metavar": "SHARE", "callback": _SHARE, "help": "Arrivals at night, of those by day: autoscaling."},
    "--price-per-hour": {"type": _FROM_0, "help": "Of a replica, in any currency."},
    "--hours": {"type": _POSITIVE, "help": "Simulated time.  [default: as long as 100,000 clients take]"},
    "--seed": {"type": click.IntRange(0), "help": "Of the simulation.  [default: 0]"},
}
_RULES = {"--queue": "queue", "--queue-seconds": "queue_s", "--drain-seconds": "drain_s", "--balance": "balance"}
_RULES |= {"--resume-seconds": "resume_s", "--lost": "lost"}
_RULES |= {"--priming-seconds": "priming_s", "--start-seconds": "start_s"}
_QUESTION = {"--waiting": "probability", "--replicas": "replicas", "--hours": "hours", "--seed": "seed"}
_QUESTION |= {"--price-per-hour": "price_per_hour"}

Given = Mapping[str, Any]  # the options on the command line, by flag


def fleet_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a fleet, passed as one argument: `fleet`, those that were given; None without --fleet."""

    @functools.wraps(command)
    def with_options(*args: Any, fleet: bool, **rest: Any) -> Any:
        values = {flag: rest.pop(_name(flag)) for flag in _OPTIONS}
        given = {flag: value for flag, value in values.items() if value is not None}
        if given and not fleet:
            raise click.UsageError(f"{next(iter(given))} is for a fleet: add --fleet.")
        return command(*args, fleet=given if fleet else None, **rest)

    for flag, settings in reversed(list(_OPTIONS.items())):
        with_options = click.option(flag, _name(flag), **settings)(with_options)
    text = "Plan the replicas for a load; the options below are for it (docs/fleet.md)."
    return click.option("--fleet", is_flag=True, help=text)(with_options)


def report_fleet(
    source: Path | None,
    gpus: Sequence[str],
    precisions: Sequence[str],
    capacities: Sequence[int],
    memory_nbytes: int | None,
    given: Given,
) -> "FleetReport":
    """The plan for the given options. Raises click.UsageError for options that contradict each other, and PplexError."""
    from pplex.fleet.plan import plan_fleet
    from pplex.fleet.report import FleetReport

    for flag, values in (("--gpu", gpus), ("--precision", precisions), ("--capacity", capacities)):
        if len(values) > 1:
            raise click.UsageError(f"A fleet has one kind of replica: give {flag} only once.")
    if not gpus and (precisions or capacities or memory_nbytes):
        raise click.UsageError("--precision, --capacity and --memory of a fleet need a --gpu. Or give only --slots.")
    question = _question(given, _slots(source, gpus, precisions, capacities, memory_nbytes, given))
    with names_bar("plan") as progress:
        return FleetReport(plan_fleet(question, progress))


def _question(given: Given, slots: "SlotCount") -> "FleetQuestion":
    from pplex.fleet.demand import find_demand
    from pplex.fleet.plan import FleetQuestion
    from pplex.fleet.rules import Rules

    conversations, minutes, arrivals = (given.get(flag) for flag in ("--conversations", "--minutes", "--arrivals"))
    try:
        demand, notes = find_demand(conversations, minutes, arrivals, given.get("--quiet", 1.0))
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    rules = {name: given[flag] for flag, name in _RULES.items() if flag in given}
    if "--mtbf-hours" in given:
        rules["mtbf_s"] = 3600 * given["--mtbf-hours"] or None
    asked = {name: given[flag] for flag, name in _QUESTION.items() if flag in given}
    return FleetQuestion(demand, slots, Rules(slots=slots.slots, **rules), notes=notes, **asked)


def _slots(
    source: Path | None,
    gpus: Sequence[str],
    precisions: Sequence[str],
    capacities: Sequence[int],
    memory_nbytes: int | None,
    given: Given,
) -> "SlotCount":
    from pplex.engines.plan_report import named_gpus, open_model
    from pplex.fleet.slots import count_slots, memory_plan

    memory = None
    if gpus:
        (gpu,) = named_gpus(gpus, memory_nbytes)
        memory = memory_plan(open_model(source), gpu, next(iter(precisions), None), next(iter(capacities), None))
    elif not {"--slots", "--measured"} & given.keys():
        raise click.UsageError("How many conversations does a replica hold? Name its --gpu, or give --slots.")
    return count_slots(given.get("--slots"), memory, given.get("--measured"))


def _name(flag: str) -> str:
    """The parameter of an option."""
    return flag.removeprefix("--").replace("-", "_")
