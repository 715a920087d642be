"""The pauses between attempts: doubled after each failure, up to a limit.

Retried calls use tenacity with `wait_exponential`; `restarting` is the policy for what this machine keeps running. `pause` gives the
same pause to what is not a call in this process, such as a message that is delivered again later.
"""

from __future__ import annotations

from collections.abc import Callable

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential


def pause(failures: int, first: float, longest: float) -> float:
    """Seconds to wait after so many failures in a row (at least 1): ``first``, doubled each time, at most ``longest``."""
    return min(first * 2 ** min(failures - 1, 64), longest)


def restarting(again: Callable[[BaseException], bool], tell: Callable[[str], None]) -> AsyncRetrying:
    """Start something again as often as it ends, half a second after the first end and at most 30 seconds after a later one.

    Args:
        again: whether this error is an end after which it is started again; any other error is raised.
        tell: told before each pause why it ended and when it is started again.
    """

    def announce(state: RetryCallState) -> None:
        assert state.outcome is not None and state.next_action is not None
        tell(f"{state.outcome.exception()}; it is started again in {state.next_action.sleep:.1f} s")

    waits = wait_exponential(multiplier=0.5, max=30)
    return AsyncRetrying(wait=waits, retry=retry_if_exception(again), before_sleep=announce, reraise=True)
