"""The manifests, against the schemas of their kinds, against each other, and against what they run."""

import json
import re
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cronsim import CronSim
from jsonschema import Draft202012Validator
from ray.scripts.scripts import start

from operators.errors import LimitExceeded, UserError
from pipeline.config.loader import load_config
from pipeline.nightly.settings import Nightly
from pipeline.placement import room
from tests.deploy.checkout import IMAGES, MANIFESTS, RAY
from tests.deploy.closed_schema import METADATA, close, misspelt

DOCUMENTS = [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]
CUSTOM = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayCronJob": "raycronjobs"}
"""The kinds of KubeRay, and the names of their schemas."""
PLAIN = ["Namespace", "ServiceAccount", "ConfigMap", "CronJob"]
"""Those of Kubernetes itself."""
FREE = re.compile(r"(labels|annotations|rayStartParams|nodeSelector|matchLabels|limits|requests|data)\.")
"""Maps in which every key is allowed."""
KUBERNETES = "1.33"
"""Newer schemas would let fields pass that a cluster of today drops."""


def of_kind(kind: str) -> dict[str, Any]:
    [document] = [document for document in DOCUMENTS if document["kind"] == kind]
    return document


def clusters() -> list[dict[str, Any]]:
    """The specification of the cluster in each manifest that has one."""
    template = of_kind("RayCronJob")["spec"]["jobTemplate"]
    return [of_kind("RayCluster")["spec"], of_kind("RayJob")["spec"]["rayClusterSpec"], template["rayClusterSpec"]]


def groups() -> list[dict[str, Any]]:
    return [clusters()[0]["headGroupSpec"], *clusters()[0]["workerGroupSpecs"]]


def pods() -> Iterator[dict[str, Any]]:
    """The template of each pod."""
    yield from (group["template"] for group in groups())
    yield of_kind("CronJob")["spec"]["jobTemplate"]["spec"]["template"]


def containers() -> list[dict[str, Any]]:
    return [container for pod in pods() for container in pod["spec"]["containers"]]


def gib(quantity: str) -> int:
    """Bytes of a quantity such as 18Gi."""
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi")) * 2**30


def validator(real_data: Path, kind: str) -> Draft202012Validator:
    schema = close(json.loads((real_data / "kuberay" / f"{CUSTOM[kind]}-v1.schema.json").read_text()))
    schema["properties"]["metadata"] = close(METADATA)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("kind", CUSTOM)
def test_custom_resources_satisfy_their_schemas(real_data, kind):
    problems = [
        f"{error.json_path}: {error.message}" for error in validator(real_data, kind).iter_errors(of_kind(kind))
    ]
    assert problems == []


def test_each_misspelt_field_is_found(real_data):
    check = validator(real_data, "RayCronJob")  # which holds the other two
    changes = [(where, changed) for where, changed in misspelt(of_kind("RayCronJob")) if not FREE.search(where)]
    assert [where for where, changed in changes if check.is_valid(changed)] == []
    assert len(changes) > 150


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_resources_satisfy_their_schemas(kind):
    kubernetes_validate.validate(of_kind(kind), KUBERNETES, strict=True)
    for where, changed in misspelt(of_kind(kind)):
        if not FREE.search(where) and where not in ("apiVersion", "kind"):  # by which the schema is found
            with pytest.raises(kubernetes_validate.ValidationError):
                kubernetes_validate.validate(changed, KUBERNETES, strict=True)


def test_every_document_is_checked():
    checked = {*CUSTOM, *PLAIN, "PodMonitor"}
    assert sorted(document["kind"] for document in DOCUMENTS) == sorted(checked)
    assert {document["metadata"].get("namespace", "winnow") for document in DOCUMENTS} == {"winnow"}


def test_the_three_clusters_are_alike():
    standing, job, nightly = clusters()
    assert standing == job == nightly
    once = {key: value for key, value in of_kind("RayJob")["spec"].items() if key != "rayClusterSpec"}
    every_night = of_kind("RayCronJob")["spec"]["jobTemplate"]
    assert once == {key: value for key, value in every_night.items() if key != "rayClusterSpec"}


def test_one_version_everywhere():
    assert clusters()[0]["rayVersion"] == RAY
    assert {container["image"] for container in containers()} == IMAGES
    on_gpus = [c["image"] for c in containers() if "nvidia.com/gpu" in c["resources"]["limits"]]
    assert [image.rpartition("-")[2] for image in on_gpus] == ["cu130"]


