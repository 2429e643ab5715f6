"""The manifests fit Kubernetes' schemas, and the server: its settings, paths, ports, user and times."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from engine.runners.vllm.places import check_places
from engine.settings import SettingsError
from server.auth import OPEN_PATHS
from server.config import ConfigError, ServeConfig, load_config
from server.launch import LAST_WORDS_S
from server.runners import check_runner_settings
from tests.deploy.leader_worker_set import SCHEMA

ROOT = Path(__file__).parents[2]
KUBERNETES = "1.34"
FILES = sorted((ROOT / "deploy").glob("*.yaml"))
GROUP = {"LWS_GROUP_SIZE": "2", "LWS_LEADER_ADDRESS": "drafthouse-0.drafthouse.default"}


def documents() -> list[dict[str, Any]]:
    return [one for file in FILES for one in yaml.safe_load_all(file.read_text())]


def named(kind: str) -> list[dict[str, Any]]:
    return [one for one in documents() if one["kind"] == kind]


def templates(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pods that a document makes; of a LeaderWorkerSet the leader first."""
    if document["kind"] == "Deployment":
        yield document["spec"]["template"]
    if document["kind"] == "LeaderWorkerSet":
        group = document["spec"]["leaderWorkerTemplate"]
        yield from (group["leaderTemplate"], group["workerTemplate"])


def check(document: dict[str, Any]) -> None:
    """Raises ValidationError, of either package."""
    if document["kind"] != "LeaderWorkerSet":
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    jsonschema.validate(document, SCHEMA)
    for template in templates(document):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


PODS = [
    pytest.param(pod["spec"], id=pod["spec"]["containers"][0]["name"]) for one in documents() for pod in templates(one)
]


def environment(pod: dict[str, Any], **variables: str) -> dict[str, str]:
    """Variables with plain values, of those in front of them made as Kubernetes does."""
    found = dict(variables)
    for one in pod["containers"][0]["env"]:
        if "value" in one:
            found[one["name"]] = re.sub(r"\$\((\w+)\)", lambda name: found[name[1]], one["value"])
    return found


def configuration(pod: dict[str, Any], index: int = 0) -> ServeConfig:
    """As the container reads it. index: of the machine in its group."""
    container = pod["containers"][0]
    command, *flags = container["args"]
    assert command == "serve" and set(flags) <= {"--headless"}
    variables = environment(pod, LWS_WORKER_INDEX=str(index), **GROUP)
    return load_config({"headless": True} if flags else {}, variables)


@pytest.mark.parametrize("document", documents(), ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_documents_fit_the_schemas(document: dict[str, Any]) -> None:
    check(document)


@pytest.mark.parametrize("kind", ["Deployment", "LeaderWorkerSet"])
def test_the_schemas_notice_a_slip(kind: str) -> None:
    document = copy.deepcopy(named(kind)[0])
    container = next(templates(document))["spec"]["containers"][0]
    container["readinesProbe"] = container.pop("readinessProbe")
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(document)


def test_the_schema_of_groups_notices_a_slip() -> None:
    document = copy.deepcopy(named("LeaderWorkerSet")[0])
    document["spec"]["leaderWorkerTemplate"]["restartPolicy"] = "Always"
    with pytest.raises(jsonschema.ValidationError, match="'Always' is not one of"):
        check(document)


@pytest.mark.parametrize("pod", PODS)
def test_variables_are_settings(pod: dict[str, Any]) -> None:
    settings = {f"DRAFTHOUSE_{name.upper()}" for name in ServeConfig.model_fields}
    given = {one["name"] for one in pod["containers"][0]["env"]}
    assert {name for name in given if name.startswith("DRAFTHOUSE_")} <= settings
    check_runner_settings(configuration(pod))


def test_kubernetes_own_variables_would_be_taken_for_a_setting() -> None:
    with pytest.raises(ConfigError, match="DRAFTHOUSE_PORT"):
        load_config({}, {"DRAFTHOUSE_PORT": "tcp://10.0.0.1:80"})


@pytest.mark.parametrize("pod", PODS)
def test_pods_keep_to_themselves(pod: dict[str, Any]) -> None:
    assert pod["enableServiceLinks"] is False and pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"]
    uid = re.search(r"useradd .*--uid (\d+)", (ROOT / "Dockerfile").read_text())
    assert uid is not None and int(uid[1]) == pod["securityContext"]["runAsUser"]
    [container] = pod["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) >= 1
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    claims = {one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"] if "persistentVolumeClaim" in one}
    assert claims == {one["metadata"]["name"] for one in named("PersistentVolumeClaim")}


@pytest.mark.parametrize("pod", [pod for pod in PODS if pod.id == "server"])
def test_servers_are_watched_and_stop_in_time(pod: dict[str, Any]) -> None:
    [container] = pod["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        get = container[probe]["httpGet"]
        assert get["path"] in OPEN_PATHS
        assert get["port"] in {port["name"] for port in container["ports"]}
    config = configuration(pod)
    assert {port["containerPort"] for port in container["ports"]} == {config.port}
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > pause + config.grace_s + LAST_WORDS_S
    [key] = [one for one in container["env"] if one["name"] == "DRAFTHOUSE_API_KEY"]
    assert "secretKeyRef" in key["valueFrom"]


def test_a_group_makes_one_engine() -> None:
    [document] = named("LeaderWorkerSet")
    leader, worker = (template["spec"] for template in templates(document))
    size = document["spec"]["leaderWorkerTemplate"]["size"]
    first, second = configuration(leader, 0), configuration(worker, 1)
    assert not first.headless and second.headless
    assert {**second.vllm_args, "node_rank": 0} == first.vllm_args
    assert first.model == second.model
    arguments = first.vllm_args
    gpus = int(leader["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert arguments["nnodes"] == size
    assert arguments["tensor_parallel_size"] * arguments["pipeline_parallel_size"] == size * gpus
    check_places(arguments, headless=False)
    check_places(second.vllm_args, headless=True)
    with pytest.raises(SettingsError, match="headless"):
        check_places(second.vllm_args, headless=False)


def test_services_reach_servers_only() -> None:
    deployed, grouped = named("Service")
    [deployment], [group] = named("Deployment"), named("LeaderWorkerSet")
    labels = next(templates(deployment))["metadata"]["labels"]
    assert deployed["spec"]["selector"].items() <= labels.items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert grouped["spec"]["selector"] == {
        "leaderworkerset.sigs.k8s.io/name": group["metadata"]["name"],
        "leaderworkerset.sigs.k8s.io/worker-index": "0",
    }
    assert grouped["metadata"]["name"] != group["metadata"]["name"]  # it has a Service of that name
