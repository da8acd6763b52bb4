"""The manifests of deploy/kubernetes are valid, agree with each other and with the server, and keep the restricted level."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import Object, checked, combined, containers, one, option, pods, rendered

from pplex.server.limits import Limits
from pplex.server.metrics import Metrics

KUBERNETES = ("1.31", "1.34", "1.37")
FOLDERS = ("base", "example", "ray")
LEAVE_S = 10  # a server that ends says goodbye, stops its threads, and exits
# Fields of KubeRay's API reference, v1.6.
RAY_SERVICE = {"rayClusterDeletionDelaySeconds", "serveConfigV2", "rayClusterConfig"}
RAY_CLUSTER = {"rayVersion", "enableInTreeAutoscaling", "authOptions", "headGroupSpec", "workerGroupSpecs"}
RAY_GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}

VALID = """
import json, sys
import kubernetes_validate
objects, versions = json.load(sys.stdin)
for each in objects:
    for version in versions:
        kubernetes_validate.validate(each, version, strict=True)
"""
VALID_KEDA = """
import json, sys
from cloudcoil.models.keda.v1alpha1 import ScaledObject
given = json.load(sys.stdin)
read = json.loads(ScaledObject.model_validate(given).model_dump_json(by_alias=True, exclude_none=True))
assert read == given, f"unknown to KEDA: {read} {given}"
"""


def _valid(objects: list[Object]) -> None:
    checked(VALID, json.dumps([objects, KUBERNETES]))


@pytest.mark.parametrize("folder", FOLDERS)
def test_manifests_are_valid(folder: str) -> None:
    objects = rendered(folder)
    _valid([each for each in objects if each["apiVersion"] not in ("keda.sh/v1alpha1", "ray.io/v1")])
    templates = [template for _, template in pods(objects)]
    assert templates
    _valid([{"apiVersion": "v1", "kind": "PodTemplate", "template": template} for template in templates])


def test_the_check_finds_a_wrong_field() -> None:
    wrong = json.loads(json.dumps(one(rendered("base"), "Deployment")))
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["httpGet"]["pfad"] = "/health"
    with pytest.raises(AssertionError, match="pfad"):
        _valid([wrong])


def test_the_scaled_object_is_valid() -> None:
    checked(VALID_KEDA, json.dumps(one(rendered("example"), "ScaledObject")))


def test_the_ray_service_has_only_known_fields() -> None:
    spec = one(rendered("ray"), "RayService")["spec"]
    cluster = spec["rayClusterConfig"]
    assert set(spec) == RAY_SERVICE and set(cluster) == RAY_CLUSTER
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert set(group) <= RAY_GROUP


EVERY_POD = [
    (folder, name) for folder in FOLDERS for name in (("ray-head", "ray-worker") if folder == "ray" else ("pplex",))
]


def _pod(folder: str, name: str) -> Object:
    return dict(pods(rendered(folder)))[name]


def test_every_pod_is_checked() -> None:
    assert {(folder, name) for folder in FOLDERS for name, _ in pods(rendered(folder))} == set(EVERY_POD)


@pytest.mark.parametrize(("folder", "name"), EVERY_POD)
def test_every_container_is_restricted(folder: str, name: str) -> None:
    spec = _pod(folder, name)["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert not any("hostPath" in volume for volume in spec["volumes"])
    for container in containers(_pod(folder, name)):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert (
            set(container["resources"]["requests"]) >= {"cpu", "memory"}
            and "memory" in container["resources"]["limits"]
        )
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in spec["volumes"]}
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}  # all else is read-only


@pytest.mark.parametrize("name", ["base", "example"])
def test_one_gpu_a_server(name: str) -> None:
    limits = [
        container["resources"]["limits"].get("nvidia.com/gpu", 0) for container in containers(_pod(name, "pplex"))
    ]
    assert limits[-1] == 1 and sum(limits) == 1


def test_the_component_for_processors_asks_for_no_gpu(tmp_path: Path) -> None:
    objects = combined(tmp_path, "processor")
    ((_, template),) = pods(objects)
    assert "nvidia" not in json.dumps(objects)
    assert {container["image"] for container in containers(template)} == {"pplex-export:cpu"}
    assert "memory" in template["spec"]["containers"][0]["resources"]["limits"]


def test_the_grace_is_above_the_longest_conversation() -> None:
    spec = _pod("base", "pplex")["spec"]
    (server,) = spec["containers"]
    limits, arguments = Limits(), server["args"]
    longest_s = 60 * option(arguments, "--max-minutes", limits.duration_s / 60)
    resume_s = option(arguments, "--resume-seconds", limits.resume_s)
    drain_s = option(arguments, "--drain-seconds", limits.drain_s)
    before_s = float(server["lifecycle"]["preStop"]["exec"]["command"][1])
    assert drain_s >= longest_s + resume_s
    assert spec["terminationGracePeriodSeconds"] >= before_s + drain_s + LEAVE_S


def test_ray_waits_for_the_longest_conversation_everywhere() -> None:
    service = one(rendered("ray"), "RayService")["spec"]
    (application,) = yaml.safe_load(service["serveConfigV2"])["applications"]
    limits = Limits(**application["args"]["limits"])
    longest_s = limits.duration_s + limits.resume_s
    for name in ("ray-head", "ray-worker"):
        spec = _pod("ray", name)["spec"]
        variables = {each["name"]: each.get("value") for each in spec["containers"][0]["env"]}
        assert float(variables["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) > longest_s
        assert float(variables["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"]) > longest_s
        assert spec["terminationGracePeriodSeconds"] > longest_s
    for deployment in application["deployments"]:
        assert spec["terminationGracePeriodSeconds"] > deployment["graceful_shutdown_timeout_s"] > longest_s
    assert service["rayClusterDeletionDelaySeconds"] >= spec["terminationGracePeriodSeconds"]


def test_ray_has_a_gpu_and_processors_for_every_replica() -> None:
    service = one(rendered("ray"), "RayService")["spec"]
    (application,) = yaml.safe_load(service["serveConfigV2"])["applications"]
    (deployment,), (group,) = application["deployments"], service["rayClusterConfig"]["workerGroupSpecs"]
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert deployment["num_replicas"] == group["replicas"] == group["maxReplicas"]
    assert deployment["ray_actor_options"]["num_gpus"] == resources["limits"]["nvidia.com/gpu"] == 1
    assert deployment["ray_actor_options"]["num_cpus"] <= int(resources["requests"]["cpu"])


def test_ray_serves_what_pplex_export_scale_writes() -> None:
    """The text and the variables are those of the command in the manifest's comment, but for the GPU."""
    pytest.importorskip("ray", reason="Ray is missing: pip install '.[scale]'")
    application = pytest.importorskip("pplex.scale.application")
    options = pytest.importorskip("pplex.scale.options")
    environment = pytest.importorskip("pplex.scale.environment")
    service = one(rendered("ray"), "RayService")["spec"]
    given = yaml.safe_load(service["serveConfigV2"])
    asked = options.ReplicaOptions(**given["applications"][0]["args"])
    scale = options.ScaleOptions(replica=asked, least=2, most=2, gpus=1, host="0.0.0.0", port=8998)
    assert given == application.config(scale)
    variables = {each["name"]: each.get("value") for each in _pod("ray", "ray-worker")["spec"]["containers"][0]["env"]}
    assert {name: value for name, value in variables.items() if value is not None} == environment.environment(scale)


