"""`table.md` of benchmarks/gpu.py: all measurements side by side, and the outcome of every step."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from gpu_results import ResultStore

BUDGET_MS = 80.0  # a frame of sound
COLUMNS = ("stage", "slots", "context steps", "frames", "p50 ms", "p95 ms", "p99 ms", "floor ms", "of floor", "kernels")

PAIR_COLUMNS = (
    "pair", "graph", "slots", "context steps", "variant", "p50 ms", "ratio", "kernels", "load s", "first calls s",
)  # fmt: skip


def to_markdown(store: ResultStore) -> str:
    sides = dict(_sides(store))
    blocks = [_heading(store), _pairs(store), *(_block(side, rows) for side, rows in sides.items()), _outcomes(store)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _heading(store: ResultStore) -> str:
    machine = store.steps.get("machine", {}).get("result") or {}
    gpus = machine.get("nvidia-smi")
    where = (
        ", ".join(f"{gpu['name']}, driver {gpu['driver_version']}" for gpu in gpus)
        if isinstance(gpus, list)
        else "no GPU"
    )
    told = " (a rehearsal: no figure means anything)" if store.facts.get("device") == "stand-in" else ""
    return f"# {where}: {store.facts.get('size')} checkpoint on {store.facts.get('device')}{told}"


def _sides(store: ResultStore) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The cells of each side, without duplicates: `stages.bf16` and `stages.bf16.64` both belong to side `bf16`."""
    found: dict[str, dict[Any, dict[str, Any]]] = {}
    for name, record in store.steps.items():
        result = record.get("result")
        if isinstance(result, dict) and isinstance(result.get("rows"), list):
            side = re.sub(r"\.\d+$", "", name.removeprefix("stages."))
            frames = {"frames": (result.get("figures") or {}).get("frames")}
            cells = {(row["slots"], row["context_steps"], row["stage"]): row | frames for row in result["rows"]}
            found[side] = cells | found.get(side, {})
    yield from ((side, list(cells.values())) for side, cells in found.items())


def _pairs(store: ResultStore) -> str:
    """Variants that took turns in one process: times, and the ratio to the first variant of the same point."""
    lines = [
        line
        for name, record in store.steps.items()
        if isinstance(result := record.get("result"), dict) and "pairs" in result
        for line in _pair(name, result)
    ]
    return (
        f"## Pairs: a ratio below 1 is faster than the first variant\n\n{_table(PAIR_COLUMNS, lines)}" if lines else ""
    )


def _pair(step: str, result: dict[str, Any]) -> Iterator[list[str]]:
    first: dict[Any, float] = {}
    for row in result["pairs"]:
        point = row["graph"], row["slots"], row["context_steps"]
        base = first.setdefault(point, row["p50_ms"])
        ratio = f"{row['p50_ms'] / base:.3f}" if base else ""
        facts = result["variants"][row["variant"]]
        kernels = str((facts.get("kernels") or {}).get(row["graph"], ""))
        seconds = [f"{facts[name]:.1f}" for name in ("load_s", "first_calls_s")]
        yield [step, *map(str, point), row["variant"], _number(row["p50_ms"]), ratio, kernels, *seconds]


def _block(side: str, rows: Sequence[dict[str, Any]]) -> str:
    table = _table(COLUMNS, [_cells(row) for row in rows if row["slots"] == 1])
    return f"## {side}\n\n{table}\n\n{_most_slots(rows)}"


def _cells(row: dict[str, Any]) -> list[str]:
    floor = row.get("floor_ms")
    figures = [_number(row.get(name)) for name in ("p50_ms", "p95_ms", "p99_ms", "floor_ms")]
    times = f"{row['p50_ms'] / floor:.1f}" if floor else ""
    kernels = row.get("kernels")
    return [
        row["stage"],
        str(row["slots"]),
        str(row["context_steps"]),
        str(row["frames"] or ""),
        *figures,
        times,
        "" if kernels is None else str(kernels),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _most_slots(rows: Sequence[dict[str, Any]]) -> str:
    """The largest number of slots whose frame takes less than BUDGET_MS, by context steps."""
    frames: dict[int, dict[int, float]] = {}
    for row in rows:
        if row["stage"] == "frame":
            frames.setdefault(row["context_steps"], {})[row["slots"]] = row["p99_ms"]
    if not frames:
        return "No frame was measured."
    lines = [f"The most slots of the measured ones with a p99 of a frame under {BUDGET_MS:g} ms, and each p99:", ""]
    for context_steps, found in sorted(frames.items()):
        times = ", ".join(f"{slots}: {p99_ms:.1f} ms" for slots, p99_ms in sorted(found.items()))
        fitting = max((slots for slots, p99_ms in found.items() if p99_ms < BUDGET_MS), default=0)
        lines.append(f"- {context_steps} context steps: {fitting} ({times})")
    return "\n".join(lines)


def _outcomes(store: ResultStore) -> str:
    rows = [
        [name, record["outcome"], f"{record.get('seconds', 0):.0f}", _reason(record.get("reason"))]
        for name, record in store.steps.items()
    ]
    return f"## Every step\n\n{_table(('step', 'outcome', 's', 'reason'), rows)}\n\n{_tests(store)}".rstrip()


def _tests(store: ResultStore) -> str:
    """The outcome of each test."""
    rows = [
        [f"`{test}`", test_result["outcome"], _reason(test_result["said"].partition("\n")[0])]
        for record in store.steps.values()
        for test, test_result in ((record.get("result") or {}).get("tests") or {}).items()
    ]
    return f"## Every test\n\n{_table(('test', 'outcome', 'message'), rows)}" if rows else ""


def _reason(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ")[:300]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
