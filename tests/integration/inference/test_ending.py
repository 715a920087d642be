"""`sfumato serve` told to end while it works: in good order the first time, at once the second."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

from openai import APIError, OpenAI

from tests.integration.inference.serving import registry_with_a_version, serving
from tests.integration.programs import SECONDS


def test_a_second_ctrl_c_ends_it_at_once_and_quietly(tmp_path: Path) -> None:
    broken: list[Exception] = []
    with registry_with_a_version(tmp_path) as (address, version), serving(address, version) as running:

        def ask() -> None:
            with OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=SECONDS) as client:
                try:
                    client.images.generate(prompt="a lake by night", n=10, extra_body={"num_inference_steps": 100})
                except APIError as error:
                    broken.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        while "sfumato_inference_http_open 2.0" not in running.get("/metrics")[1]:
            time.sleep(0.05)
        told = len(running.log)
        for _ in range(2):
            running.process.send_signal(signal.SIGINT)
            time.sleep(0.5)  # two of the same that come together are one
        assert running.process.wait(SECONDS) == 130
        asking.join()
    assert broken and running.log[told:] == []
