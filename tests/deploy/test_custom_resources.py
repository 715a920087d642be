"""What the chart makes for the controllers of others (KEDA, cert-manager, Prometheus' operator), by the schemas that they publish."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator, FormatChecker

from tests.deploy.charts import ALL, BUILT_IN, EVERYTHING, Object, named, rendered

SCHEMAS = Path(__file__).parent / "schemas"
FORMATS = FormatChecker(formats=())
OWN_ISSUER = ("--set", "tls.certManager.issuer.name=company", "--set", "tls.certManager.issuer.kind=ClusterIssuer")
ROUTES = tuple(
    word
    for component, route in (("inference", "httpRoute"), ("orchestrator", "grpcRoute"), ("registry", "grpcRoute"))
    for setting in ("enabled=true", "parentRefs[0].name=gateway", "parentRefs[0].namespace=gateways", "hostnames[0]=art.example.org")
    for word in ("--set", f"{component}.{route}.{setting}")
)
KEDA = ("--set", "autoscaling.kind=keda")


@FORMATS.checks("int32")
def _int32(value: object) -> bool:
    return not isinstance(value, int) or -(2**31) <= value < 2**31


@FORMATS.checks("int64")
def _int64(value: object) -> bool:
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def _strict(schema: Any) -> Any:
    """The same in JSON Schema's own words, and closed: the API server drops a field it does not know, which is never what was meant."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: _strict(each) for name, each in schema.items() if name != "properties"}
    if "properties" in schema:
        kept["properties"] = {name: _strict(each) for name, each in schema["properties"].items()}
    if schema.get("type") == "object" and "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        kept.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        kept["type"] = ["integer", "string"]
    return kept


@cache
def _published() -> dict[tuple[str, str], Draft202012Validator]:
    """What checks a kind, by its version and name."""
    files = [yaml.safe_load(path.read_text()) for path in SCHEMAS.glob("*.yaml")]
    return {(file["apiVersion"], file["kind"]): Draft202012Validator(_strict(file["schema"]), format_checker=FORMATS) for file in files}


def _refused(found: Object) -> list[str]:
    """What is wrong with an object, each with its place."""
    published = _published()[found["apiVersion"], found["kind"]]
    errors = [f"{error.json_path}: {error.message}" for error in published.iter_errors(found)]
    # Of its metadata a CRD says only that it is there.
    kubernetes_validate.validate({"apiVersion": "v1", "kind": "ConfigMap", "metadata": found["metadata"]}, "1.34", strict=True)
    return errors


def test_their_controllers_take_every_object_of_every_preset() -> None:
    seen = set()
    for preset in ALL:
        for more in ((), (*EVERYTHING, *ROUTES), (*EVERYTHING, *KEDA), (*EVERYTHING, *OWN_ISSUER)):
            for found in rendered(preset, *more):
                if found["apiVersion"].partition("/")[0] not in BUILT_IN:
                    seen.add((found["apiVersion"], found["kind"]))
                    assert _refused(found) == [], (preset, found["kind"], found["metadata"]["name"])
    assert seen == set(_published())  # none is checked in vain


WRONG = [
    ("ScaledObject", "sfumato-generator", ("spec", "minReplicas"), 1, "'minReplicas' was unexpected"),
    ("ScaledObject", "sfumato-generator", ("spec", "pollingInterval"), "10s", "'10s' is not of type 'integer'"),
    ("ScaledObject", "sfumato-generator", ("spec", "pollingInterval"), 2**31, "is not a 'int32'"),
    ("ScaledObject", "sfumato-generator", ("spec", "triggers", 0, "metadata", "lagThreshold"), 4, "4 is not of type 'string'"),
    ("Certificate", "sfumato-nats", ("spec", "privateKey", "rotation"), "Always", "'rotation' was unexpected"),
    ("Certificate", "sfumato-nats", ("spec", "usages", 0), "signing everything", "is not one of"),
    ("Issuer", "sfumato-ca", ("spec", "ca", "secret"), "x", "'secret' was unexpected"),
    ("ServiceMonitor", "sfumato", ("spec", "endpoints", 0, "interval"), "often", "does not match"),
    ("HTTPRoute", "sfumato-inference", ("spec", "rules", 0, "timeouts", "request"), "long", "does not match"),
    ("HTTPRoute", "sfumato-inference", ("spec", "rules", 0, "backends"), [], "'backends' was unexpected"),
    ("GRPCRoute", "sfumato-registry", ("spec", "parentRefs", 0, "port"), 0, "less than the minimum"),
    ("PrometheusRule", "sfumato", ("spec", "groups", 0, "rules", 0, "for"), "soon", "does not match"),
]


@pytest.mark.parametrize(("kind", "name", "path", "value", "reason"), WRONG)
def test_a_wrong_field_is_refused(kind: str, name: str, path: tuple[Any, ...], value: object, reason: str) -> None:
    wrong = copy.deepcopy(named(rendered("flux1-dev", *ROUTES), kind, name))
    at: Any = wrong
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    (error,) = _refused(wrong)
    assert reason in error and error.startswith("$.spec")
