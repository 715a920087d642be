"""Any OpenAI-compatible server of a vision-language model; vLLM is the one that is shipped and tested."""

from __future__ import annotations

import base64
from typing import Any

import httpx

from services.grounding.engine import Query
from sfumato.errors import Unavailable
from sfumato.runtime.images import encode_png

SAMPLED = 0.7
"""Temperature of attempts after the greedy one."""


class HttpBackend:
    """Asks ``{url}/v1/chat/completions``. Schemas go as ``response_format``, choices as vLLM's ``structured_outputs``."""

    def __init__(self, url: str, model: str, *, api_key: str = "", timeout: float = 120.0, concurrency: int = 8) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model = model
        self.concurrency = concurrency
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(headers=headers, timeout=timeout, transport=httpx.HTTPTransport(retries=2))

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def answer(self, query: Query) -> str:
        """The first choice's text.

        Raises:
            Unavailable: no connection, no answer in time, or not an answer.
        """
        try:
            response = self._client.post(f"{self.url}/v1/chat/completions", json=self._body(query))
        except httpx.HTTPError as error:
            raise Unavailable(
                f"The model server at {self.url} does not answer ({error!r}).", hint="Start one: sfumato vlm serve"
            ) from error
        if response.status_code != 200:
            raise Unavailable(f"The model server at {self.url} answered {response.status_code}: {response.text[:300]}")
        try:
            content = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise Unavailable(f"The model server at {self.url} sent something else than a chat completion.") from error
        return content if isinstance(content, str) else ""

    def _body(self, query: Query) -> dict[str, Any]:
        pictures = [{"type": "image_url", "image_url": {"url": _data_url(encode_png(image))}} for image in query.images]
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": [*pictures, {"type": "text", "text": query.text}]}],
            "max_tokens": query.max_tokens,
            "temperature": SAMPLED if query.attempt else 0.0,
            "seed": query.attempt,
        }
        if query.schema is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": query.schema, "strict": True}}
        if query.choices is not None:
            body["structured_outputs"] = {"choice": list(query.choices)}
        return body


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
