"""The orchestrator's side of the bus as a program: submits a task of one picture, waits for its manifest and prints it.

    python -m tests.integration.submitting MODEL SEED
"""

from __future__ import annotations

import sys

from orchestrator.transports.jetstream import JetStreamTransport
from sfumato.runtime import telemetry
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.settings import BusSettings, Settings, TelemetrySettings
from sfumato.runtime.tasks import Task

PROMPT = "a full moon over mountains and a lake at night"


def paint(model: str, seeds: list[int], steps: int = 2) -> Task:
    """The task of painting one picture for each seed with Vista."""
    items = tuple({"prompt": PROMPT, "seed": seed, "regions": []} for seed in seeds)
    params = {"adapter": "", "width": 64, "height": 64, "steps": steps, "guidance": 1.0}
    return Task(stage="first", kind="generator.paint", items=items, params=params, model=model, model_reference="vista")


def main() -> None:
    """See above."""
    model, seed = sys.argv[1:]
    artifacts = ArtifactStore(Settings().artifacts_url)
    observing, transport = telemetry.observing("orchestrator", TelemetrySettings()), JetStreamTransport(BusSettings(), artifacts)
    with observing, transport, telemetry.tracer.start_as_current_span("a run"), telemetry.bound(run="r1", iteration=1):
        transport.submit(paint(model, [int(seed)]))
        print(transport.next().model_dump_json())


if __name__ == "__main__":
    main()
