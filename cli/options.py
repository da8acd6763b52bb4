"""Options of several commands, each declared once, and the printing of reports."""

import functools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import click

from pplex.cli.command import checked
from pplex.runtime.config import INT8, LIKE_ACTIVATIONS, MAX_CANDIDATES
from pplex.runtime.errors import ConfigError
from pplex.runtime.sampling import DEFAULT_SAMPLING, GREEDY, Sampling

Option = Callable[[Any], Any]  # a decorator of a command

MAX_THREADS = 256
LARGEST = 10**9
_NATS = r"\d{1,9}(?:\.\d{1,12})?(?:e-?\d{1,2})?"
_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


class Printable(Protocol):
    """A result that can be printed as text or as JSON."""

    def to_dict(self) -> Any: ...

    def to_text(self) -> str: ...


class Number(click.FloatRange):
    """A number in a range, of at most LARGEST. Not nan, which passes every comparison of a range, and not infinity."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not number <= LARGEST:
            self.fail(f"{value} is not a number up to {LARGEST:,}.", param, ctx)
        return number


def json_option(text: str = "Print JSON.") -> Option:
    """`--json`, passed to the command as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def threads_option(text: str = "Processor threads.  [default: all]") -> Option:
    """`--threads`, None by default."""
    return click.option("--threads", type=click.IntRange(1, MAX_THREADS), help=text)


def device_option(
    text: str = "Where ONNX graphs run; compiled engines run on their GPU.  [default: a GPU if there is one]",
) -> Option:
    """`--device`, None by default: a GPU if there is one."""
    return click.option("--device", type=click.Choice(["cpu", "cuda"]), help=text)


def kv_cache_option(command: Any) -> Any:
    """`--kv-cache`, a name in KV_CACHES."""
    return click.option(
        "--kv-cache",
        type=click.Choice([LIKE_ACTIVATIONS, INT8]),
        default=LIKE_ACTIVATIONS,
        help="int8 halves a conversation's memory.",
    )(command)


def memory_window_option() -> Option:
    """`--memory-window`, off (None) or steps; off by default."""
    return click.option(
        "--memory-window",
        metavar="off|STEPS",
        default="off",
        callback=_parse_window,
        help="Rebuild a conversation's memory before it has this many steps (12.5 a second, and the prompt's), so that it "
        "keeps its persona; the model was trained on 2048.",
    )


def _parse_window(context: click.Context, parameter: click.Parameter, value: str) -> int | None:
    if value == "off":
        return None
    if not value.isdecimal() or not value.isascii():
        raise click.BadParameter(f"{value!r} is neither off nor a number of steps, such as 2048.")
    return int(value)


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of the sampling, passed to the command as `sampling`."""

    @functools.wraps(command)
    def with_sampling(
        *args: Any, greedy: bool, temp_audio: float, temp_text: float, topk_audio: int, topk_text: int, **rest: Any
    ) -> Any:
        sampling = GREEDY if greedy else Sampling(temp_text, topk_text, temp_audio, topk_audio)
        return command(*args, sampling=sampling, **rest)

    usual = DEFAULT_SAMPLING
    for stream, top_k, temperature in (
        ("text", usual.text_top_k, usual.text_temperature),
        ("audio", usual.audio_top_k, usual.audio_temperature),
    ):
        help_of_k = f"Sample from this many of the most probable {stream} tokens."
        kinds = click.IntRange(1, MAX_CANDIDATES)
        click.option(f"--topk-{stream}", type=kinds, default=top_k, help=help_of_k)(with_sampling)
        click.option(f"--temp-{stream}", type=float, default=temperature, help=f"Temperature of the {stream} tokens.")(
            with_sampling
        )
    return click.option("--greedy", is_flag=True, help="Take the most probable token instead of sampling.")(
        with_sampling
    )


def lora_options(command: Any) -> Any:
    """`--lora` and `--lora-scaling`, None by default."""
    scaling = click.option(
        "--lora-scaling",
        type=float,
        callback=_scaling,
        help="The adapter's scaling.  [default: lora_scaling of the config.json beside it]",
    )
    lora = click.option(
        "--lora",
        type=click.Path(path_type=Path),
        is_eager=True,
        help="A LoRA adapter of moshi-finetune to merge: its file or folder.",
    )
    return lora(scaling(command))


def _scaling(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and context.params.get("lora") is None:
        raise click.UsageError("--lora-scaling is for an adapter: add --lora FILE.")
    if value is not None and (value == 0 or not math.isfinite(value)):
        raise click.BadParameter(f"{value} is not a number other than 0.")
    return value


def memory_option(text: str) -> Option:
    """`--memory`, a size such as 16GB, passed in bytes; None by default."""
    return click.option("--memory", metavar="SIZE", callback=checked(parse_memory), help=text)


def fit_option() -> Option:
    """`--fit`, a size such as 8GB, passed in bytes; None by default."""
    text = "The mix of least drift in this memory, like --precision mixed --memory SIZE."
    return click.option("--fit", metavar="SIZE", callback=checked(parse_memory), help=text)


def parse_budget(text: str) -> tuple[float, float]:
    """The budget of text and of audio in "text=0.01,audio=0.05". Raises ConfigError."""
    match = re.fullmatch(rf"text=({_NATS}),audio=({_NATS})", text.replace(" ", ""), re.ASCII)
    budget = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    if not all(0 < one < LARGEST for one in budget):
        raise ConfigError(f"{text!r} is not a budget of drift. Give both in nats: text=0.01,audio=0.05.")
    return budget


def parse_memory(text: str) -> int:
    """Bytes of a size with its unit: 8GB, 7.5 GiB, 512MB. Raises ConfigError."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([MGT]i?B)", text.strip(), re.ASCII | re.IGNORECASE)
    nbytes = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if not nbytes:
        raise ConfigError(f"{text!r} is not a size of memory. Give a number and its unit: 8GB, 7.5GiB or 512MB.")
    return nbytes


def parse_limits(example: str) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], dict[str, float]]:
    """A callback for a repeated option of limits, each as NAME=NUMBER, such as `example`."""

    def callback(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, float]:
        limits = {}
        for text in given:
            name, equals, value = text.partition("=")
            try:
                limits[name.strip()] = float(value)
            except ValueError:
                equals = ""
            if not equals or math.isnan(limits[name.strip()]):
                raise click.BadParameter(f"{text!r} is not NAME=NUMBER, such as {example}.")
        return limits

    return callback


def echo_report(report: Printable, as_json: bool) -> None:
    """Print a report to standard output. A file's name may hold bytes that are not UTF-8: as \\udcff, not as an error."""
    text = json.dumps(report.to_dict(), indent=2) if as_json else report.to_text()
    click.echo(text.encode(errors="backslashreplace").decode())
