"""What the chart makes of every preset: objects that Kubernetes takes, and pods that may do no more than they must."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest

from deploy.binaries import HELM, run
from deploy.manifests import CHART
from services.grounding.profiles import profile_named
from sfumato.errors import Unavailable
from sfumato.runtime.vlm import CertificatePair, VlmModel, command
from tests.deploy.charts import ALL, BUILT_IN, EVERYTHING, JOINT, Object, component, jobs, named, of, rendered, selected, templates


@pytest.mark.parametrize("preset", ALL)
def test_helm_finds_nothing_to_complain_of(preset: str) -> None:
    values = ("--values", str(CHART / f"values-{preset}.yaml")) if preset else ()
    assert "0 chart(s) failed" in run(HELM, "lint", "--strict", str(CHART), *values)


def test_kubernetes_takes_every_object_of_every_preset() -> None:
    found: dict[tuple[str, str], list[Object]] = {}
    for preset in ALL:
        for more in ((), JOINT, EVERYTHING):
            for each in (*rendered(preset, *more), *jobs(rendered(preset, *more))):
                same = found.setdefault((each["apiVersion"], each["kind"]), [])
                same += [each] if each not in same else []
    assert len(found) >= 16
    for (version, kind), objects in found.items():
        if version.partition("/")[0] in BUILT_IN:  # all of a kind at once: most of the time goes into reading the schema
            kubernetes_validate.validate({"apiVersion": version, "kind": f"{kind}List", "items": objects}, "1.34", strict=True)


def test_kubernetes_does_not_take_what_is_wrong() -> None:
    wrong = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": {"replica": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({"apiVersion": "apps/v1", "kind": "DeploymentList", "items": [wrong]}, "1.34", strict=True)


@pytest.mark.parametrize("preset", ALL)
def test_every_pod_keeps_to_the_restricted_standard_and_has_limits(preset: str) -> None:
    for name, template in templates(rendered(preset, *JOINT)):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        assert {kind for volume in spec["volumes"] for kind in volume if kind != "name"} <= {
            "emptyDir", "projected", "secret", "configMap", "persistentVolumeClaim",
        }, name  # fmt: skip
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}, name
            assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"], name
            assert not re.search(r":latest$|^[^:@]+$", container["image"]), name


@pytest.mark.parametrize("preset", ALL)
def test_no_account_has_a_token_or_a_role_but_the_one_that_starts_jobs(preset: str) -> None:
    for more in ((), JOINT):
        objects = rendered(preset, *more)
        accounts = {found["metadata"]["name"]: found for found in of(objects, "ServiceAccount")}
        assert all(found["automountServiceAccountToken"] is False for found in accounts.values())
        specs = [template["spec"] for _, template in templates(objects)]
        pods = {spec["serviceAccountName"]: spec["automountServiceAccountToken"] for spec in specs}
        assert set(pods) == set(accounts)
        assert [name for name, token in pods.items() if token] == (["sfumato-orchestrator"] if more else [])
        roles = of(objects, "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
        assert [found["kind"] for found in roles] == (["Role", "RoleBinding"] if more else [])
    role, binding = roles
    assert role["rules"] == [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "create", "delete"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"] == "sfumato-orchestrator"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "sfumato-orchestrator", "namespace": "sfumato"}]


@pytest.mark.parametrize("preset", ALL)
def test_what_answers_is_looked_at_spread_and_given_time_to_end(preset: str) -> None:
    budgets = [found["spec"]["selector"]["matchLabels"] for found in of(rendered(preset), "PodDisruptionBudget")]
    for found in of(rendered(preset), "Deployment", "StatefulSet"):
        name, template = found["metadata"]["name"], found["spec"]["template"]
        spec, (container,) = template["spec"], template["spec"]["containers"]
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] in ports, name
        assert spec["topologySpreadConstraints"], name
        assert any(selected(labels, template) for labels in budgets), name
        stop = container["lifecycle"]["preStop"]
        environment = {each["name"]: each.get("value") for each in container["env"]}
        grace = max(int(environment.get(f"SFUMATO_{kind}_GRACE", 0)) for kind in ("GRPC", "BUS"))
        # Out of the endpoints, then the grace in which tasks end or are handed back, then what is left to say.
        assert spec["terminationGracePeriodSeconds"] >= stop.get("sleep", {"seconds": 40})["seconds"] + grace + 15, name


@pytest.mark.parametrize("preset", ALL)
def test_every_service_has_a_pod_behind_it_and_every_port_a_listener(preset: str) -> None:
    objects = rendered(preset, *JOINT)
    for service in of(objects, "Service"):
        pods = [template for _, template in templates(objects) if selected(service["spec"]["selector"], template)]
        assert len(pods) == 1, service["metadata"]["name"]
        ports = {port["name"] for container in pods[0]["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def _secrets(template: Object) -> Iterator[str]:
    for volume in template["spec"]["volumes"]:
        for source in [volume, *volume.get("projected", {}).get("sources", [])]:
            if "secret" in source:
                yield source["secret"].get("name") or source["secret"]["secretName"]


def test_secrets_are_files_and_each_pod_has_its_own_password_only() -> None:
    objects = rendered("flux1-dev")
    for name, template in templates(objects):
        for container in template["spec"]["containers"]:
            assert not [each for each in container.get("env", []) if "secretKeyRef" in each.get("valueFrom", {})], name
            assert "envFrom" not in container, name
        for volume in template["spec"]["volumes"]:
            for source in volume.get("projected", {}).get("sources", []):
                keys = {item["key"] for item in source.get("secret", {}).get("items", [])}
                if source.get("secret", {}).get("name") == "sfumato-bus":
                    assert keys == ({"passwords.conf"} if component(template) == "nats" else {component(template)}), name
    mounted = {component(template): set(_secrets(template)) for _, template in templates(objects)}
    assert {name for name, secrets in mounted.items() if "sfumato-registry-database" in secrets} == {"registry", "migrate"}
    assert {name for name, secrets in mounted.items() if "sfumato-hub" in secrets} == {"fetch"}
    assert mounted["vlm"] == {"sfumato-vlm-tls"}
    assert mounted["generator"] == {"sfumato-auth", "sfumato-bus", "sfumato-generator-tls"}


def test_streams_are_kept_three_times_from_three_servers_on() -> None:
    for preset, servers, copies in (("", 3, "3"), ("vista-cpu", 1, "1")):
        objects = rendered(preset)
        assert named(objects, "StatefulSet", "sfumato-nats")["spec"]["replicas"] == servers
        (container,) = named(objects, "Deployment", "sfumato-generator")["spec"]["template"]["spec"]["containers"]
        environment = {each["name"]: each["value"] for each in container["env"]}
        assert environment["SFUMATO_BUS_REPLICAS"] == copies and environment["SFUMATO_BUS_URL"].count("nats://") == servers
        assert "sync_interval: always" in named(objects, "ConfigMap", "sfumato-nats")["data"]["nats.conf"]


def test_vllm_is_started_as_the_program_itself_starts_it() -> None:
    (container,) = named(rendered("flux1-dev"), "Deployment", "sfumato-vlm")["spec"]["template"]["spec"]["containers"]
    profile = profile_named("qwen2-vl")
    model = VlmModel("Qwen/Qwen2-VL-72B-Instruct", profile.name, profile.pixels, profile.context, gpus=4)
    pair = CertificatePair(Path("/run/tls/tls.crt"), Path("/run/tls/tls.key"))
    assert [*container["command"], *container["args"]][1:] == command(model, "vllm", "0.0.0.0", 8000, pair)[1:]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4


def test_a_joint_training_is_a_job_of_pods_that_find_each_other_and_the_trainers_leave_it_to_them() -> None:
    assert not jobs(rendered("")) and not jobs(rendered("", "--set", "trainer.joint.gpus=1"))
    for words, pods, each in ((JOINT, 2, 1), (("--set", "trainer.joint.gpus=4"), 1, 4)):
        objects = rendered("", *words)
        (job,) = jobs(objects)
        spec, template = job["spec"], job["spec"]["template"]["spec"]
        assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", pods, pods)
        (container,) = template["containers"]
        assert {f"--nnodes={pods}", f"--nproc-per-node={each}"} < set(container["command"])
        assert container["resources"]["limits"].get("nvidia.com/gpu", 1) == each
        service = named(objects, "Service", template["subdomain"])["spec"]
        assert service["clusterIP"] == "None" and service["publishNotReadyAddresses"]
        environments = {
            name: {each["name"]: each.get("value") for each in pod["spec"]["containers"][0]["env"]}
            for name, pod in ((component(pod), pod) for _, pod in templates(objects) if component(pod) in ("trainer", "orchestrator"))
        }
        assert environments["trainer"]["SFUMATO_TRAINER_JOINT"] == "false"
        assert environments["orchestrator"]["SFUMATO_ORCHESTRATOR_JOINT_JOB"] == "/etc/sfumato/joint-job.yaml"


def test_grounding_waits_for_a_vllm_that_loads() -> None:
    (grounding,) = named(rendered("flux1-dev"), "Deployment", "sfumato-grounding")["spec"]["template"]["spec"]["containers"]
    (vlm,) = named(rendered("flux1-dev"), "Deployment", "sfumato-vlm")["spec"]["template"]["spec"]["containers"]
    waits = next(float(each["value"]) for each in grounding["env"] if each["name"] == "SFUMATO_VLM_WAIT")
    assert waits >= vlm["startupProbe"]["periodSeconds"] * vlm["startupProbe"]["failureThreshold"]


@pytest.mark.parametrize("kind", ["keda", "hpa"])
def test_workers_follow_the_length_of_their_queue(kind: str) -> None:
    objects = rendered("", "--set", f"autoscaling.kind={kind}")
    scaled = {found["spec"]["scaleTargetRef"]["name"]: found["spec"] for found in of(objects, "ScaledObject", "HorizontalPodAutoscaler")}
    assert set(scaled) == {f"sfumato-{service}" for service in ("generator", "grounding", "scoring", "trainer")}
    for name, spec in scaled.items():
        assert "replicas" not in named(objects, "Deployment", name)["spec"]  # it is the scaler's to say
        service = name.removeprefix("sfumato-")
        queues = [service, "joint"] if service == "trainer" else [service]
        if kind == "keda":
            assert {trigger["metadata"]["consumer"] for trigger in spec["triggers"]} == {"workers"}
            assert [trigger["metadata"]["stream"] for trigger in spec["triggers"]] == [f"sfumato-tasks-{queue}" for queue in queues]
        else:
            assert [metric["external"]["metric"]["selector"]["matchLabels"]["service"] for metric in spec["metrics"]] == queues
    alone = named(rendered("", "--set", "autoscaling.kind=keda", *JOINT), "ScaledObject", "sfumato-trainer")
    assert [trigger["metadata"]["stream"] for trigger in alone["spec"]["triggers"]] == ["sfumato-tasks-trainer"]
    if kind == "keda":
        assert scaled["sfumato-generator"]["minReplicaCount"] == 0


WRONG = {
    ("generator.replicas=many",): "/generator/replicas",
    ("nats.replicas=2",): "must be one of 1, 3, 5",
    ("geneator.replicas=2",): "'geneator' not allowed",
    ("artifacts.url=/somewhere",): "/artifacts/url",
    ("generator.resources.limits=null",): "/generator/resources",
    ("vlm.kind=quantum",): "/vlm/kind",
    ("image.tag=latest",): "latest is another image every day",
    ("vlm.image=vllm/vllm-openai:latest",): "name a version",
    ("vlm.kind=gpu",): "vlm.gpus of 1 at least",
    ("vlm.profile=qwen2-vl",): "serves the built-in model",
    ("models.fetch={a/b}",): "models.volume.enabled",
    ("bus.external.url=nats://elsewhere:4222",): "secrets.bus",
    ("scoring.env.SFUMATO_GRPC_TOKEN=x",): "passwords are no environment",
    ("trainer.joint.env.SFUMATO_BUS_PASSWORD=x",): "trainer.joint.env.SFUMATO_BUS_PASSWORD",
    ("trainer.joint.pods=0",): "/trainer/joint/pods",
    ("trainer.scaling.min=5", "trainer.scaling.max=2"): "min is greater than max",
    ("artifacts.volume.accessModes={ReadWriteOnce}",): "ReadWriteMany",
}


@pytest.mark.parametrize("settings", WRONG, ids=" ".join)
def test_values_that_cannot_work_are_refused_with_a_reason(settings: tuple[str, ...]) -> None:
    with pytest.raises(Unavailable) as refused:
        rendered("", *[word for setting in settings for word in ("--set", setting)])
    assert WRONG[settings] in str(refused.value)


def test_the_notes_tell_the_next_three_commands() -> None:
    told = run(HELM, "install", "sfumato", str(CHART), "--dry-run=client", "--namespace", "art", "--hide-secret").partition("NOTES:")[2]
    for words in ("helm test sfumato -n art", "sfumato run configs/artaug-vista.yaml --server", "sfumato models promote"):
        assert words in told
    assert "leaves the volumes" in told


def test_dashboard_and_alerts_ask_for_metrics_that_there_are() -> None:
    objects = rendered("flux1-dev")
    board = json.loads(named(objects, "ConfigMap", "sfumato-dashboard")["data"]["sfumato.json"])
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    (rules,) = of(objects, "PrometheusRule")
    alerts = {rule["alert"]: rule for rule in rules["spec"]["groups"][0]["rules"]}
    assert {"SfumatoRunStuck", "SfumatoDeadLetters", "SfumatoNoImprovement", "SfumatoBusDisk"} <= set(alerts)
    asked += [rule["expr"] for rule in alerts.values()]
    known = {name: set(labels) | {"namespace", "pod", "le", "instance", "job"} for name, labels in _metrics()}
    for expression in asked:
        names = re.findall(r"sfumato_[a-z_]+", expression)
        assert names or "kubelet_volume_stats" in expression, expression
        for name in names:
            assert name in known, f"{name} in {expression}"
        for name, matchers in re.findall(r"(sfumato_[a-z_]+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)(?:=|!=|=~)\"", matchers)) <= known[name], expression


def _metrics() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every metric that the code makes, by the names under which Prometheus knows it."""
    import orchestrator.replica.driver
    import orchestrator.replica.queues
    import services.inference.models.metrics
    import sfumato.runtime.telemetry as telemetry

    for module in (orchestrator.replica.driver, orchestrator.replica.queues, services.inference.models.metrics, telemetry):
        for metric in vars(module).values():
            kind = type(metric).__name__
            if kind in ("Counter", "Gauge", "Histogram"):
                ends = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}[kind]
                yield from ((metric._name + end, metric._labelnames) for end in ends)
