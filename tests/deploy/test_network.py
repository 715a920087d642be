"""The allowed network flows: only those of this list, and the policies of both ends allow each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.deploy.charts import ALL, JOINT, Object, component, named, of, rendered, selected, templates
from tests.deploy.pods import PORTS

BUS = {(service, "nats", 4222) for service in ("generator", "grounding", "scoring", "trainer", "orchestrator")}
FLOWS = BUS | {
    ("nats", "nats", 6222),
    ("orchestrator", "registry", 7105),
    ("inference", "registry", 7105),
    ("inference", "scoring", 7103),
    ("grounding", "vlm", 8000),
    ("test", "orchestrator", 7106),
}


def _flows(objects: tuple[Object, ...], direction: str) -> Iterator[tuple[str, str, int]]:
    pods = [template for _, template in templates(objects)]
    for policy in of(objects, "NetworkPolicy"):
        own = [component(pod) for pod in pods if selected(policy["spec"]["podSelector"]["matchLabels"], pod)]
        for rule in policy["spec"].get(direction, []):
            for peer in rule.get("from" if direction == "ingress" else "to", []):
                if "podSelector" not in peer:
                    continue
                others = [component(pod) for pod in pods if selected(peer["podSelector"]["matchLabels"], pod)]
                ends = [(one, other) for one in own for other in others]
                for one, other in ends if direction == "egress" else [(other, one) for one, other in ends]:
                    yield from ((one, other, port["port"]) for port in rule["ports"])


@pytest.mark.parametrize("preset", ALL)
def test_the_flows_within_are_these_and_no_others(preset: str) -> None:
    for more, flows in (((), FLOWS), (JOINT, FLOWS | {("joint", "nats", 4222), ("joint", "joint", 1)})):
        objects = rendered(preset, *more)
        assert set(_flows(objects, "ingress")) == set(_flows(objects, "egress")) == flows
    own = named(objects, "NetworkPolicy", "sfumato-joint")["spec"]
    assert [port["endPort"] for rule in own["ingress"] for port in rule["ports"]] == [65535]  # all ports, of one another


@pytest.mark.parametrize("preset", ALL)
def test_every_pod_is_closed_both_ways_before_anything_is_opened(preset: str) -> None:
    objects = rendered(preset, *JOINT)
    deny = named(objects, "NetworkPolicy", "sfumato-default-deny")["spec"]
    assert sorted(deny["policyTypes"]) == ["Egress", "Ingress"] and "ingress" not in deny
    assert {port["port"] for rule in deny["egress"] for port in rule["ports"]} == {53}
    for name, template in templates(objects):
        assert selected(deny["podSelector"]["matchLabels"], template), name
        own = [policy for policy in of(objects, "NetworkPolicy") if selected(policy["spec"]["podSelector"]["matchLabels"], template)]
        assert len(own) == 2, name  # the closing one and its own


def test_only_who_must_may_leave_the_cluster() -> None:
    outside = {}
    for policy in of(rendered("flux1-dev"), "NetworkPolicy"):
        ports = {port["port"] for rule in policy["spec"].get("egress", []) if "to" not in rule for port in rule["ports"]}
        if ports:
            outside[policy["metadata"]["name"].removeprefix("sfumato-")] = ports
    bucket = {name: {443} for name in ("generator", "grounding", "scoring", "trainer", "orchestrator", "inference", "fetch")}
    assert outside == bucket | {"registry": {443, 5432}, "migrate": {5432}}
    starting = named(rendered("", *JOINT), "NetworkPolicy", "sfumato-orchestrator")["spec"]["egress"]
    assert [port["port"] for rule in starting if "to" not in rule for port in rule["ports"]] == [443, 6443]  # Kubernetes' API


def test_callers_and_metrics_scrapers_are_admitted_by_name() -> None:
    peer = "namespaceSelector.matchLabels.team=art"
    objects = rendered("", "--set", f"networkPolicy.clients[0].{peer}", "--set", f"networkPolicy.monitoring[0].{peer}")
    opened: dict[str, set[int]] = {}
    for policy in of(objects, "NetworkPolicy"):
        ports = opened.setdefault(policy["metadata"]["name"].removeprefix("sfumato-"), set())
        for rule in policy["spec"].get("ingress", []):
            if any("namespaceSelector" in each for each in rule["from"]):
                ports.update(port["port"] for port in rule["ports"])
    services = {name: {port, port + 100} for name, port in PORTS.items()}
    assert {name: ports for name, ports in opened.items() if ports} == services | {"inference": {3000}, "nats": {8222}, "vlm": {8000}}
