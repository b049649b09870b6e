"""Users of Redis and RabbitMQ, one a role, each with the least rights: what ``fabric security init`` writes.

``rights`` says who may do what in Redis, ``redis_acl`` and ``rabbitmq`` put it into the servers' own words, ``roles``
names the roles and what else each of their processes is given, ``certificates`` makes an authority.
Values in, text out.
"""

from fabric.security.certificates import certificates
from fabric.security.roles import ROLES, Role, env_file
from fabric.security.written import Access, files, is_a_servers

__all__ = ["ROLES", "Access", "Role", "certificates", "env_file", "files", "is_a_servers"]
