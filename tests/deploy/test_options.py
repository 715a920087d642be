"""What users of charts expect to set: each setting of pods reaches every pod that is rendered, jobs and hooks among them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deploy import manifests
from deploy.binaries import HELM, run
from deploy.manifests import CHART
from sfumato.errors import Unavailable
from tests.deploy.charts import BUILT_IN, EVERYTHING, JOINT, Object, component, jobs, named, of, rendered, selected, templates
from tests.deploy.releases import EARLIER, RESET, Upgrade, bus_of

PODS = {
    *("generator", "grounding", "scoring", "trainer", "registry", "orchestrator", "inference", "vlm", "nats", "joint"),
    *("migrate", "fetch", "test", "resize"),
}
LAST = list(EARLIER.values())[-1]


@pytest.fixture
def everything(tmp_path: Path, api: Any) -> Callable[[Object], tuple[Object, ...]]:
    """Renders every pod that the chart knows with further values: an upgrade that enlarges the bus's volume, with joint trainings."""
    api[0].add(bus_of(LAST, "flux1-dev"))
    upgrade = Upgrade(tmp_path, api[1], api[0], LAST, "flux1-dev")

    def render(values: Object) -> tuple[Object, ...]:
        path = tmp_path / "values.yaml"
        path.write_text(yaml.safe_dump(values))
        objects = upgrade.objects(RESET, "--values", str(path), *JOINT, *EVERYTHING, "--set", "nats.volume.size=40Gi")
        assert {component(template) for _, template in templates(objects)} == PODS
        for found in (*objects, *jobs(objects)):
            if found["apiVersion"].partition("/")[0] in BUILT_IN and "ConfigMap" not in found["kind"]:
                kubernetes_validate.validate(found, "1.34", strict=True)
        return objects

    return render


def _rendered(folder: Path, values: Object, *words: str) -> tuple[Object, ...]:
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    return tuple(manifests.rendered("", "--values", str(path), *words))


def test_every_pod_is_made_by_the_one_template() -> None:
    texts = {path.name: path.read_text() for path in CHART.glob("templates/**/*.yaml")}
    made = {
        name for text in texts.values() for name in re.findall(r'include "sfumato.podTemplate" \(dict "root" \S+ "component" "(\w+)"', text)
    }
    assert made | {"generator", "grounding", "scoring", "trainer", "registry", "orchestrator"} == PODS
    for name, text in texts.items():
        for kind in re.findall(r"^kind: (Deployment|StatefulSet|Job|CronJob|DaemonSet|Pod|ReplicaSet)$", text, re.MULTILINE):
            assert "sfumato.podTemplate" in text and kind in ("Deployment", "StatefulSet", "Job"), name


SETTINGS: Object = {
    "nodeSelector": {"pool": "art"},
    "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "art", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "pool", "operator": "Exists"}]}]}}},
    "priorityClassName": "high",
    "runtimeClassName": "gvisor",
    "schedulerName": "other",
    "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["hub.example.org"]}],
    "dnsPolicy": "ClusterFirst",
    "dnsConfig": {"options": [{"name": "ndots", "value": "2"}]},
    "terminationGracePeriodSeconds": 333,
}  # fmt: skip
ADDED: Object = {
    "podLabels": {"team": "art"},
    "podAnnotations": {"sidecar.istio.io/inject": "false"},
    "extraEnv": [
        {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}},
    ],
    "extraEnvFrom": [{"configMapRef": {"name": "more"}}, {"secretRef": {"name": "more"}}],
    "extraVolumes": [{"name": "ca", "configMap": {"name": "company-ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/company", "readOnly": True}],
    "lifecycle": {"preStop": {"sleep": {"seconds": 3}}},
}


