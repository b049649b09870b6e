"""What each role may do in Redis: commands, and the keys and channels that it may do them to.

Scripts run with the rights of who calls them, so a role needs what its scripts do, and could do the same without them.
A ``Grant`` is a selector of Redis' access lists: a command passes if one grant has the command and all of its keys.
Deleting, expiring, listing and reading are told apart: who ends jobs takes them out of lanes (ZREM), but can't look
into a lane (ZRANGE) or delete it (DEL). The order counts for speed alone: what is done most often comes first.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.security.roles import ADMIN, GATEWAY, MONITOR, RECORDER, SCHEDULER, Role


@dataclass(frozen=True, slots=True)
class Grant:
    """Words with spaces between: ``commands`` as Redis calls them (``client|setname``), ``keys`` and ``channels`` as
    its patterns."""

    commands: str
    keys: str = ""
    channels: str = ""


def grants_of(role: Role) -> tuple[Grant, ...]:
    """The first is the user's own, the others are selectors. Not for the administrator, who may do everything."""
    if role.tier:
        return (_CONNECTED, *_WORKER, *_of_tier(role.tier))
    return {GATEWAY: _GATEWAY, SCHEDULER: _SCHEDULER, RECORDER: _RECORDER, MONITOR: _MONITOR}[role]


def is_admin(role: Role) -> bool:
    return role == ADMIN


def _store(commands: str, *names: str) -> Grant:
    """On the job store's keys."""
    return Grant(commands, " ".join(f"fabric:{name}" for name in names))


#: The connection itself, the clock, and scripts: each command inside of one is checked again.
_CONNECTED = Grant(
    "ping select echo time evalsha script|load script|exists client|setname client|setinfo multi exec discard unwatch"
)
_RECORD = "hget hmget hset hdel hincrby hincrbyfloat exists expire"
#: Of the broker's answers to who looks for them.
_INDEXES = ("live", "deadlines", "delayed", "taken", "dispatched", "dead", "outrun", "lane:*", "dlq:*")

#: Whoever may end a job, or send it back to the backlog: what `parts/ending.lua` does.
_ENDS = (
    _store(_RECORD, "job:*"),
    _store("zadd zrem", *_INDEXES),
    _store("rpush expire", "events:*"),
    _store("sadd srem exists", "lanes", "dlqs", "busy:*", "held:*"),
    _store("hget hmget hset hdel", "pace", "experience", "health"),
    _store("xadd", "completions"),
    _store("del", "job:*", "payload:*"),
    _store("llen lpush", "wake"),
    _store("hmget hset persist expire", "rate:*"),
    _store("hmget hincrby exists", "budget:*"),
    _store("hset hdel", "abort:*"),
    _store("incr", "fenced"),
    _store("hincrby", "hedges", "fallbacks"),
    Grant("publish", channels="fabric:gateway:* fabric:worker:*"),
)
#: Whoever takes jobs in: `accept.lua`.
_ACCEPTS = (
    _store("zadd zcard", "live", "jobs:*"),
    _store("set", "payload:*"),
    _store("get set", "idempotency:*"),
    _store("hincrby", "label_blocks"),
)
#: Whoever looks at what waits and who works: `room.lua`.
_LOOKS = (
    _store("smembers srem", "lanes", "dlqs"),
    _store("zcard zrange zrangebyscore zrevrangebyscore zrank", "lane:*", "dlq:*", "workers"),
    _store("get", "worker:*"),
    _store("scard sismember", "busy:*"),
    _store("hgetall", "pace", "experience", "health"),
    _store("hmget", "budget:*"),
    _store("hmget hget hgetall hsetnx hdel", "policies"),
    _store("zadd zcard zpopmin", "policies:*"),
)
_GATEWAY = (
    _CONNECTED,
    *_ENDS,
    *_ACCEPTS,
    *_LOOKS,
    _store("hgetall hkeys", "job:*"),
    _store("lrange llen", "events:*"),
    _store("get", "payload:*"),
    _store("zrevrangebyscore zcard zrem", "jobs:*", "dead", "live"),
    _store("del", "job:*", "events:*", "payload:*"),
    _store("hgetall", "totals", "minute:*", "label_blocks", "hedges", "fallbacks", "budget_warnings"),
    _store("get lrange llen", "fenced", "bad-messages", "bad-messages:count"),
    _store("lpush", "batches:wake"),
    _store("mget", "broker:works", "broker:away"),
    _store("hget hset", "audit:head"),
    Grant("subscribe unsubscribe psubscribe punsubscribe", channels="fabric:gateway:*"),
    Grant("info"),
)
_SCHEDULER = (
    _CONNECTED,
    *_ENDS,
    *_ACCEPTS,
    *_LOOKS,
    _store("zpopmin zrangebyscore exists", *_INDEXES),
    _store("get", "payload:*"),
    _store("blpop", "wake"),
    _store("del", "worker:*", "held:*", "abort:*"),
    _store("srandmember smembers", "held:*"),
    _store("zrem", "workers"),
    _store("hmget hset", "sweep"),
    _store("hexists", "provider:*"),
    _store("set", "broker:works", "broker:away"),
    _store("lpush ltrim incr", "bad-messages", "bad-messages:count"),
    Grant("info"),
    # It sends, and reads no queue.
    Grant("lpush", " ".join(f"fabric.{tier}.*" for tier in ("cpu", "gpu", "cloud"))),
)
_RECORDER = (
    _CONNECTED,
    _store("xreadgroup xautoclaim xack xdel xpending xinfo|consumers xgroup|create xgroup|delconsumer", "completions"),
    _store("hincrbyfloat expire", "totals", "minute:*"),
    *_ENDS,
    *_ACCEPTS,
    *_LOOKS,
    _store("xadd xtrim", "completions:bad", "notices"),
    _store("xread xrange", "notices"),
    _store("zrem", "jobs:*"),
    _store("zscan", "live"),
    _store("hget hmget hset hsetnx hincrby exists expireat", "budget:*"),
    _store("hincrby", "budget_warnings"),
    _store("get set del exists", "batches:lease", "batches:mark"),
    _store("blpop lpush del", "batches:wake"),
    _store("hget hset", "audit:head"),
    Grant("info"),
)
_WORKER = (
    *_ENDS,
    _store("get", "payload:*", "worker:*"),
    _store("srem smembers scard smismember", "held:*"),
    _store("zadd zrem zrangebyscore", "workers"),
    _store("set", "worker:*"),
    _store("del", "worker:*", "held:*", "abort:*"),
    _store("hgetall", "abort:*"),
    _store("hget hset hdel hincrby hscan expire", "provider:*"),
    _store("hmget hset hgetall hdel expire", "limit:*"),
    _store("lpush ltrim incr", "bad-messages", "bad-messages:count"),
    Grant("publish subscribe unsubscribe", channels="fabric:limits"),
    Grant("subscribe unsubscribe", channels="fabric:worker:*"),
)


