"""A generator that is given something it cannot paint."""

from tests.unit.orchestrator.workers import refuse

HANDLERS = {"generator.paint": refuse}
