"""The gateway: the HTTP face of the fabric, one module a resource.

A request becomes a job with one call to the store; the gateway then waits for the job's events on
its own channel and answers. It holds nothing that a restart would lose but open connections.
"""

from fabric.gateway.app import create_app
from fabric.gateway.bounded_http import BoundedHttp
from fabric.gateway.settings import GatewaySettings

__all__ = ["BoundedHttp", "GatewaySettings", "create_app"]