def test_every_setting_of_pods_reaches_every_pod(everything: Callable[[Object], tuple[Object, ...]]) -> None:
    for _, template in templates(everything(SETTINGS | ADDED)):
        name, spec = component(template), template["spec"]
        (container,) = spec["containers"]
        assert {key: spec[key] for key in SETTINGS} == SETTINGS, name
        assert template["metadata"]["labels"]["team"] == "art" and template["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false"
        assert container["env"][-2:] == ADDED["extraEnv"] and container["envFrom"] == ADDED["extraEnvFrom"], name
        assert spec["volumes"][-1] == ADDED["extraVolumes"][0] and container["volumeMounts"][-1] == ADDED["extraVolumeMounts"][0]
        assert container["lifecycle"] == ADDED["lifecycle"], name


def test_images_come_from_the_global_registry_with_its_secrets(everything: Callable[[Object], tuple[Object, ...]]) -> None:
    shared = {"imageRegistry": "registry.example.org:5000/art", "imagePullSecrets": ["one", {"name": "two"}]}
    objects = everything({"global": shared, "image": {"registry": "other.example.org", "pullSecrets": ["two", "three"]}})
    for _, template in templates(objects):
        (container,) = template["spec"]["containers"]
        assert container["image"].startswith("registry.example.org:5000/art/"), component(template)
        assert "other.example.org" not in container["image"]
        assert template["spec"]["imagePullSecrets"] == [{"name": name} for name in ("one", "two", "three")]
    (nats,) = named(objects, "StatefulSet", "sfumato-nats")["spec"]["template"]["spec"]["containers"]
    assert nats["image"] == "registry.example.org:5000/art/nats:2.11.4-alpine"


def test_an_image_that_names_its_registry_gets_the_global_one_in_its_place_and_digests_take_the_tag_s(tmp_path: Path) -> None:
    digest = "sha256:" + "a" * 64
    values = {"nats": {"image": f"docker.io/library/nats:2.11.4@{digest}"}, "image": {"digests": {"generator": digest}}}
    for registry, place in (("registry.example.org", "registry.example.org/library"), ("", "docker.io/library")):
        objects = _rendered(tmp_path, values | {"global": {"imageRegistry": registry}}, "--set", f"image.tag={registry or 'none'}")
        images = {component(template): template["spec"]["containers"][0]["image"] for _, template in templates(objects)}
        assert images["nats"] == f"{place}/nats:2.11.4@{digest}"
        assert images["generator"].endswith(f"sfumato/generator@{digest}") and images["trainer"].endswith(f":{registry or 'none'}")


def test_labels_for_all_objects_are_on_all_of_them_and_select_nothing(everything: Callable[[Object], tuple[Object, ...]]) -> None:
    common = {"commonLabels": {"team": "art", "app.kubernetes.io/part-of": "studio"}, "commonAnnotations": {"owner": "art@example.org"}}
    objects = everything(common | {"podLabels": {"cost": "7"}})
    for found in (*objects, *jobs(objects)):
        metadata = found["metadata"]
        assert common["commonLabels"].items() <= metadata["labels"].items(), (found["kind"], metadata["name"])
        assert metadata["annotations"]["owner"] == "art@example.org", (found["kind"], metadata["name"])
        spec = json.dumps({key: value for key, value in found.get("spec", {}).items() if key != "template"})
        assert "team" not in spec and "studio" not in spec and "cost" not in spec, (found["kind"], metadata["name"])
    for _, template in templates(objects):
        assert template["metadata"]["labels"].items() >= {"team": "art", "cost": "7", "app.kubernetes.io/part-of": "studio"}.items()


def test_a_component_s_own_settings_take_the_place_of_those_of_all(tmp_path: Path) -> None:
    values: Object = {
        "tolerations": [{"operator": "Exists"}],
        "nodeSelector": {"pool": "cpu"},
        "podLabels": {"team": "art", "tier": "a"},
        "extraEnv": [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}],
        "containerSecurityContext": {"readOnlyRootFilesystem": False},
        "generator": {
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "nodeSelector": {"pool": "gpu"},
            "podLabels": {"tier": "b"},
            "extraEnv": [{"name": "B", "value": "2"}, {"name": "HOME", "value": "/home"}],
            "podSecurityContext": {"fsGroup": 7, "runAsUser": None},
            "imagePullPolicy": "Always",
        },
        "scoring": {"tolerations": []},
    }
    pods = {component(template): template for _, template in templates(_rendered(tmp_path, values))}
    own, other, bare = (pods[name]["spec"] for name in ("generator", "trainer", "scoring"))
    assert own["tolerations"] == values["generator"]["tolerations"] and own["nodeSelector"] == {"pool": "gpu"}
    assert other["tolerations"] == values["tolerations"] and other["nodeSelector"] == {"pool": "cpu"} and "tolerations" not in bare
    labels = pods["generator"]["metadata"]["labels"]
    assert (labels["team"], labels["tier"], pods["trainer"]["metadata"]["labels"]["tier"]) == ("art", "b", "a")
    (container,) = own["containers"]
    environment = [each["name"] for each in container["env"]]
    assert len(environment) == len(set(environment))  # one of a name takes the place of the chart's
    told = {each["name"]: each["value"] for each in container["env"]}
    assert (told["A"], told["B"], told["HOME"]) == ("1", "2", "/home")
    assert own["securityContext"]["fsGroup"] == 7 and "runAsUser" not in own["securityContext"] and own["securityContext"]["runAsNonRoot"]
    assert container["imagePullPolicy"] == "Always" and other["containers"][0]["imagePullPolicy"] == "IfNotPresent"
    assert container["securityContext"]["readOnlyRootFilesystem"] is False and container["securityContext"]["capabilities"]


