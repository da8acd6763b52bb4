"""Starts the application on a Ray of our own on this machine, or on a cluster that exists. Called by `cli.scaling`.

The variables of `scale.environment` must be set before this module is imported.
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ray
from ray import serve
from ray.serve._private.common import ReplicaState

from pplex.runtime.errors import ConfigError, EngineError
from pplex.scale.application import NAME, application
from pplex.scale.environment import PROXY, environment
from pplex.scale.options import ScaleOptions

FAILED = ("DEPLOY_FAILED", "UNHEALTHY")  # states of the application
LOOK_S = 0.5
END_S = 5.0  # for an answer of the replicas
STORE_BYTES = 100 << 20  # of Ray's object store, which we do not use; Ray's least
MUST_MATCH = (PROXY, "RAY_SERVE_HAPROXY_RETRY_ON", "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD")
AT_LEAST = ("RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S", "RAY_SERVE_HAPROXY_TUNE_BUFSIZE", "WEBSOCKETS_MAX_LINE_LENGTH")


def start_here(options: ScaleOptions, folder: Path) -> str:
    """Start Ray on this machine, with its files in `folder`; returns its address. Raises ConfigError."""
    _quiet()
    ray.init(
        num_cpus=2 * options.most * options.replica.threads,  # in an update, old and new replicas
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(folder),
        _node_ip_address="127.0.0.1",
        object_store_memory=STORE_BYTES,
    )
    return str(ray.get_runtime_context().gcs_address)


def connect(address: str) -> None:
    """Connect to a cluster. Raises ConfigError."""
    _quiet()
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"Ray at {address} cannot be reached: {' '.join(str(error).split())[:500]}") from error


def with_gpus(options: ScaleOptions) -> ScaleOptions:
    """The options with a GPU for each replica, if the cluster has GPUs. Raises ConfigError if it has too few."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if options.replica.device == "cpu" or (gpus == 0 and options.replica.device is None):
        return options
    if gpus < options.least:
        raise ConfigError(
            f"{options.least} replicas need {options.least} GPUs, and Ray has {gpus}. Start fewer with --replicas, or "
            "use processors with --device cpu."
        )
    return replace(options, gpus=1)


def variables() -> dict[str, str]:
    """The variables that concern us, as a process on the cluster has them."""
    names = (*MUST_MATCH, *AT_LEAST)
    found: dict[str, str] = ray.get(ray.remote(num_cpus=0)(_variables).remote(names))
    return found


def _variables(names: tuple[str, ...]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}


def differences(options: ScaleOptions, found: dict[str, str]) -> list[str]:
    """What the nodes of a cluster need that they do not have, as NAME=VALUE."""
    needed = environment(options)
    wrong = [name for name in MUST_MATCH if found.get(name) != needed[name]]
    low = [name for name in AT_LEAST if not found.get(name, "").isdigit() or int(found[name]) < int(needed[name])]
    return [f"{name}={needed[name]}" for name in (*wrong, *low)]


def deploy(
    options: ScaleOptions, secrets: dict[str, str] | None = None, check: Callable[[], None] = lambda: None
) -> None:
    """Start or update the application; returns when the new replicas are ready. Raises EngineError.

    secrets: variables with tokens, for the replicas. `check` is called while it waits, and may raise.

    After an update, older replicas may still finish their conversations.
    """
    serve.start(http_options={"host": options.host, "port": options.port}, proxy_location="HeadOnly")
    serve.run_many(
        [serve.RunTarget(application(options, secrets or {}), NAME, "/")], wait_for_applications_running=False
    )
    while not _is_ready(options):
        check()
        time.sleep(LOOK_S)


def _is_ready(options: ScaleOptions) -> bool:
    """Whether the right number of replicas take clients, all with our options. Raises EngineError if they cannot start."""
    found = serve.status().applications[NAME]
    if found.status in FAILED:
        reasons = [found.message, *(one.message for one in found.deployments.values())]
        raise EngineError("The replicas did not start. " + "\n".join(filter(None, reasons)))
    if not any(one.replica_states.get(ReplicaState.RUNNING) for one in found.deployments.values()):
        return False
    # Serve's own state changes only a moment after an update, and is not final before all older replicas have ended.
    asked = serve.get_app_handle(NAME).broadcast("describe")
    answers = asked.results(timeout_s=END_S, return_exceptions=True)
    return options.least <= len(answers) <= options.most and all(one == options.replica.to_dict() for one in answers)


def drain(seconds: float) -> None:
    """Refuse newcomers, and let conversations finish for `seconds`; then they end with 1001. Does not wait for them."""
    serve.get_app_handle(NAME).broadcast("drain", seconds).results(timeout_s=END_S, return_exceptions=True)


def is_drained() -> bool:
    """Whether all conversations have ended after `drain`. Not in a thread: Ray cannot end while a thread waits for it."""
    asked = serve.get_app_handle(NAME).broadcast("is_drained")
    return False not in asked.results(timeout_s=END_S, return_exceptions=True)


def stop() -> None:
    """End Ray on this machine, or leave the cluster."""
    ray.shutdown()


def _quiet() -> None:
    """Turn off what Ray says to developers."""
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
