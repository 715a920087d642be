"""The orchestrator's program: ``python -m orchestrator.app``; settings ``SFUMATO_ORCHESTRATOR_*``, ``SFUMATO_BUS_*``, ``SFUMATO_GRPC_*``,
``SFUMATO_*``. Any number of replicas may run; all of them need the same bus and the same artifact store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from orchestrator.control import RunService
from orchestrator.replica.driver import DriverSettings
from orchestrator.servicer import OrchestratorServicer
from sfumato.runtime.serving.engine_queue import EngineQueue
from sfumato.runtime.serving.server import Service, run
from sfumato.runtime.settings import BusSettings, ServingSettings, Settings
from sfumato.v1.orchestrator_pb2_grpc import add_OrchestratorServiceServicer_to_server

ADDRESS = "127.0.0.1:7106"
NAME = "sfumato.v1.OrchestratorService"


def services(serving: ServingSettings) -> Sequence[Service]:
    """The orchestrator's service and its driver. There is no model to load, and calls do not wait for each other."""
    control = RunService(Settings(), BusSettings(), DriverSettings(), serving)
    register = partial(add_OrchestratorServiceServicer_to_server, OrchestratorServicer(control))
    return [Service(NAME, register, EngineQueue(object), beside=control)]


if __name__ == "__main__":
    run(services, ADDRESS)
