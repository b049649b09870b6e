"""How many files a process may have open: each request in flight holds a socket, each client that waits another one.

Systems begin with a soft limit (1,024, or 256) that was made for programs of another time, and let each process raise
it up to the hard one.
"""

from __future__ import annotations

import logging
import resource

log = logging.getLogger(__name__)

#: More is no use to a process of the fabric. Where there is no hard limit, macOS takes no more than the last.
_WANTED = (65_536, 10_240)


def raise_limit() -> int:
    """As far as this process may, and as it is of use; answers the limit that holds from now on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in _WANTED:
        reachable = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft == resource.RLIM_INFINITY or soft >= reachable:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
        except (OSError, ValueError):
            continue
        soft = reachable
        break
    return _WANTED[0] if soft == resource.RLIM_INFINITY else soft


def warn_below(needed: int, what: str) -> None:
    """Says so where the limit is too low for ``needed`` sockets."""
    if (limit := raise_limit()) < needed:
        log.warning("%s may need %d open files, this process may have %d: raise `ulimit -Hn`", what, needed, limit)
