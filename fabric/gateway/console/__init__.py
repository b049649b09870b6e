"""The console: the fabric on pages for people, one page a question. Rendered here, live by server-sent events.

It shows what the API shows, to whom the API shows it, and no text of a request or an answer. It needs no build, and
nothing from another server: it works under ``default-src 'self'``.
"""

from fabric.gateway.console.console import Console

__all__ = ["Console"]