def _of_tier(tier: str) -> tuple[Grant, ...]:
    """What Celery does at its broker, for a worker of this tier: nothing of it leads to another tier's messages."""
    return (
        Grant("brpop rpop lpush rpush llen exists", f"fabric.{tier}.*"),
        # Of messages that it has taken and not acknowledged; their names end in `_index` and `_mutex`.
        Grant("watch hget hset hdel zadd zrem zrange get set del evalsha", f"fabric.unacked.{tier}*"),
        Grant("llen exists pexpire del", f"{tier}*@*.celery.pidbox*"),
        *_REMOTE_CONTROL,
    )


#: Celery's tools find workers by these; channels begin with the broker's database, which is 1. Who subscribes to a
#: pattern needs that very pattern. Events are told, commands are heard: a worker can't tell others to stop.
_REMOTE_CONTROL = (
    Grant("sadd srem smembers exists pexpire del zadd zrem zrange zrangebyscore evalsha", "_kombu.binding*"),
    Grant("lpush pexpire exists", "*.reply.celery.pidbox"),
    Grant("publish", channels="/1.celeryev*"),
    Grant("subscribe unsubscribe psubscribe punsubscribe", channels="/1.celery.pidbox"),
)
_MONITOR = (
    _CONNECTED,
    Grant("subscribe unsubscribe psubscribe punsubscribe", channels="/1.celeryev /1.celeryev/*"),
    Grant("sadd srem smembers exists pexpire del zadd zrem zrange zrangebyscore evalsha", "_kombu.binding*"),
    Grant("llen exists pexpire del brpop", "celeryev.* *.reply.celery.pidbox*"),
    # Of messages that tools have in hand: workers have names of their own for these.
    Grant("watch hget hset hdel zadd zrem zrange get set del evalsha", "unacked unacked_index unacked_mutex"),
    # Flower asks workers about themselves when it starts, and hears nothing if it may not. Whoever may ask may tell.
    Grant("publish", channels="/1.celery.pidbox"),
    Grant("llen", " ".join(f"fabric.{tier}.*" for tier in ("cpu", "gpu", "cloud"))),
    Grant("info dbsize"),
)
