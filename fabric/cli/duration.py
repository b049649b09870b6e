"""Lengths of time on the command line: ``90s``, ``30m``, ``2h``, ``1d``, or seconds."""

from __future__ import annotations

import re
from typing import Any

import click

_FORM = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


class Duration(click.ParamType[float]):
    """Answers seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        form = _FORM.fullmatch(str(value))
        seconds = float(form[1]) * _SECONDS[form[2]] if form else 0.0
        if seconds <= 0:
            self.fail("give a time such as 90s, 30m, 2h or 1d", param, ctx)
        return seconds


#: For commands about a batch as a whole.
deadline_option = click.option("--deadline", type=Duration(), help="All lines are to be done within: 30m, 2h, 1d.")
max_cost_option = click.option("--max-cost", type=click.FloatRange(0), help="US dollars for all lines together.")
