"""One small iteration of ArtAug on Vista by the system that is installed, and a look at its report. Exit status 0: it works.

`helm test` runs it inside the cluster; beside any system: ORCHESTRATOR=host:port BACKEND=vllm python trial.py. With COMPARE=joint
naive training on all pairs together comes after it, by a Job's pods where the release has such.
"""

import json
import os
import time

from sfumato.runtime.client import calling, channel, download
from sfumato.v1.orchestrator_pb2 import RUN_STATE_FINISHED, InputSet, OrchestratorServiceWatchRequest, SubmitRequest
from sfumato.v1.orchestrator_pb2_grpc import OrchestratorServiceStub

ORCHESTRATOR, BACKEND = os.environ["ORCHESTRATOR"], os.environ.get("BACKEND", "vllm")
# Another name is another run: what was done for the last trial is found in the store all the same.
NAME = os.environ.get("TRIAL", f"trial-{int(time.time())}")
# What differential training is compared with: nothing, naive training of each pair (true), or of all of them together (joint).
COMPARE = os.environ.get("COMPARE", "false")

SPEC = f"""
name: {NAME}
batch: 4
prompts: {{count: 4, seed: 1000}}
ground: {{backend: {BACKEND}}}
train: {{pairs: 2, steps_before: 6, steps_after: 6}}
fuse: {{rank: 8, alpha: [2], clip_loss: 100}}
stop: {{max_iterations: 1, min_pairs: 1}}
evaluate: {{count: 2, seed: 900000}}
"""
if COMPARE != "false":  # tuning is needed for it, and may find that so short a training is of no use
    SPEC += f"""
tune: {{count: 2, seed: 800000}}
compare: {COMPARE}
joint: {{steps: 8, pictures: 4, together: 2}}
"""
INPUTS = {
    "train": ["a lake by night", "a white house at dusk", "a crescent moon, midnight", "a cloud, birds and a lake by day"],
    "tune": [] if COMPARE == "false" else ["a lake and a cloud by night", "a white house at dusk, a tree"],
    "heldout": ["a cloud over a yellow house by day", "birds, yellow flowers, a green tree and a cloud by night"],
}

with channel(ORCHESTRATOR) as link, calling(ORCHESTRATOR):
    runs = OrchestratorServiceStub(link)
    inputs = [InputSet(name=name, lines=lines) for name, lines in INPUTS.items()]
    run = runs.Submit(SubmitRequest(spec=SPEC, inputs=inputs), wait_for_ready=True).run
    print(run.id, flush=True)
    for update in runs.Watch(OrchestratorServiceWatchRequest(run_id=run.id)):
        if update.HasField("run"):
            run = update.run
        elif update.event.done == update.event.total:
            print(update.event.phase, update.event.iteration, update.event.stage, update.event.note, flush=True)
    if run.state != RUN_STATE_FINISHED:
        raise SystemExit(f"{run.outcome.error} {run.outcome.hint}")
    files = {name: download(link, digest) for name, digest in run.outcome.files.items()}

report = json.loads(files["report.json"])
assert len(report["iterations"]) == 1, report
assert (report["comparison"] is None) == (COMPARE == "false"), report
assert b"<html" in files["report.html"][:1000].lower()
assert len(files["adapter.safetensors"]) > 1000
print(json.dumps({"run": run.id, "files": {name: len(data) for name, data in files.items()}}))
