"""A model behind HTTP: what it is sent, and what is said to the user when it is down, hangs, fails or talks nonsense."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from services.grounding.engine import Query, Turn
from services.grounding.http_backend import HttpBackend, model_served
from sfumato.errors import InvalidInput, Unavailable
from tests.unit.scripted_vlm import Reply, ScriptedVlm

PICTURE = np.zeros((8, 8, 3), np.uint8)
HELLO = Query((), "hello", 4)
Connect: TypeAlias = Callable[..., HttpBackend]
KEY = "sk-not-for-any-log"


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Backends that are closed after the test and do not pause long."""
    opened: list[HttpBackend] = []

    def one(url: str, **options: Any) -> HttpBackend:
        opened.append(HttpBackend(url, "served", pause=0.01, **options))
        return opened[-1]

    yield one
    for backend in opened:
        backend.close()


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_question_goes_out_in_openais_words(vlm: ScriptedVlm, connect: Connect) -> None:
    vlm.script = ["[]"]
    schema = {"type": "array"}
    query = Query((PICTURE, PICTURE), "which?", 77, schema=schema)
    assert connect(f"{vlm.url}/v1/").answer(query) == "[]"
    (request,) = vlm.requests
    (message,) = request["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "image_url", "text"]
    assert message["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert (request["model"], request["max_tokens"], request["temperature"], request["seed"]) == ("served", 77, 0.0, 0)
    assert request["response_format"] == {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    assert "structured_outputs" not in request


def test_a_later_attempt_is_sampled_and_choices_are_vllms(vlm: ScriptedVlm, connect: Connect) -> None:
    vlm.script = ["yes"]
    connect(vlm.url).answer(Query((), "is it?", 8, choices=("yes", "no"), attempt=1))
    (request,) = vlm.requests
    assert request["temperature"] > 0 and request["seed"] == 1 and request["structured_outputs"] == {"choice": ["yes", "no"]}


def test_a_conversation_is_sent_from_its_beginning(vlm: ScriptedVlm, connect: Connect) -> None:
    vlm.script = ["third"]
    before = (Turn((PICTURE,), "first?", "first"), Turn((), "second?", "second"))
    connect(vlm.url).answer(Query((), "third?", 8, before=before))
    messages = vlm.requests[0]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant", "user"]
    assert [len(message["content"]) for message in messages[::2]] == [2, 1, 1]
    assert [message["content"] for message in messages[1::2]] == ["first", "second"]


def test_what_passes_is_tried_again(vlm: ScriptedVlm, connect: Connect) -> None:
    vlm.script = [Reply(503, b"loading"), Reply(drop=True), "at last"]
    assert connect(vlm.url).answer(HELLO) == "at last"
    assert len(vlm.requests) == 3


@pytest.mark.parametrize(
    ("status", "asked", "words"),
    [(500, 3, "answered 500: oops.*finished work is kept"), (429, 3, "429"), (404, 1, "SFUMATO_VLM_URL"), (400, 1, "server's log")],
)
def test_a_server_that_refuses_is_told_with_its_words(vlm: ScriptedVlm, connect: Connect, status: int, asked: int, words: str) -> None:
    vlm.script = [Reply(status, b"oops")] * 3
    with pytest.raises(Unavailable, match=words):
        connect(vlm.url).answer(HELLO)
    assert len(vlm.requests) == asked


@pytest.mark.parametrize("body", [b"<html>", b'{"choices": []}', b"[]", b"", b'{"choices": [{"message": 7}]}', b"\xff\xfe"])
def test_nonsense_is_no_chat_completion(vlm: ScriptedVlm, connect: Connect, body: bytes) -> None:
    vlm.script = [Reply(body=body)]
    with pytest.raises(Unavailable, match="Is it an OpenAI-compatible server"):
        connect(vlm.url).answer(HELLO)


def test_an_answer_without_text_is_empty(vlm: ScriptedVlm, connect: Connect) -> None:
    vlm.script = [Reply(body=json.dumps({"choices": [{"message": {"content": None}}]}).encode())]
    assert connect(vlm.url).answer(HELLO) == ""


def test_a_server_that_hangs_is_given_up_once(vlm: ScriptedVlm, connect: Connect) -> None:
    vlm.script = [Reply(hang=2.0)] * 3
    with pytest.raises(Unavailable, match="did not answer within 0 s.*SFUMATO_VLM_TIMEOUT"):
        connect(vlm.url, timeout=0.2).answer(HELLO)
    assert len(vlm.requests) == 1


def test_no_server_is_said_so_with_what_to_do(connect: Connect) -> None:
    with pytest.raises(Unavailable, match="does not answer.*sfumato vlm serve.*SFUMATO_VLM_URL"):
        connect(f"http://127.0.0.1:{unused_port()}").answer(HELLO)


def test_the_key_is_sent_and_never_shown(vlm: ScriptedVlm, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    vlm.key, vlm.script = KEY, ["hello"]
    assert connect(vlm.url, api_key=KEY).answer(HELLO) == "hello"
    with pytest.raises(Unavailable, match="SFUMATO_VLM_API_KEY") as caught:
        connect(vlm.url, api_key=KEY + "-wrong").answer(HELLO)
    assert KEY not in caplog.text and KEY not in str(caught.value)


# --- what a server calls its model ---


def test_the_best_known_name_is_asked_for(vlm: ScriptedVlm) -> None:
    vlm.models = ["other", "Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5-vl"]
    assert model_served(vlm.url, ("qwen2.5-vl", "Qwen/Qwen2.5-VL-7B-Instruct")) == "qwen2.5-vl"
    assert model_served(f"{vlm.url}/v1", ("vista", "Qwen/Qwen2.5-VL-7B-Instruct")) == "Qwen/Qwen2.5-VL-7B-Instruct"


def test_the_only_model_is_the_one_and_of_several_none_is_guessed(vlm: ScriptedVlm) -> None:
    assert model_served(vlm.url, ("qwen2-vl",)) == "served"
    vlm.models = ["one", "two"]
    with pytest.raises(Unavailable, match="serves one, two, none of them called qwen2-vl.*--served-model-name qwen2-vl"):
        model_served(vlm.url, ("qwen2-vl",))


def test_a_server_is_waited_for_no_longer_than_asked() -> None:
    with pytest.raises(Unavailable, match="sfumato vlm serve"):
        model_served(f"http://127.0.0.1:{unused_port()}", ("vista",), wait=0.6)


def test_an_authority_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    for name in ("none.pem", "empty.pem"):
        with pytest.raises(InvalidInput) as caught:
            model_served("https://127.0.0.1", ("vista",), ca=tmp_path / name)
        assert caught.value.field == "vlm_ca" and name in str(caught.value)


def test_a_key_that_is_wanted_is_asked_for(vlm: ScriptedVlm) -> None:
    vlm.key = KEY
    with pytest.raises(Unavailable, match="SFUMATO_VLM_API_KEY"):
        model_served(vlm.url, ("vista",))
    assert model_served(vlm.url, ("vista",), api_key=KEY) == "served"
