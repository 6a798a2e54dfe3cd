"""Errors as clients of RESP are told them: a code that programs know, and a line for people.

======================= ============================================================================
code                    means
======================= ============================================================================
CLUSTERDOWN             no leader is known: nothing has happened
UNKNOWN                 a write may or may not have happened
OOM                     the disk is full: nothing was written
LOADING                 this node is no member yet
NOPERM                  whoever asks may not do that
TRYAGAIN                it can't be done now, nothing has happened
ERR                     anything else
======================= ============================================================================

Any thread; nothing here has state.
"""

from __future__ import annotations

from conure.errors import (
    ConureError,
    DiskFull,
    Forbidden,
    NotLeader,
    OutcomeUnknown,
    StorageError,
    Unavailable,
)

__all__ = ["INTERNAL", "error_reply", "error_text"]

INTERNAL = "ERR internal error; the log of this node has more"


def error_text(error: ConureError) -> str:
    """Return the text of the error reply for one of our errors."""
    match error:
        case NotLeader():
            return f"CLUSTERDOWN {error if error.leader else 'no leader is known, try again'}"
        case OutcomeUnknown():
            return f"UNKNOWN the write may or may not have happened: {error}"
        case DiskFull():
            return f"OOM {error}"
        case Forbidden():
            return f"NOPERM {error}"
        case Unavailable():
            return f"TRYAGAIN {error}"
        case StorageError():
            return f"ERR {error}"
    return f"ERR {error}"


def error_reply(error: ConureError | str) -> bytes:
    """Return an error reply as bytes: of one of our errors, or of a text with its code. Its line
    ends become spaces."""
    text = error if isinstance(error, str) else error_text(error)
    line = text.replace("\r", " ").replace("\n", " ")
    return b"-%b\r\n" % line.encode("utf-8", "surrogateescape")
