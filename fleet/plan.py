"""How many replicas a load needs, by Erlang's formula and by the simulation. Called by `cli.fleet`."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from pplex.fleet.demand import DAY_S, Demand
from pplex.fleet.erlang import erlang_b, erlang_c, least, replicas_needed
from pplex.fleet.rules import Rules, Scaling
from pplex.fleet.simulation import simulate
from pplex.fleet.slots import SlotCount
from pplex.fleet.tally import Outcome
from pplex.runtime.errors import ConfigError

# Of one simulation, unless the user names its length: enough clients, and enough times the mean length of a conversation.
CLIENTS, LENGTHS, MOST_CLIENTS = 100_000, 100, 400_000
MOST_CONVERSATIONS = 50_000  # at once; more would take minutes to simulate
MORE = 4  # times the replicas of the formula: the simulation tries no more


@dataclass(frozen=True)
class FleetQuestion:
    """What the user wants to know.

    probability: of waiting. replicas: judge only this number. price_per_hour: of a replica.
    """

    demand: Demand
    slots: SlotCount
    rules: Rules
    probability: float = 0.01
    replicas: int | None = None
    hours: float | None = None
    price_per_hour: float | None = None
    seed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def load(self) -> float:
        """Slots that are held at once if nobody waits: in a conversation, being primed, or kept for a lost client."""
        return self.demand.arrivals_per_s * (self.demand.seconds + self.rules.overhead_s)


@dataclass(frozen=True)
class FleetPlan:
    """The answer. by_formula: replicas by Erlang C. waiting_c, refused_b: the formulas for `replicas` as one pool."""

    question: FleetQuestion
    by_formula: int
    replicas: int
    waiting_c: float
    refused_b: float
    scaling: Scaling
    outcome: Outcome

    @property
    def expected_cuts(self) -> float:
        """Conversations that failures cut, by the formula: the share whose replica fails before they end."""
        seconds, mtbf_s = self.question.demand.seconds, self.question.rules.mtbf_s
        return 0.0 if mtbf_s is None else self.outcome.conversations * seconds / (seconds + mtbf_s)

    @property
    def enough(self) -> bool:
        """Whether at most the wanted share of clients waits in the simulation."""
        return self.outcome.waiting <= self.question.probability


def plan_fleet(question: FleetQuestion, progress: Callable[[str], object] = lambda state: None) -> FleetPlan:
    """Start with the replicas of the formula, and add some until in the simulation no more than the wanted share waits.

    Raises ConfigError if the fleet is too large to simulate, or if MORE times as many replicas are not enough.
    """
    if question.load > MOST_CONVERSATIONS:
        raise ConfigError(
            f"{question.load:,.0f} conversations at once are too many to simulate: the limit is {MOST_CONVERSATIONS:,}. "
            "Plan a part of the fleet, such as one region."
        )
    found: dict[int, tuple[Scaling, Outcome]] = {}

    def is_enough(replicas: int) -> bool:
        progress(f"simulates {replicas} replicas")
        found[replicas] = _simulated(question, replicas)
        return found[replicas][1].waiting <= question.probability

    by_formula = replicas_needed(question.slots.slots, question.load, question.probability)
    replicas = question.replicas or least(by_formula, is_enough, MORE * by_formula)
    if replicas is None:
        raise ConfigError(_never_enough(question, MORE * by_formula, found[MORE * by_formula][1]))
    if replicas not in found:
        is_enough(replicas)
    slots = replicas * question.slots.slots
    formulas = erlang_c(slots, question.load), erlang_b(slots, question.load)
    return FleetPlan(question, by_formula, replicas, *formulas, *found[replicas])


def simulated_seconds(question: FleetQuestion) -> float:
    """How long the simulated time is: whole days if the load follows the day."""
    demand = question.demand
    if question.hours is not None:
        return 3600 * question.hours
    clients = min(MOST_CLIENTS, max(CLIENTS, LENGTHS * demand.conversations))
    seconds = max(clients / demand.arrivals_per_s, 10 * demand.seconds)
    return seconds if demand.quiet == 1 else DAY_S * min(30, math.ceil(seconds / DAY_S))


def _simulated(question: FleetQuestion, replicas: int) -> tuple[Scaling, Outcome]:
    scaling = scaling_for(question, replicas)
    return scaling, simulate(question.demand, question.rules, scaling, simulated_seconds(question), question.seed)


def scaling_for(question: FleetQuestion, most: int) -> Scaling:
    """The autoscaler for `most` replicas. Its target leaves as many slots free as the formula asks for, day and night."""
    slots, load = question.slots.slots, question.load
    if question.demand.quiet == 1:
        return Scaling(most, most, target=float(slots))
    quiet = question.demand.quiet * load
    fewest = min(most, replicas_needed(slots, quiet, question.probability))
    return Scaling(fewest, most, target=min(load / most, quiet / fewest))


def _never_enough(question: FleetQuestion, replicas: int, outcome: Outcome) -> str:
    lost = question.rules.mtbf_s is not None and question.rules.start_s * MORE > question.rules.mtbf_s
    why = (
        "Replicas fail nearly as fast as they start: check --mtbf-hours and --start-seconds."
        if lost
        else "Clients wait in the queue of one replica while others have free slots: check --balance and --queue."
        if question.rules.balance == "random"
        else "Look at one number in detail with --replicas."
    )
    return (
        f"Even {replicas} replicas, {MORE} times those of the formula, are not enough in the simulation: "
        f"{100 * outcome.waiting:.2g} % of the clients wait. {why}"
    )
