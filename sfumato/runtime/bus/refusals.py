"""Which refusals of nats-server last until somebody changes something, and what that is. All others pass by themselves."""

from __future__ import annotations

from nats.errors import MaxPayloadError
from nats.errors import TimeoutError as NatsTimeout
from nats.js.errors import APIError

from sfumato.errors import Blocked

STORE_REFUSED = 10077
"""Error number of a stream that does not take a message; its description says why."""
HELD_ALREADY = "maximum messages per subject exceeded"
"""The description for a task that is in the queue already."""

_STORE = "its store is full, or smaller than the streams of this system need"
_ENLARGE = "Enlarge max_file_store in nats-server's configuration, and its disk, or delete streams that are not needed (nats stream ls)."
_ACCOUNT = "the limits of its account are used up"
_RAISE = "Raise the limits of JetStream for this account in nats-server's configuration, or delete streams that are not needed."
_DISABLED = "JetStream is not enabled"
_ENABLE = "Enable jetstream in nats-server's configuration, for the account of this user too."
_PEERS = "it has fewer servers than the streams have replicas"
_FEWER = "Set SFUMATO_BUS_REPLICAS to the number of servers of the cluster, 1 without one."
_SMALL = "a message is larger than it accepts"
_PAYLOAD = "Raise max_payload in nats-server's configuration to 1MB, its default."

_REASONS: dict[int, tuple[str, str]] = {
    10002: (_ACCOUNT, _RAISE),
    10005: (_PEERS, _FEWER),
    10023: (_STORE, _ENLARGE),
    10026: (_ACCOUNT, _RAISE),
    10027: (_ACCOUNT, _RAISE),
    10028: (_STORE, _ENLARGE),
    10039: (_DISABLED, _ENABLE),
    10047: (_STORE, _ENLARGE),
    10054: (_SMALL, "Remove the limit max_msg_size of this stream."),
    10074: (_PEERS, _FEWER),
    10076: (_DISABLED, _ENABLE),
    10122: (_ACCOUNT, _RAISE),
}
"""What an error number of nats-server means (``errors.json`` in its sources), and what to do."""


def refusal(error: BaseException, where: str, denied: str = "") -> Blocked | None:
    """The error with the words for a user, if it lasts; None if it passes.

    Args:
        error: as nats-py raised it.
        where: the server's address.
        denied: nats-server's last words about a missing permission: a request that it denies gets no answer.
    """
    if isinstance(error, Blocked):
        return error
    if isinstance(error, MaxPayloadError):
        return Blocked(f"The bus at {where} refuses: {_SMALL}.", hint=_PAYLOAD)
    if denied and isinstance(error, NatsTimeout | TimeoutError):
        hint = "Give this user the permission in nats-server's configuration, or set SFUMATO_BUS_USER to one that has it."
        return Blocked(f"The bus at {where} refuses: {denied}.", hint=hint)
    if not isinstance(error, APIError):
        return None
    number = getattr(error, "err_code", None)  # nats-py's own errors of this class have none
    why, hint = _REASONS.get(number or 0, ("", ""))
    if number == STORE_REFUSED and error.description != HELD_ALREADY:
        why, hint = "a stream is full", f"Raise the limits of this stream. {_ENLARGE}"
    return Blocked(f"The bus at {where} refuses: {why} ({error.description}).", hint=hint) if why else None
