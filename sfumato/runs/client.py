"""The orchestrator behind one or several addresses, with records in place of messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TypeVar

import grpc
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from sfumato.errors import Unavailable
from sfumato.runs import messages
from sfumato.runs.records import Answer, Event, Question, RunStatus
from sfumato.runtime.client import calling, channel, download
from sfumato.runtime.settings import ClientSettings
from sfumato.v1 import orchestrator_pb2 as pb
from sfumato.v1.orchestrator_pb2_grpc import OrchestratorServiceStub

PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds before a watch whose connection was lost is repeated, longer each time that no replica answers."""
T = TypeVar("T")


class RunClient:
    """An orchestrator; use it in a ``with`` block, or close it.

    All replicas answer for all runs: a call goes to the first address, and to the next one where that does not answer. Every method
    raises `Unavailable` if no replica answers, and what the service refuses a call with (see `sfumato.runtime.client.calling`).
    """

    def __init__(self, addresses: Sequence[str], settings: ClientSettings | None = None) -> None:
        """``addresses`` are ``host:port``, one at least. Nothing is connected yet; see `sfumato.runtime.client.channel`."""
        if not addresses:
            raise ValueError("an orchestrator needs an address")
        self._stack = ExitStack()
        self._replicas = [(address, self._stack.enter_context(channel(address, settings))) for address in addresses]

    def __enter__(self) -> RunClient:
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the channels."""
        self.close()

    def close(self) -> None:
        """Close the channels."""
        self._stack.close()

    def submit(self, text: str, inputs: Mapping[str, Iterable[str]]) -> tuple[RunStatus, bool]:
        """Start a run or continue it: its spec as YAML or JSON, and lines by set name. Returns its status, and whether it is new.

        Raises:
            Faults: the spec or the inputs cannot work; every fault by its field.
        """
        request = pb.SubmitRequest(spec=text, inputs=messages.inputs_to(inputs))
        answer = self._ask(lambda stub: stub.Submit(request))
        return messages.status_from(answer.run), answer.created

    def get(self, name: str) -> tuple[RunStatus, str]:
        """The status of a run, and its spec as JSON. Raises `NotFound` if there is no such run."""
        answer = self._ask(lambda stub: stub.Get(pb.OrchestratorServiceGetRequest(run_id=name)))
        return messages.status_from(answer.run), answer.spec

    def page(self, size: int = 50, token: str = "") -> tuple[list[RunStatus], str]:
        """At most ``size`` runs (500 at most), the newest first, and the token of the next page; it is empty on the last page."""
        answer = self._ask(lambda stub: stub.List(pb.OrchestratorServiceListRequest(page_size=size, page_token=token)))
        return [messages.status_from(run) for run in answer.runs], answer.next_page_token

    def watch(self, name: str, on_lost: Callable[[], None] = lambda: None) -> Iterator[RunStatus | Event]:
        """Follow a run until it has ended: its status, the latest events, then every change.

        When the connection is lost, ``on_lost`` is called, and the call is repeated with the next replica until one answers. After
        that the status and the latest events come again.

        Raises:
            NotFound: there is no such run.
        """
        failed = 0
        # Not by tenacity: a generator may be continued by another thread, and the state of a Retrying belongs to one.
        while True:
            address, link = self._replicas[0]
            updates = OrchestratorServiceStub(link).Watch(pb.OrchestratorServiceWatchRequest(run_id=name))
            try:
                with calling(address):
                    for update in updates:
                        failed = 0
                        yield messages.update_from(update)
                return
            except Unavailable:
                if not failed:
                    on_lost()
                time.sleep(PAUSES[min(failed, len(PAUSES) - 1)])
                failed += 1
                self._turn()
            finally:
                updates.cancel()

    def pause(self, name: str) -> RunStatus:
        """Pause a run; what has started is finished and kept. Raises `NotFound`, or `WrongState` if it has ended."""
        return messages.status_from(self._ask(lambda stub: stub.Pause(pb.PauseRequest(run_id=name))).run)

    def resume(self, name: str) -> RunStatus:
        """Continue a run from what it has finished. Raises `NotFound`, or `WrongState` if it is finished."""
        return messages.status_from(self._ask(lambda stub: stub.Resume(pb.ResumeRequest(run_id=name))).run)

    def cancel(self, name: str) -> RunStatus:
        """Cancel a run; what it has finished is kept. Raises `NotFound`, or `WrongState` if it is finished or failed."""
        return messages.status_from(self._ask(lambda stub: stub.Cancel(pb.CancelRequest(run_id=name))).run)

    def review(self, name: str, answers: Iterable[Answer] = ()) -> tuple[list[Answer], list[Question]]:
        """Answer questions of a run: the answers that stand, in the same order, and the questions that still wait.

        Raises:
            NotFound: there is no such run, or no such question.
            WrongState: the run asks no questions, or none yet.
        """
        request = pb.ReviewRequest(run_id=name, answers=map(messages.answer_to, answers))
        answer = self._ask(lambda stub: stub.Review(request))
        return [messages.answer_from(said) for said in answer.answers], [messages.question_from(said) for said in answer.waiting]

    def fetch(self, digest: str) -> bytes:
        """A file of the service's artifact store by its SHA-256. Raises `NotFound` if there is none."""
        return self._repeated(lambda address, link: download(link, digest))

    def _ask(self, question: Callable[[OrchestratorServiceStub], T]) -> T:
        """The answer of the first replica that answers."""

        def called(address: str, link: grpc.Channel) -> T:
            with calling(address):
                return question(OrchestratorServiceStub(link))

        return self._repeated(called)

    def _repeated(self, call: Callable[[str, grpc.Channel], T]) -> T:
        """The result of the call at the first replica that answers."""
        tries = Retrying(
            retry=retry_if_exception_type(Unavailable),
            stop=stop_after_attempt(len(self._replicas)),
            before_sleep=lambda state: self._turn(),
            reraise=True,
        )
        return tries(lambda: call(*self._replicas[0]))

    def _turn(self) -> None:
        """Ask the next replica first from now on."""
        self._replicas.append(self._replicas.pop(0))
