"""The environment's part of the settings. A variable that is set but empty counts as not set."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from pydantic import ValidationError

from fabric.contracts.errors import ConfigError
from fabric.settings.settings import Options

PREFIX = "FABRIC_"
CONFIG = "FABRIC_CONFIG"
CPU_MODEL = "FABRIC_CPU_MODEL"
#: Read by the client and the command line, not by the servers.
_CLIENT = ("FABRIC_URL", "FABRIC_API_KEY")
#: Every variable that means something.
VARIABLES = (*(PREFIX + name.upper() for name in Options.model_fields), CONFIG, CPU_MODEL, *_CLIENT)
#: Kubernetes sets these in every container beside a service whose name starts with ``fabric``.
_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)(_\w+)?=|_PORT(_\d+_\w+)?=(tcp|udp|sctp)://|_PORT_\d+_[A-Z]+_\w+=")


def options(environ: Mapping[str, str]) -> Options:
    """Only the fields that the environment names are set.

    Raises:
        ConfigError: an unknown ``FABRIC_*`` variable, or a wrong value.
    """
    given = {name: value for name, value in environ.items() if name.startswith(PREFIX) and value}
    for name in sorted(given):
        if name not in VARIABLES and not _SERVICE_LINK.search(f"{name}={given[name]}"):
            near = difflib.get_close_matches(name, VARIABLES, 1)
            meant = f"did you mean {near[0]}?" if near else f"known are {', '.join(VARIABLES)}."
            raise ConfigError(f"The environment variable {name} means nothing to the fabric; {meant}")
    fields = {field: PREFIX + field.upper() for field in Options.model_fields}
    try:
        return Options.model_validate({field: given[name] for field, name in fields.items() if name in given})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = fields[str(first["loc"][0])]
        raise ConfigError(f"The environment variable {name} is wrong: {first['msg']}.") from None
