"""What in a text is somebody's or secret, and how it stays here. Pure: values in, values out.

>>> screened = screen_of(catalog).screened(spec, request)  # label raised, text redacted, as the catalogue says
>>> NewJob(screened.spec, screened.payload, placeholders=screened.placeholders)
>>> Placeholders(load_placeholders(record.placeholders)).restored(answer)
"""

from fabric.privacy.restoration import Placeholders, StreamRestorer
from fabric.privacy.scanner import Scanner
from fabric.privacy.screen import Screen, Screened, screen_of

__all__ = ["Placeholders", "Scanner", "Screen", "Screened", "StreamRestorer", "screen_of"]
