"""The application for Ray Serve. Called by `scale.cluster`, and by Ray itself.

A config file of Serve names `pplex.scale.application:build`.
"""

from typing import Any

from ray.serve import Application

from pplex.scale.options import SPARE_S, ReplicaOptions, ScaleOptions
from pplex.scale.replica import NAME as DEPLOYMENT
from pplex.scale.replica import Replica

NAME = "pplex"  # of the application
IMPORT_PATH = "pplex.scale.application:build"
BUSY = 0.75  # of the slots in use: more replicas are started above this
UPSCALE_S, DOWNSCALE_S = 5.0, 300.0  # how long the load must be so, before replicas are started or ended
HEALTH_S = 2.0  # between checks of a replica


def build(options: dict[str, Any]) -> Application:
    """The application, from the options of a replica. Raises ConfigError."""
    ReplicaOptions(**options).of_server("127.0.0.1")  # a wrong option is an error now, not in a replica
    return Replica.bind(options)  # type: ignore[attr-defined]


def deployment(options: ScaleOptions) -> dict[str, Any]:
    """The options of Serve for the deployment."""
    replica = options.replica
    found: dict[str, Any] = {
        "max_ongoing_requests": replica.most_requests,
        "graceful_shutdown_timeout_s": replica.longest_s + SPARE_S,
        "graceful_shutdown_wait_loop_s": 1.0,
        "health_check_period_s": HEALTH_S,
        "ray_actor_options": {"num_cpus": replica.threads, "num_gpus": options.gpus},
    }
    if options.least == options.most:
        return found | {"num_replicas": options.least}
    return found | {
        "autoscaling_config": {
            "min_replicas": options.least,
            "max_replicas": options.most,
            "target_ongoing_requests": max(1.0, BUSY * replica.slots),
            "upscale_delay_s": UPSCALE_S,
            "downscale_delay_s": DOWNSCALE_S,
        }
    }


def config(options: ScaleOptions) -> dict[str, Any]:
    """The config file of Serve: for `serve deploy`, or in a RayService of KubeRay."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": options.host, "port": options.port},
        "applications": [
            {
                "name": NAME,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": options.replica.to_dict(),
                "deployments": [{"name": DEPLOYMENT, **deployment(options)}],
            }
        ],
    }


def application(options: ScaleOptions, variables: dict[str, str]) -> Application:
    """The application with the options of Serve. `variables`: the environment of the replicas, beside Ray's own."""
    found = deployment(options)
    if variables:
        found["ray_actor_options"]["runtime_env"] = {"env_vars": variables}
    return Replica.options(**found).bind(options.replica.to_dict())  # type: ignore[attr-defined]