def test_jobs_go_where_the_component_goes_whose_work_they_do_or_where_they_are_told(
    everything: Callable[[Object], tuple[Object, ...]],
) -> None:
    kin = {"migrate": "registry", "fetch": "generator", "test": "orchestrator", "resize": "nats"}
    values = {name: {"nodeSelector": {"for": name}, "tolerations": [{"key": name}]} for name in kin.values()}
    pods = {component(template): template["spec"] for _, template in templates(everything(values))}
    for job, name in kin.items():
        assert pods[job]["nodeSelector"] == {"for": name} and pods[job]["tolerations"] == [{"key": name}]
    told = {name: {"nodeSelector": {"for": name}, "tolerations": []} for name in ("migrate", "fetch", "resize")}
    trial = {"nodeSelector": {"for": "test"}, "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}}
    pods = {component(template): template["spec"] for _, template in templates(everything(values | {"jobs": told, "trial": trial}))}
    for job in kin:
        assert pods[job]["nodeSelector"] == {"for": job}
    assert "tolerations" not in pods["fetch"] and pods["test"]["containers"][0]["resources"] == trial["resources"]


OPENSHIFT: list[tuple[Object, tuple[str, ...]]] = [
    ({"podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}}, ()),
    ({"global": {"compatibility": {"openshift": {"adaptSecurityContext": "force"}}}}, ()),
    ({}, ("--api-versions", "security.openshift.io/v1")),
]


@pytest.mark.parametrize(("values", "words"), OPENSHIFT, ids=["nulls", "told", "seen"])
def test_openshift_gives_the_ids(values: Object, words: tuple[str, ...], tmp_path: Path) -> None:
    for _, template in templates(_rendered(tmp_path, values, *words, *JOINT)):
        context = template["spec"]["securityContext"]
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & context.keys(), component(template)
        assert context["runAsNonRoot"] is True and context["seccompProfile"] == {"type": "RuntimeDefault"}


def test_contexts_may_be_emptied_and_openshift_be_ignored(tmp_path: Path) -> None:
    nothing = {
        name: dict.fromkeys(yaml.safe_load((CHART / "values.yaml").read_text())[name])
        for name in ("podSecurityContext", "containerSecurityContext")
    }
    for _, template in templates(_rendered(tmp_path, nothing, *JOINT)):
        assert "securityContext" not in template["spec"] and "securityContext" not in template["spec"]["containers"][0]
    disabled = {"global": {"compatibility": {"openshift": {"adaptSecurityContext": "disabled"}}}}
    for _, template in templates(_rendered(tmp_path, disabled, "--api-versions", "security.openshift.io/v1")):
        assert template["spec"]["securityContext"]["runAsUser"] == 10001


def test_the_contexts_of_the_values_are_those_that_older_values_get() -> None:
    helpers = (CHART / "templates" / "_pods.tpl").read_text()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for name in ("podSecurityContext", "containerSecurityContext"):
        (text,) = re.findall(rf'define "sfumato\.{name}" -\}}\}}\n(.*?)\{{\{{- end', helpers, re.DOTALL)
        assert yaml.safe_load(text) == values[name]


def test_other_names_leave_none_of_the_old_ones() -> None:
    objects = rendered("flux1-dev", *JOINT, *EVERYTHING, "--set", "fullnameOverride=studio,nameOverride=art")
    for found in objects:
        assert found["metadata"]["name"].startswith("studio"), found["kind"]
    for name, template in templates(objects):
        labels = template["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "art" and labels["app.kubernetes.io/instance"] == "sfumato", name
        assert template["spec"]["serviceAccountName"].startswith("studio-")
    text = json.dumps([found for found in objects if found["kind"] != "ConfigMap"])
    own = {"sfumato-registry-database", "sfumato-hub", "sfumato-artifacts", "sfumato-tasks-"}  # names of the preset and of streams
    assert not [word for word in re.findall(r"sfumato-[\w-]+", text) if not word.startswith(tuple(own))]
    (release,) = {found["metadata"]["name"] for found in of(rendered("", "--set", "nameOverride=art"), "StatefulSet")}
    assert release == "sfumato-art-nats"  # as `helm create` does: the release's name does not have the chart's in it


def test_accounts_are_the_user_s_own_where_the_chart_makes_none(tmp_path: Path) -> None:
    objects = _rendered(
        tmp_path, {"serviceAccounts": {"create": False, "name": "art"}, "generator": {"serviceAccount": {"name": "gpu"}}}, *JOINT
    )
    assert not of(objects, "ServiceAccount")
    names = {component(template): template["spec"]["serviceAccountName"] for _, template in templates(objects)}
    assert names.pop("generator") == "gpu" and set(names.values()) == {"art"}
    assert [found["subjects"][0]["name"] for found in of(objects, "RoleBinding")] == ["art"]
    objects = _rendered(tmp_path, {"orchestrator": {"serviceAccount": {"name": "runs", "annotations": {"role": "x"}}}}, *JOINT)
    account = named(objects, "ServiceAccount", "runs")
    assert account["metadata"]["annotations"] == {"role": "x"} and account["automountServiceAccountToken"] is False
    assert [found["subjects"][0]["name"] for found in of(objects, "RoleBinding")] == ["runs"]
    assert named(objects, "Deployment", "sfumato-orchestrator")["spec"]["template"]["spec"]["serviceAccountName"] == "runs"


@pytest.mark.parametrize("kind", ["NodePort", "LoadBalancer"])
def test_a_service_that_is_open_to_others_does_not_show_its_metrics(kind: str, tmp_path: Path) -> None:
    service = {
        "type": kind,
        "annotations": {"cloud": "internal"},
        "labels": {"team": "art"},
        "nodePort": 30106,
        "externalTrafficPolicy": "Local",
    }
    service |= {"loadBalancerClass": "example.org/lb", "loadBalancerSourceRanges": ["10.0.0.0/8"]} if kind == "LoadBalancer" else {}
    opened = ("orchestrator", "inference", "nats", "vlm", "registry")
    values = {name: {"service": service | {"nodePort": 30100 + index}} for index, name in enumerate(opened)}
    objects = _rendered(tmp_path, values)
    for index, name in enumerate(opened):
        found = named(objects, "Service", f"sfumato-{name}")
        kubernetes_validate.validate(found, "1.34", strict=True)
        assert found["spec"]["type"] == kind and found["spec"]["externalTrafficPolicy"] == "Local"
        assert found["metadata"]["annotations"] == {"cloud": "internal"} and found["metadata"]["labels"]["team"] == "art"
        assert [port["nodePort"] for port in found["spec"]["ports"]] == [30100 + index]
    for name, port in (("orchestrator", "metrics"), ("registry", "metrics"), ("nats", "monitor")):
        inside = named(objects, "Service", f"sfumato-{name}-metrics")["spec"]
        assert "type" not in inside and [each["name"] for each in inside["ports"]] == [port]
        pods = [template for _, template in templates(objects) if selected(inside["selector"], template)]
        assert [component(template) for template in pods] == [name]


def test_an_ingress_and_a_route_lead_to_the_api_and_not_to_metrics(tmp_path: Path) -> None:
    hosts = [{"host": "images.example.org"}, {"host": "studio.example.org", "paths": [{"path": "/", "pathType": "ImplementationSpecific"}]}]
    ingress = {
        "enabled": True,
        "className": "nginx",
        "annotations": {"a": "b"},
        "hosts": hosts,
        "tls": [{"secretName": "t", "hosts": ["x.org"]}],
    }
    route = {"enabled": True, "parentRefs": [{"name": "gateway"}], "hostnames": ["images.example.org"]}
    values: Object = {"inference": {"ingress": ingress, "httpRoute": route}}
    values |= {name: {"ingress": {"enabled": True}, "grpcRoute": route} for name in ("orchestrator", "registry")}
    objects = _rendered(tmp_path, values)
    found = named(objects, "Ingress", "sfumato-inference")
    kubernetes_validate.validate(found, "1.34", strict=True)
    assert (
        found["metadata"]["annotations"] == {"a": "b"}
        and found["spec"]["ingressClassName"] == "nginx"
        and found["spec"]["tls"] == ingress["tls"]
    )
    paths = {rule["host"]: [(path["path"], path["pathType"]) for path in rule["http"]["paths"]] for rule in found["spec"]["rules"]}
    assert paths == {"images.example.org": [("/v1", "Prefix")], "studio.example.org": [("/", "ImplementationSpecific")]}
    for ingress in of(objects, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = named(objects, "Service", path["backend"]["service"]["name"])
                assert path["backend"]["service"]["port"]["name"] in {port["name"] for port in service["spec"]["ports"]} - {"metrics"}
    assert len(of(objects, "Ingress")) == len(of(objects, "HTTPRoute", "GRPCRoute")) == 3
    for found in of(objects, "HTTPRoute", "GRPCRoute"):
        (rule,) = found["spec"]["rules"]
        (backend,) = rule["backendRefs"]
        service = named(objects, "Service", backend["name"])
        assert {port["name"] for port in service["spec"]["ports"] if port["port"] == backend["port"]} <= {"http", "grpc"}
    (rule,) = named(objects, "HTTPRoute", "sfumato-inference")["spec"]["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/v1"}}] and rule["timeouts"]["request"] == "600s"
    values["inference"]["httpRoute"] = route | {
        "rules": [{"matches": [{"path": {"type": "Exact", "value": "/v1/models"}}]}, {"timeouts": {"request": "5s"}}]
    }
    first, second = named(_rendered(tmp_path, values), "HTTPRoute", "sfumato-inference")["spec"]["rules"]
    assert first["timeouts"] == {"request": "600s", "backendRequest": "600s"} and second["timeouts"] == {"request": "5s"}
    assert not of(_rendered(tmp_path, {"inference": {"enabled": False, "ingress": {"enabled": True}}}), "Ingress")


def test_origins_of_browsers_are_the_service_s_setting(tmp_path: Path) -> None:
    def told(values: Object) -> list[str]:
        (container,) = named(_rendered(tmp_path, values), "Deployment", "sfumato-inference")["spec"]["template"]["spec"]["containers"]
        return [each["value"] for each in container["env"] if each["name"] == "SFUMATO_INFERENCE_CORS"]

    assert told({}) == told({"inference": {"cors": []}}) == []
    assert told({"inference": {"cors": ["https://a.example.org", "http://localhost:8080"]}}) == [
        "https://a.example.org,http://localhost:8080"
    ]


def test_a_large_number_of_a_file_stays_a_number(tmp_path: Path) -> None:
    values = {"vlm": {"context": 1000000, "pixels": [1, 100000000]}, "podSecurityContext": {"runAsUser": 1000680000}}
    path = tmp_path / "more.yaml"
    path.write_text(yaml.safe_dump(values))
    (vlm,) = [template for _, template in templates(rendered("flux1-dev", "--values", str(path))) if component(template) == "vlm"]
    assert "1000000" in vlm["spec"]["containers"][0]["args"] and vlm["spec"]["securityContext"]["runAsUser"] == 1000680000


def test_as_a_part_of_another_chart_it_reads_the_shared_values_and_leaves_the_others(tmp_path: Path) -> None:
    umbrella = tmp_path / "studio"
    shutil.copytree(CHART, umbrella / "charts" / "sfumato")
    (umbrella / "Chart.yaml").write_text("apiVersion: v2\nname: studio\nversion: 1.0.0\n")
    shared = {"imageRegistry": "registry.example.org", "defaultStorageClass": "fast", "postgresql": {"auth": {}}}
    (umbrella / "values.yaml").write_text(yaml.safe_dump({"global": shared, "sfumato": {"tolerations": [{"operator": "Exists"}]}}))
    text = run(HELM, "template", "art", str(umbrella))
    objects = tuple(found for found in yaml.load_all(text, Loader=yaml.CSafeLoader) if found)
    for _, template in templates(objects):
        assert template["spec"]["containers"][0]["image"].startswith("registry.example.org/")
        assert template["spec"]["tolerations"] == [{"operator": "Exists"}]
    assert {found["spec"]["storageClassName"] for found in of(objects, "PersistentVolumeClaim")} == {"fast"}
    (bus,) = of(objects, "StatefulSet")
    assert bus["spec"]["volumeClaimTemplates"][0]["spec"]["storageClassName"] == "fast"


WRONG: list[tuple[Object, str]] = [
    ({"toleratons": []}, "'toleratons' not allowed"),
    ({"generator": {"nodeselector": {}}}, "'nodeselector' not allowed"),
    ({"global": {"imageRegistry": "https://registry.example.org"}}, "/global/imageRegistry"),
    ({"global": {"imageregistry": "a"}}, "global.imageregistry: this chart does not read it"),
    ({"commonLabels": {"app.kubernetes.io/name": "art"}}, "commonLabels: the chart selects pods by app.kubernetes.io/name"),
    ({"jobs": {"fetch": {"podLabels": {"app.kubernetes.io/component": "art"}}}}, "jobs.fetch.podLabels: the chart selects pods by"),
    ({"commonLabels": {"team": "art & craft"}}, "/commonLabels/team"),
    ({"extraEnv": [{"name": "A", "valueForm": {}}]}, "'valueForm' not allowed"),
    ({"extraEnv": [{"name": "HF_TOKEN", "value": "x"}]}, "extraEnv: HF_TOKEN would be in the release's values in plain text"),
    ({"jobs": {"migrate": {"extraEnv": [{"name": "DB_PASSWORD", "value": "x"}]}}}, "jobs.migrate.extraEnv: DB_PASSWORD"),
    ({"extraVolumes": [{"configMap": {"name": "a"}}]}, "/extraVolumes/0"),
    ({"extraVolumeMounts": [{"name": "a"}]}, "/extraVolumeMounts/0"),
    ({"inference": {"service": {"type": "Loadbalancer"}}}, "/inference/service/type"),
    ({"inference": {"service": {"nodePort": 30000}}}, "inference.service.nodePort: a Service of type ClusterIP has none"),
    ({"inference": {"httpRoute": {"enabled": True}}}, "inference.httpRoute.parentRefs: name the Gateway"),
    ({"inference": {"ingress": {"host": "a"}}}, "'host' not allowed"),
    ({"inference": {"cors": ["studio.example.org"]}}, "/inference/cors/0"),
    ({"podSecurityContext": {"runAsuser": 1}}, "'runAsuser' not allowed"),
    ({"containerSecurityContext": {"fsGroup": 1}}, "'fsGroup' not allowed"),
    ({"fullnameOverride": "Studio"}, "/fullnameOverride"),
    ({"image": {"digests": {"generator": "latest"}}}, "/image/digests/generator"),
    ({"jobs": {"backup": {}}}, "'backup' not allowed"),
]


@pytest.mark.parametrize(("values", "reason"), WRONG, ids=[reason for _, reason in WRONG])
def test_values_that_cannot_be_meant_are_refused_by_name(values: Object, reason: str, tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as refused:
        _rendered(tmp_path, values)
    assert reason in str(refused.value)
