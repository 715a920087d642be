"""The backend for OpenAI-compatible servers of a vision-language model; vLLM is shipped and tested."""

from __future__ import annotations

import base64
import logging
import ssl
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from tenacity import Retrying, before_sleep_log, retry_if_exception_type, stop_after_attempt, stop_after_delay, wait_exponential, wait_fixed

from services.grounding.engine import SAMPLED, Query
from sfumato.errors import InvalidInput, Unavailable
from sfumato.runtime.images import encode_png
from sfumato.runtime.proxies import proxy_of
from sfumato.types import Image

log = logging.getLogger(__name__)

TIMEOUT = 300.0
"""Timeout in seconds of a question: a long answer of a large model takes a minute or two."""
PROBE = 5.0
"""Timeout in seconds of the list of models."""
PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP statuses that are tried again: overload, a restart, a fault."""
TRIES = 3
START_IT = "Start one (sfumato vlm serve), or set SFUMATO_VLM_URL to one that runs."


class _Passing(Exception):
    """A temporary failure, which is tried again; `error` is raised after the last try."""

    def __init__(self, error: Unavailable) -> None:
        super().__init__(error.message)
        self.error = error


class HttpBackend:
    """Asks ``{url}/v1/chat/completions``. Schemas go as ``response_format``, choices as vLLM's ``structured_outputs``."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str = "",
        ca: Path | None = None,
        timeout: float = TIMEOUT,
        concurrency: int = 8,
        pause: float = 1.0,
    ) -> None:
        """Ask ``model`` at ``url`` (with or without ``/v1``); ``pause`` seconds before the second try, twice that before the third.

        Raises:
            InvalidInput: ``ca`` cannot be read, or the proxy that the environment names cannot be used.
        """
        self.url = _root(url)
        self.model = model
        self.concurrency = concurrency
        self._timeout = timeout
        self._client = _client(self.url, api_key, ca, timeout)
        # A worker keeps its backend until it ends or its settings name another server.
        weakref.finalize(self, self._client.close)
        self._retrying = Retrying(
            retry=retry_if_exception_type(_Passing),
            stop=stop_after_attempt(TRIES),
            wait=wait_exponential(multiplier=pause),
            before_sleep=before_sleep_log(log, logging.WARNING),
            reraise=True,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def answer(self, query: Query) -> str:
        """The first choice's text.

        Raises:
            Unavailable: no connection, no answer in time, or an invalid answer; temporary failures are tried three times.
        """
        try:
            return self._retrying(self._once, _body(self.model, query))
        except _Passing as passing:
            raise passing.error from passing.__cause__

    def _once(self, body: dict[str, Any]) -> str:
        where = f"The model server at {self.url}"
        try:
            response = self._client.post(f"{self.url}/v1/chat/completions", json=body)
        except httpx.TimeoutException as error:
            hint = "See its log; where it is only slow, raise SFUMATO_VLM_TIMEOUT (seconds)."
            raise Unavailable(f"{where} did not answer within {self._timeout:.0f} s.", hint=hint) from error
        except httpx.HTTPError as error:
            raise _Passing(Unavailable(f"{where} does not answer ({error!r}).", hint=START_IT)) from error
        if response.status_code != 200:
            raise _refused(where, response)
        try:
            content = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            hint = "Is it an OpenAI-compatible server? See SFUMATO_VLM_URL."
            raise Unavailable(f"{where} did not send a chat completion.", hint=hint) from error
        return content if isinstance(content, str) else ""


def model_served(url: str, names: Sequence[str], *, api_key: str = "", ca: Path | None = None, wait: float = 0.0) -> str:
    """The model's name on a server: the first of ``names`` that it serves, or the only name it has.

    Args:
        url: with or without ``/v1``.
        names: candidate names, best first.
        api_key: the server's key, if it requires one.
        ca: PEM file of the authority that signed its certificate; the system's authorities if None.
        wait: seconds to wait for a server that is still starting.

    Raises:
        InvalidInput: ``ca`` cannot be read.
        Unavailable: no server answers, or it serves several models and none of these.
    """
    root = _root(url)
    retrying = Retrying(retry=retry_if_exception_type(_Passing), stop=stop_after_delay(wait), wait=wait_fixed(0.5), reraise=True)
    with _client(root, api_key, ca, PROBE) as client:
        try:
            served = retrying(_listed, client, root)
        except _Passing as passing:
            raise passing.error from passing.__cause__
    for name in names:
        if name in served:
            return name
    if len(served) == 1:
        return served[0]
    raise Unavailable(
        f"The model server at {root} serves {', '.join(served[:8]) or 'nothing'}, none of them called {' or '.join(names)}.",
        hint=f"Serve the model under the name {names[0]} (vLLM: --served-model-name {names[0]}).",
    )


def _listed(client: httpx.Client, root: str) -> list[str]:
    where = f"The model server at {root}"
    try:
        response = client.get(f"{root}/v1/models")
    except httpx.HTTPError as error:
        raise _Passing(Unavailable(f"{where} does not answer ({error!r}).", hint=START_IT)) from error
    if response.status_code != 200:
        raise _refused(where, response)
    try:
        return [str(entry["id"]) for entry in response.json()["data"]]
    except (ValueError, LookupError, TypeError) as error:
        hint = "Is it an OpenAI-compatible server? See SFUMATO_VLM_URL."
        raise Unavailable(f"{where} did not send a list of models.", hint=hint) from error


def _refused(where: str, response: httpx.Response) -> Exception:
    """The error for an answer with a status other than 200."""
    status = response.status_code
    said = f"{where} answered {status}: {response.text[:300]}"
    if status in (401, 403):
        return Unavailable(said, hint="Set SFUMATO_VLM_API_KEY to the server's key.")
    if status in PASSING:
        return _Passing(Unavailable(said, hint="See the server's log; then run the same command again: finished work is kept."))
    if status == 404:
        return Unavailable(said, hint="See SFUMATO_VLM_URL, and the name of the model it serves.")
    return Unavailable(said, hint="See the server's log: it does not take this request.")


def _body(model: str, query: Query) -> dict[str, Any]:
    messages = []
    for turn in query.before:
        messages += [_user(turn.images, turn.text), {"role": "assistant", "content": turn.answer}]
    body: dict[str, Any] = {
        "model": model,
        "messages": [*messages, _user(query.images, query.text)],
        "max_tokens": query.max_tokens,
        "temperature": SAMPLED if query.attempt else 0.0,
        "seed": query.attempt,
    }
    if query.schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": query.schema, "strict": True}}
    if query.choices is not None:
        body["structured_outputs"] = {"choice": list(query.choices)}
    return body


def _user(images: Sequence[Image], text: str) -> dict[str, Any]:
    pictures = [{"type": "image_url", "image_url": {"url": _data_url(encode_png(image))}} for image in images]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


def _client(url: str, api_key: str, ca: Path | None, timeout: float) -> httpx.Client:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        verify = httpx.create_ssl_context() if ca is None else ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput("vlm_ca", f"{ca} cannot be read ({error}).", hint="Name a PEM file of certificates.") from error
    proxy = proxy_of(url)
    try:
        return httpx.Client(headers=headers, timeout=timeout, verify=verify, proxy=proxy, trust_env=False)
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        hint = "Set http_proxy, https_proxy and all_proxy to http://host:port, or name the server in no_proxy."
        raise InvalidInput("proxy", f"the proxy for {urlsplit(url).hostname} cannot be used ({error}).", hint=hint) from error


def _root(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
