"""Settings: environment ``FABRIC_*`` over ``fabric.yaml`` over defaults, checked once, then frozen."""

from fabric.settings.document import complain
from fabric.settings.environment import VARIABLES
from fabric.settings.load import load
from fabric.settings.settings import Settings

__all__ = ["VARIABLES", "Settings", "complain", "load"]
