"""The config of Ray's cluster launcher, against Ray's schema, EC2's, and what Winnow asks for."""

import shlex

import botocore.session
import pytest
import ray._private.label_utils
import yaml
from botocore.validate import ParamValidator
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from pipeline.placement import room
from tests.deploy.checkout import IMAGES, TOP

CONFIG = yaml.safe_load((TOP / "cluster.yaml").read_text())
TYPES = CONFIG["available_node_types"]


def test_ray_accepts_it():
    prepared = prepare_config(CONFIG)
    validate_config(prepared)
    assert prepared["available_node_types"].keys() == TYPES.keys()


@pytest.mark.parametrize("place", [(), ("docker",), ("auth",), ("available_node_types", "readers")])
def test_a_misspelt_field_is_found(place):
    config = yaml.safe_load((TOP / "cluster.yaml").read_text())
    inner = config
    for key in place:
        inner = inner[key]
    inner["max_worker"] = 1
    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", TYPES)
def test_ec2_knows_what_a_node_is_made_of(name):
    """Ray hands `node_config` to EC2 as it is, and looks into it no further."""
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    request = {**TYPES[name]["node_config"], "MinCount": 1, "MaxCount": 1}
    assert ParamValidator().validate(request, shape).generate_report() == ""
    request["InstanceTyp"] = request.pop("InstanceType")
    assert "InstanceTyp" in ParamValidator().validate(request, shape).generate_report()


def test_the_head_runs_no_tasks_and_stays():
    head = TYPES[CONFIG["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_workers_cost_nothing_while_nothing_runs():
    workers = [each for name, each in TYPES.items() if name != CONFIG["head_node_type"]]
    assert [each["min_workers"] for each in workers] == [0, 0]
    assert sum(each["max_workers"] for each in workers) == CONFIG["max_workers"]
    for each in workers:
        assert each["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert each["labels"]["ray.io/market-type"] == "spot"


def test_nodes_have_room_for_what_winnow_asks(monkeypatch):
    shapes = [(each["resources"], each.get("max_workers", 1)) for each in TYPES.values()]
    nodes = [{"Alive": True, "Resources": resources} for resources, count in shapes for _ in range(count)]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    assert room(1) == 16 * 12
    assert room(16) == 12
    assert room(1, on_gpus=True) == TYPES["encoders"]["max_workers"]


def test_images():
    docker = CONFIG["docker"]
    named = {docker["head_image"], docker["worker_image"], TYPES["encoders"]["docker"]["worker_image"]}
    assert named == IMAGES
    assert TYPES["encoders"]["docker"]["worker_image"].endswith("-cu130")


def test_a_token_is_asked_for():
    assert "--env RAY_AUTH_MODE=token" in CONFIG["docker"]["run_options"]
    assert CONFIG["file_mounts"] == {"/home/ray/.ray": "~/.ray"}


@pytest.mark.parametrize("where", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_understands_how_it_is_started(where):
    stop, command = CONFIG[where]
    assert stop == "ray stop"
    words = shlex.split(command)
    assert words[:2] == ["ray", "start"]
    given = start.make_context("start", words[2:]).params
    assert given["head"] == (where == "head_start_ray_commands")
    assert given["metrics_export_port"] == 8080
    assert given["dashboard_host"] == "127.0.0.1"


def test_labels():
    """Ray knows them, and spot nodes are told from the head."""
    for each in TYPES.values():
        ray._private.label_utils.validate_node_label_syntax(each["labels"])  # raises ValueError
    markets = {name: each["labels"]["ray.io/market-type"] for name, each in TYPES.items()}
    assert markets == {
        name: "spot" if "InstanceMarketOptions" in each["node_config"] else "on-demand" for name, each in TYPES.items()
    }
    assert markets["head"] == "on-demand"
