"""Requests as the stand-in Hub saw them, and the faults that it puts in their way."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass
class Request:
    """A request that was seen: `authorised` if it carried a token, `status` 0 if it was cut or is not answered yet."""

    method: str
    path: str
    authorised: bool
    status: int = 0


@dataclass
class Fault:
    """What happens to the requests `first` ... `last` that match `pattern`."""

    pattern: str
    first: int
    last: int
    status: int = 0
    code: str = ""
    message: str = ""
    cut: float | None = None
    action: Callable[[], object] | None = None
    matched: int = 0


def met(faults: Iterable[Fault], line: str) -> list[Fault]:
    """Return the faults that the request `line`, "METHOD /path?query", meets; each counts it."""
    fitting = [fault for fault in faults if re.search(fault.pattern, line)]
    for fault in fitting:
        fault.matched += 1
    return [fault for fault in fitting if fault.first <= fault.matched <= fault.last]