@pytest.mark.parametrize("folder", FOLDERS)
def test_selectors_find_the_pods_and_ports_exist(folder: str) -> None:
    objects = rendered(folder)
    templates = [template for _, template in pods(objects)]
    ports = {port["name"] for each in templates for port in each["spec"]["containers"][0]["ports"]}
    for each in objects:
        for selector in _selectors(each):
            found = [template for template in templates if selector.items() <= template["metadata"]["labels"].items()]
            assert found == templates, f"{each['kind']} selects other pods: {selector}"
        assert _named_ports(each) <= ports
    assert {name for each in objects for name in _config_maps(each)} == {one(objects, "ConfigMap")["metadata"]["name"]}


def _selectors(each: Object) -> list[dict[str, str]]:
    spec = each.get("spec", {})
    found = [spec.get("podSelector"), spec.get("selector")]
    return [selector.get("matchLabels", selector) for selector in found if selector]


def _named_ports(value: Any) -> set[str]:
    """Ports that a probe, a service or a policy names."""
    if isinstance(value, list):
        return set().union(*map(_named_ports, value))
    if not isinstance(value, dict):
        return set()
    own = {value[key] for key in ("port", "targetPort") if isinstance(value.get(key), str) and not value[key].isdigit()}
    return own.union(*map(_named_ports, value.values()))


def _config_maps(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_config_maps, value))
    if not isinstance(value, dict):
        return set()
    own = {value["configMapRef"]["name"]} if "configMapRef" in value else set()
    return own.union(*map(_config_maps, value.values()))


def test_autoscaling_reads_our_metrics_and_follows_the_slots() -> None:
    scaled = one(rendered("example"), "ScaledObject")["spec"]
    assert scaled["scaleTargetRef"]["name"] == one(rendered("example"), "Deployment")["metadata"]["name"]
    assert "replicas" not in one(rendered("example"), "Deployment")["spec"]
    (trigger,) = scaled["triggers"]
    names = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    assert set(re.findall(r"pplex_\w+", trigger["metadata"]["query"])) <= names
    (server,) = _pod("example", "pplex")["spec"]["containers"]
    assert 0 < float(trigger["metadata"]["threshold"]) < option(server["args"], "--slots", 8)


def test_only_the_download_reaches_the_network() -> None:
    assert one(rendered("base"), "NetworkPolicy")["spec"]["egress"] == []
    (egress,) = one(rendered("example"), "NetworkPolicy")["spec"]["egress"]
    assert {port["port"] for port in egress["ports"]} == {53, 443}


def test_the_example_gives_a_repository_a_commit_and_a_digest() -> None:
    data = one(rendered("example"), "ConfigMap")["data"]
    assert data["BUNDLE_REPO"] and re.fullmatch("[0-9a-f]{40}", data["BUNDLE_REVISION"])
    assert re.fullmatch("[0-9a-f]{64}", data["BUNDLE_SHA256"])
