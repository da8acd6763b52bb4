"""The plan of a fleet as text and as JSON. Called by `cli.fleet`."""

from dataclasses import asdict, dataclass
from typing import Any

from pplex.fleet.demand import rate_text
from pplex.fleet.plan import FleetPlan
from pplex.fleet.rules import MTBF_H, PRIMING_S, START_S
from pplex.measure.tables import aligned


@dataclass(frozen=True)
class FleetReport:
    """A plan to print."""

    plan: FleetPlan

    def to_dict(self) -> dict[str, Any]:
        plan, question, outcome = self.plan, self.plan.question, self.plan.outcome
        price = question.price_per_hour
        return {
            "demand": {
                **asdict(question.demand),
                "conversations": question.demand.conversations,
                "load": question.load,
            },
            "slots": asdict(question.slots),
            "rules": asdict(question.rules),
            "probability": question.probability,
            "replicas": plan.replicas,
            "enough": plan.enough,
            "formula": {
                "replicas": plan.by_formula,
                "waiting": plan.waiting_c,
                "refused_without_queue": plan.refused_b,
            },
            "scaling": asdict(plan.scaling),
            "simulation": {"seed": question.seed, **outcome.to_dict()},
            "price_per_hour": price,
            "cost_per_minute": None if price is None else outcome.cost_per_minute(price),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        return "\n\n".join((self._head, self._table, "\n".join(f"- {note}" for note in self.notes)))

    @property
    def _head(self) -> str:
        plan, question = self.plan, self.plan.question
        demand, slots = question.demand, question.slots
        quiet = "" if demand.quiet == 1 else f" at the busiest time, {100 * demand.quiet:g} % of that at the quietest"
        verdict = "" if plan.enough else f" This is not enough for {_percent(question.probability)}."
        return (
            f"{_count(plan.replicas, 'replica')} of {_count(slots.slots, 'slot')}: {plan.replicas * slots.slots:,} slots "
            f"for {demand.conversations:,.1f} conversations at once.{verdict}\n"
            f"Demand: {rate_text(demand.arrivals_per_s)}{quiet}, {demand.seconds / 60:g} min each.\n"
            f"Slots: {slots.reason}."
        )

    @property
    def _table(self) -> str:
        plan, outcome, question = self.plan, self.plan.outcome, self.plan.question
        low, high = outcome.interval
        rows = [
            ("replicas by Erlang C", f"{plan.by_formula} for at most {_percent(question.probability)} waiting"),
            (
                "waiting, by Erlang C",
                f"{_percent(plan.waiting_c)} if all replicas shared one queue, and none ever failed",
            ),
            ("refused, by Erlang B", f"{_percent(plan.refused_b)} if nobody could wait (--queue 0)"),
            ("waiting, simulated", f"{_percent(outcome.waiting)} (95 % interval {_percent(low)} to {_percent(high)})"),
            ("  of these", self._waits),
            ("conversations cut", self._cuts),
            (
                "slots in use",
                f"{100 * outcome.used:.0f} % of those paid for; {outcome.replicas:.1f} replicas on average",
            ),
        ]
        if not plan.scaling.is_fixed:
            scaling = plan.scaling
            rows.append(
                ("autoscaler", f"{scaling.fewest} to {scaling.most} replicas, {scaling.target:.2f} clients each")
            )
        if question.price_per_hour is not None:
            cost = outcome.cost_per_minute(question.price_per_hour)
            rows.append(
                ("cost", f"{cost:.4g} a minute of conversation, at {question.price_per_hour:g} an hour a replica")
            )
        return aligned(rows)

    @property
    def _waits(self) -> str:
        one = self.plan.outcome
        lengths = "" if one.wait_p50_s is None else f" (median {one.wait_p50_s:.0f} s, p95 {one.wait_p95_s:.0f} s)"
        return (
            f"{one.waited:,} got a slot later{lengths}, {one.timed_out:,} gave up in the queue, {one.refused:,} were "
            f"refused, {one.sent_away:,} were sent away; {one.asked:,} asked"
        )

    @property
    def _cuts(self) -> str:
        one = self.plan.outcome
        return (
            f"{one.cut['failure']:,} by {_count(one.failures, 'failure')} (expected: {self.plan.expected_cuts:.2g}), "
            f"{one.cut['drain']:,} by {_count(one.drains, 'drain')}, of {one.conversations:,} in {one.seconds / 3600:,.1f} h"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What contradicts, what was assumed, and what to do about it."""
        question, rules, outcome = self.plan.question, self.plan.question.rules, self.plan.outcome
        assumed = [
            text
            for text, is_assumed in (
                (f"priming takes {PRIMING_S:g} s (--priming-seconds)", rules.priming_s == PRIMING_S),
                (f"a replica starts in {START_S:g} s (--start-seconds)", rules.start_s == START_S),
                ("every client says goodbye (--lost)", not rules.lost),
                (f"a replica fails every {MTBF_H:g} h (--mtbf-hours)", rules.mtbf_s == 3600 * MTBF_H),
            )
            if is_assumed
        ]
        notes = [*question.notes, *question.slots.notes]
        if assumed:
            notes.append(f"Assumed, not measured: {', '.join(assumed)}.")
        if outcome.cut["drain"]:
            notes.append(
                f"Drains cut conversations after {rules.drain_s:g} s. Give serve, and whatever stops it, more time than the "
                "longest conversation: --drain-seconds."
            )
        return tuple(notes)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _percent(share: float) -> str:
    """Two digits, as in 0.93 % or 12 %."""
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"
