"""The command that starts many servers behind one address."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pplex.cli.command import Command, checked, command, from_environment
from pplex.cli.options import MAX_THREADS
from pplex.cli.serving import serve
from pplex.runtime.errors import ConfigError
from pplex.runtime.files import write_files
from pplex.server.addresses import parse_host
from pplex.server.options import TWILIO_AUTH_TOKEN

if TYPE_CHECKING:
    from pplex.scale.options import ScaleOptions

OF_SERVE = (  # options that each replica takes as `serve` does
    "tokens", "origins", "static", "queue_s", "batch_wait_s", "backlog_frames", "idle_s", "duration_s", "resume_s",
    "drain_s", "recordings", "log_prompts", "device", "one_batch_size", "allowed", "control_tokens", "memory_window",
    "protocols", "pause_s", "realtime_vad", "public_url", "transcriber",
)  # fmt: skip


def parse_replicas(text: str) -> tuple[int, int]:
    """The least and the most replicas: 3, or 1..8. Raises ConfigError."""
    match = re.fullmatch(r"(\d{1,4})(?:\.\.(\d{1,4}))?", text.strip(), re.ASCII)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise ConfigError(f"{text!r} is not a number of replicas. Give a number, 3, or the least and the most, 1..8.")
    return least, most


def _with_options_of_serve(made: Command) -> Command:
    made.params += [parameter for parameter in serve.params if parameter.name in OF_SERVE]
    return made


@_with_options_of_serve
@command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--replicas", default="1", callback=checked(parse_replicas), help="Servers: a number, or a range 1..8.")
@click.option("--slots", type=click.IntRange(1), default=8, help="Conversations at once of each replica.")
@click.option(
    "--queue",
    type=click.IntRange(0),
    default=0,
    help="Clients that may wait for a slot of one replica. They do not move to another replica.",
)
@click.option("--host", default="127.0.0.1", callback=checked(parse_host), help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8998, help="Port to listen on.")
@click.option(
    "--threads", type=click.IntRange(1, MAX_THREADS), help="Processor threads of each replica.  [default: its share]"
)
@click.option(
    "--address", help="A Ray cluster to start or update the replicas on, as HOST:PORT.  [default: this machine]"
)
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path, dir_okay=False), help="Only write Serve's config."
)
def scale(
    bundle: Path,
    replicas: tuple[int, int],
    slots: int,
    host: str,
    port: int,
    threads: int | None,
    address: str | None,
    config_file: Path | None,
    tokens: tuple[str, ...],
    origins: tuple[str, ...],
    static: Path | None,
    recordings: Path | None,
    log_prompts: bool,
    device: str | None,
    one_batch_size: bool,
    allowed: tuple[str, ...],
    control_tokens: tuple[str, ...],
    memory_window: int | None,
    protocols: tuple[str, ...],
    realtime_vad: bool,
    public_url: str | None,
    transcriber: str | None,
    drain_s: float,
    **limits: Any,
) -> None:
    """Serve BUNDLE with many servers behind one address: one on each GPU, or each with its share of the processors.

    Without --address, the servers run on this machine until Ctrl-C. The address is printed once all are ready. See
    docs/scale.md.
    """
    from pplex.runtime.backend import open_to_run
    from pplex.runtime.ort import available_threads
    from pplex.scale.launch import TooManyError, run_here, run_there
    from pplex.scale.options import ReplicaOptions, ScaleOptions, secret_variables
    from pplex.server.options import check_folders, check_transcriber, check_twilio

    least, most = replicas
    check_folders(static, recordings)
    replica = ReplicaOptions(
        bundle=str(bundle.absolute()),
        slots=slots,
        threads=threads or (1 if address else max(1, (available_threads() - 1) // most)),
        device=device,
        origins=origins,
        static=str(static.absolute()) if static else None,
        recordings=str(recordings.absolute()) if recordings else None,
        log_prompts=log_prompts,
        one_batch_size=one_batch_size,
        allow_control="control" in allowed,
        memory_window=memory_window,
        protocols=protocols,
        realtime_vad=realtime_vad,
        public_url=public_url,
        transcriber=transcriber,
        limits=limits,
    )
    auth_token = from_environment(TWILIO_AUTH_TOKEN)
    secrets = secret_variables(tokens, control_tokens, auth_token)
    options = ScaleOptions(replica=replica, least=least, most=most, host=host, port=port)
    if config_file is not None:
        return _write_config(options, config_file)
    try:
        check_transcriber(protocols, transcriber)
        check_twilio(protocols, tokens, auth_token)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    try:
        if address is None:
            open_to_run(bundle, device)
            raise SystemExit(run_here(options, secrets, drain_s))
        else:
            click.echo(run_there(options, secrets, address))
    except TooManyError as error:
        raise click.UsageError(str(error)) from error


def _write_config(options: "ScaleOptions", path: Path) -> None:
    """Write the config file of Ray Serve, and say with which variables Ray must run."""
    import yaml

    from pplex.scale.application import config
    from pplex.scale.environment import environment

    write_files({str(path): yaml.safe_dump(config(options), sort_keys=False).encode()})
    click.echo("\n".join(f"export {name}={value!r}" for name, value in environment(options).items()))