def test_ray_knows_its_parameters():
    known = {option for parameter in start.params for option in parameter.opts}
    asked = {f"--{name}" for group in groups() for name in group["rayStartParams"]}
    assert asked - known == set()


def test_nobody_runs_as_root():
    for pod in pods():
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_memory_is_promised_once():
    for container in containers():
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("group", groups(), ids=lambda group: group.get("groupName", "head"))
def test_the_object_store_fits_into_shared_memory(group):
    [container] = group["template"]["spec"]["containers"]
    volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
    [mounted] = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
    shared = volumes[mounted]["emptyDir"]
    assert shared["medium"] == "Memory"
    assert int(group["rayStartParams"]["object-store-memory"]) <= gib(shared["sizeLimit"])
    assert gib(shared["sizeLimit"]) <= gib(container["resources"]["limits"]["memory"]) // 2
    spill = gib(volumes["ray"]["emptyDir"]["sizeLimit"])
    assert spill < gib(container["resources"]["limits"]["ephemeral-storage"])


def test_what_is_named_exists():
    config, account = of_kind("ConfigMap")["metadata"]["name"], of_kind("ServiceAccount")["metadata"]["name"]
    for pod in pods():
        assert pod["spec"]["serviceAccountName"] == account
        mounted = {volume["configMap"]["name"] for volume in pod["spec"]["volumes"] if "configMap" in volume}
        assert mounted <= {config}
        named = {volume["name"] for volume in pod["spec"]["volumes"]}
        for container in pod["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == named
    read = re.compile(r"/etc/winnow/(\S+)")
    job, submission = of_kind("RayJob")["spec"]["entrypoint"], of_kind("CronJob")
    [submit] = submission["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    for command in (job, " ".join(submit["args"])):
        assert set(read.findall(command)) <= set(of_kind("ConfigMap")["data"])
    cluster = of_kind("RayCluster")["metadata"]["name"]
    assert f"--address=http://{cluster}-head-svc:8265" in submit["args"]
    [token] = [each["valueFrom"]["secretKeyRef"] for each in submit["env"] if each["name"] == "RAY_AUTH_TOKEN"]
    assert token == {"name": cluster, "key": "auth_token"}


def test_every_node_is_scraped():
    spec = of_kind("PodMonitor")["spec"]
    assert set(of_kind("PodMonitor")) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(spec) == {"selector", "podMetricsEndpoints"}
    [endpoint] = spec["podMetricsEndpoints"]
    assert set(endpoint) == {"port", "interval", "relabelings"}
    for group in groups():
        assert spec["selector"]["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()
        [container] = group["template"]["spec"]["containers"]
        assert {"name": endpoint["port"], "containerPort": 8080} in container["ports"]


def test_schedules():
    for kind in ("RayCronJob", "CronJob"):
        spec = of_kind(kind)["spec"]
        zone = zoneinfo.ZoneInfo(spec["timeZone"])
        first = next(CronSim(spec["schedule"], datetime(2026, 1, 1, tzinfo=UTC).astimezone(zone)))
        assert first == datetime(2026, 1, 1, 2, tzinfo=zone)


def test_what_wants_a_person_is_not_tried_again():
    job = of_kind("CronJob")["spec"]["jobTemplate"]["spec"]
    [codes] = [
        rule["onExitCodes"]["values"] for rule in job["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"
    ]
    assert codes == [UserError.exit_code, LimitExceeded.exit_code]


def test_configs_are_valid_and_use_the_whole_cluster(tmp_path, monkeypatch):
    nodes = []
    for group in groups():
        [container] = group["template"]["spec"]["containers"]
        limits, cpus = container["resources"]["limits"], group["rayStartParams"].get("num-cpus")
        resources = {"CPU": float(cpus or limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}
        nodes += [{"Alive": True, "NodeID": "", "Resources": resources}] * group.get("maxReplicas", 1)
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    readers = [node for node in nodes if not node["Resources"]["GPU"]]
    for name, text in of_kind("ConfigMap")["data"].items():
        (tmp_path / name).write_text(text)
        config = load_config(str(tmp_path / name), Nightly)
        assert config.resources.workers == sum(node["Resources"]["CPU"] for node in readers)
        assert config.resources.gpus == room(config.resources.threads, on_gpus=True)
        weights = {getattr(model, "weights", "/models/") for model in config.models.values()}
        assert all(path.startswith("/models/") for path in weights)
