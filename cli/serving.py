"""The commands of the server: serve a bundle, and load-test a server."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import click

from pplex.cli.command import checked, command, from_environment
from pplex.cli.options import Number, device_option, json_option, memory_window_option, threads_option
from pplex.runtime.errors import ConfigError
from pplex.runtime.files import check_writable, write_files
from pplex.server.addresses import (
    Network,
    parse_host,
    parse_network,
    parse_origin,
    parse_public_url,
    parse_token,
    parse_url,
)
from pplex.server.load_options import ALL_FORMATS, FORMATS, choose_formats, parse_load_protocols
from pplex.server.options import BY_DEFAULT, TWILIO_AUTH_TOKEN, parse_protocols, parse_transcriber

FOLDER = click.Path(path_type=Path, file_okay=False)


@command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--slots", type=click.IntRange(1), default=8, help="Conversations at once.")
@click.option(
    "--host",
    default="127.0.0.1",
    callback=checked(parse_host),
    help="Address or name to listen on; 0.0.0.0 for all IPv4 addresses, :: for IPv6 too.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8998, help="Port to listen on; 0: any free port.")
@click.option("--ssl", "tls_folder", type=FOLDER, help="Folder with cert.pem and key.pem: serve over TLS.")
@click.option("--self-signed", is_flag=True, help="Serve over TLS with a new certificate for this run.")
@click.option(
    "--token",
    "tokens",
    multiple=True,
    envvar="PPLEX_TOKEN",
    show_envvar=True,
    callback=checked(parse_token),
    help="Token that clients must send; can be repeated. In the environment variable, other users cannot see it.",
)
@click.option(
    "--origin",
    "origins",
    multiple=True,
    callback=checked(parse_origin),
    help="Origin of other pages that may connect, such as https://example.org, or *; can be repeated.",
)
@click.option(
    "--trusted-proxy",
    "trusted_proxies",
    multiple=True,
    metavar="ADDRESS",
    callback=checked(parse_network),
    help="IP address or network of a proxy whose X-Forwarded-Host and -Proto are trusted; can be repeated.",
)
@click.option(
    "--allow",
    "allowed",
    type=click.Choice(["control"]),
    multiple=True,
    help="What every client may do. control: say words in the agent's place, change its persona, save and go back.",
)
@click.option(
    "--control-token",
    "control_tokens",
    multiple=True,
    envvar="PPLEX_CONTROL_TOKEN",
    show_envvar=True,
    callback=checked(parse_token),
    help="Token that admits a client and lets it control its conversation; can be repeated.",
)
@click.option("--static", type=FOLDER, help="Folder to serve at / instead of our page.")
@click.option("--queue", type=click.IntRange(0), default=16, help="Clients that may wait for a slot.")
@click.option("--queue-seconds", "queue_s", type=Number(0, min_open=True), default=120, help="Longest wait for a slot.")
@click.option(
    "--batch-wait-ms",
    "batch_wait_s",
    type=Number(0, 40),
    default=10,
    callback=lambda context, parameter, milliseconds: milliseconds / 1000,
    help="How long a frame waits for frames of other clients.",
)
@click.option(
    "--backlog",
    "backlog_frames",
    type=click.IntRange(1, 25),
    default=4,
    help="Late frames of a client to keep; older ones are dropped.",
)
@click.option(
    "--idle-seconds",
    "idle_s",
    type=Number(1),
    default=60,
    help="Disconnect a client that sends no audio for this long.",
)
@click.option(
    "--max-minutes",
    "duration_s",
    type=Number(0, min_open=True),
    default=60,
    callback=lambda context, parameter, minutes: minutes * 60,
    help="Longest conversation.",
)
@click.option(
    "--resume-seconds",
    "resume_s",
    type=Number(0),
    default=30,
    help="Time for a lost client to reconnect; 0: never.",
)
@click.option("--drain-seconds", "drain_s", type=Number(0), default=30, help="Time to finish after SIGTERM or Ctrl-C.")
@click.option("--record", "recordings", type=FOLDER, help="Record both speakers of each conversation in this folder.")
@click.option("--log-prompts", is_flag=True, help="Write personas to the log.")
@threads_option("Processor threads of the engine.  [default: all but one]")
@device_option()
@click.option(
    "--one-batch-size",
    is_flag=True,
    help="Step all slots in every call: a seed then gives a bit-identical conversation, also beside other clients.",
)
@memory_window_option()
@click.option(
    "--protocols",
    default=",".join(BY_DEFAULT),
    callback=checked(parse_protocols),
    help="Protocols, divided by commas. chat: /api/chat; live: OpenAI's GPT-Live at /v1/live/sessions; realtime: OpenAI's "
    f"Realtime API at /v1/realtime; twilio: Twilio's telephone calls at /twilio, which need {TWILIO_AUTH_TOKEN} or --token.",
)
@click.option(
    "--public-url",
    callback=checked(parse_public_url),
    help="Address at which Twilio reaches the server, if a proxy changes it, such as https://voice.example.org.",
)
@click.option(
    "--pause-seconds",
    "pause_s",
    type=Number(1),
    default=600,
    help="As --idle-seconds, for live and realtime: their clients send nothing while the microphone is off.",
)
@click.option(
    "--realtime-vad",
    is_flag=True,
    help="Tell clients of the Realtime API when their user speaks: they then interrupt the agent at every sound.",
)
@click.option(
    "--transcribe",
    "transcriber",
    metavar="MODEL",
    callback=checked(parse_transcriber),
    help="Send users' words to clients of live and realtime. MODEL: whisper, another name of faster-whisper, or a folder.",
)
@click.option(
    "--otel", is_flag=True, help="Send a trace of each conversation to OpenTelemetry's collector, see docs/serving.md."
)
def serve(
    bundle: Path,
    slots: int,
    host: str,
    port: int,
    tls_folder: Path | None,
    self_signed: bool,
    tokens: tuple[str, ...],
    origins: tuple[str, ...],
    trusted_proxies: tuple[Network, ...],
    static: Path | None,
    recordings: Path | None,
    log_prompts: bool,
    threads: int | None,
    device: str | None,
    one_batch_size: bool,
    otel: bool,
    allowed: tuple[str, ...],
    control_tokens: tuple[str, ...],
    memory_window: int | None,
    protocols: tuple[str, ...],
    realtime_vad: bool,
    public_url: str | None,
    transcriber: str | None,
    **limits: Any,
) -> None:
    """Serve BUNDLE to many clients at once: a web page, the original server's WebSocket protocol, OpenAI's protocols, and
    telephone calls from Twilio.

    The address is printed once the server listens. The log goes to standard error as JSON. See docs/protocol.md for
    /api/chat, and docs/apis.md for /v1/live/sessions, /v1/realtime and /twilio.
    """
    from pplex.runtime.backend import open_to_run
    from pplex.runtime.ort import available_threads
    from pplex.server.app import serve as run_server
    from pplex.server.limits import Limits
    from pplex.server.logs import start_logging
    from pplex.server.options import ServeOptions, check_folders
    from pplex.server.tls import folder_context, self_signed_context

    if tls_folder is not None and self_signed:
        raise click.UsageError("--ssl and --self-signed both choose a certificate: give only one of them.")
    check_folders(static, recordings, tls_folder)
    tls = folder_context(tls_folder) if tls_folder else self_signed_context(host) if self_signed else None
    try:
        options = ServeOptions(
            host,
            port,
            slots,
            tokens,
            origins,
            trusted_proxies,
            static,
            recordings,
            log_prompts,
            tls,
            threads or max(1, available_threads() - 1),
            device,
            Limits(**limits),
            one_batch_size,
            otel,
            control_tokens,
            "control" in allowed,
            memory_window,
            protocols,
            realtime_vad,
            from_environment(TWILIO_AUTH_TOKEN),
            public_url,
            transcriber,
        )
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    opened = open_to_run(bundle, device)
    start_logging()
    if run_server(opened, options, click.echo):
        logging.shutdown()
        os._exit(0)  # a normal exit would destroy objects that ONNX Runtime still uses, and abort


@command(prints=True)
@click.argument("url", callback=checked(parse_url))
@click.option("--sessions", type=click.IntRange(1, 4096), default=16, help="Conversations at once.")
@click.option("--minutes", type=Number(0, min_open=True), default=2.0, help="Minutes of speech after all have joined.")
@click.option("--join-seconds", type=Number(0), default=0.0, help="Join at random times within this period.")
@click.option(
    "--scatter", is_flag=True, help="Each session starts to speak 0 to 80 ms after its handshake, not at once."
)
@click.option(
    "--wav",
    "wavs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Recording to send in a loop; can be repeated.  [default: synthetic speech]",
)
@click.option(
    "--protocol",
    "protocols",
    default="chat",
    callback=checked(parse_load_protocols),
    help=f"{', '.join(FORMATS)}; several, divided by commas: sessions take them in turn.",
)
@click.option(
    "--audio",
    "audio",
    type=click.Choice(ALL_FORMATS),
    multiple=True,
    help="Audio format on the wire; can be repeated: each protocol takes the first that it has.  "
    "[default: opus for chat, pcmu-8k for twilio, pcm-24k]",
)
@click.option("--voice", help="One of the server's voices.  [default: the server's]")
@click.option("--persona", "personas", multiple=True, help="Persona; can be repeated: sessions take them in turn.")
@click.option(
    "--seed", type=click.IntRange(0), help="Seed of the first session; each further session adds 1.  [default: random]"
)
@click.option(
    "--token", envvar="PPLEX_TOKEN", callback=checked(parse_token), help="The server's token, if it needs one."
)
@click.option("--insecure", is_flag=True, help="Trust any certificate, such as a self-signed one.")
@json_option()
@click.option("--out", help="Also write the JSON to this file.")
def load(
    url: str,
    sessions: int,
    minutes: float,
    join_seconds: float,
    scatter: bool,
    wavs: tuple[Path, ...],
    protocols: tuple[str, ...],
    audio: tuple[str, ...],
    voice: str | None,
    personas: tuple[str, ...],
    seed: int | None,
    token: str | None,
    insecure: bool,
    as_json: bool,
    out: str | None,
) -> None:
    """Load-test the server at URL: hold many conversations and measure the replies.

    Exit code 1 if frames got no reply, or sessions were refused or failed. Ctrl-C ends the test early with its figures.
    """
    from pplex.cli.progress import names_bar
    from pplex.server.load import Load, run_load

    if out:
        check_writable(out)
    try:
        formats = choose_formats(protocols, audio)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    with names_bar("load") as progress:
        report = run_load(
            Load(
                url=url,
                sessions=sessions,
                minutes=minutes,
                formats=formats,
                wavs=wavs,
                join_s=join_seconds,
                scatter=scatter,
                voice=voice,
                personas=personas,
                seed=seed,
                token=token,
                ssl=not insecure,
            ),
            progress,
        )
    data = json.dumps(report.to_dict(), indent=2)
    if out:
        write_files({out: f"{data}\n".encode()})
    click.echo(data if as_json else report.to_text())
    if not report.passed:
        raise SystemExit(1)
