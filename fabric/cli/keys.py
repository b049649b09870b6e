"""``fabric keys``: straight on the ledger, so that the first key can be made before there is one."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import click

from fabric.cli.output import json_option, local_time, print_json, print_table
from fabric.cli.start import config_option, data_dir_option
from fabric.contracts.catalog import PRIVACY_LABELS, TIERS
from fabric.contracts.key import SCOPES

#: As the options of ``create`` call them.
_SHORT = {
    "requests_per_minute": "rpm",
    "tokens_per_minute": "tpm",
    "concurrent_jobs": "concurrent",
    "batch_tokens": "batch-tokens",
    "budget_usd": "budget",
    "budget_tokens": "budget-tokens",
}
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class _Seconds(click.ParamType[int]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", str(value))
        if not found:
            self.fail(f"{value!r} is no time; such are 90d, 12h, 30m and 45s.", param, ctx)
        return int(found[1]) * _UNITS[found[2] or "s"]


@click.group()
def keys() -> None:
    """Make, list, rotate and revoke API keys.

    Works on the ledger itself, so it needs the data directory or FABRIC_DATABASE_URL, and the fabric's secret
    (FABRIC_SECRET or the data directory's). What was changed counts in every process within two seconds.
    """


@keys.command()
@click.option("--tenant", required=True, help="Whose jobs, files and batches it may see.")
@click.option("--name", help="What it is for.")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="[default: all but admin]")
@click.option("--model", "models", multiple=True, help="Only this model; may be given again. [default: all]")
@click.option("--tier", "tiers", multiple=True, type=click.Choice(TIERS), help="Only this tier. [default: all]")
@click.option("--region", "regions", multiple=True, help="Only this region. [default: all]")
@click.option("--privacy-floor", type=click.Choice(PRIVACY_LABELS), help="Weakest label that its jobs may have.")
@click.option("--rpm", type=int, help="Requests a minute. [default: no limit]")
@click.option("--tpm", type=int, help="Tokens a minute, of prompts and answers. [default: no limit]")
@click.option("--concurrent", type=int, help="Jobs that wait or run at once. [default: no limit]")
@click.option("--batch-tokens", type=int, help="Prompt tokens of batch work at once. [default: no limit]")
@click.option("--budget", type=float, help="US dollars that it may spend in a window. [default: no limit]")
@click.option("--budget-tokens", type=int, help="Tokens that it may use in a window. [default: no limit]")
@click.option("--budget-window", type=click.Choice(["hour", "day", "month", "total"]), help="[default: month]")
@click.option("--expires-in", type=_Seconds(), help="Time to live, such as 90d. [default: for good]")
@config_option
@data_dir_option
@json_option
def create(
    tenant: str,
    name: str | None,
    scopes: tuple[str, ...],
    models: tuple[str, ...],
    tiers: tuple[str, ...],
    regions: tuple[str, ...],
    privacy_floor: str | None,
    rpm: int | None,
    tpm: int | None,
    concurrent: int | None,
    batch_tokens: int | None,
    budget: float | None,
    budget_tokens: int | None,
    budget_window: str | None,
    expires_in: int | None,
    config: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Make a key. It is shown this once: only a keyed hash of it is kept."""
    from pydantic import ValidationError

    from fabric.cli.on_ledger import on_ledger
    from fabric.contracts.new_key import KeyRequest
    from fabric.contracts.refusal import refusal
    from fabric.ledger import keys as ledger_keys
    from fabric.ledger.keys import NewKey, key_object

    given: dict[str, Any] = {
        "tenant": tenant,
        "name": name,
        "scopes": list(scopes) or None,
        "models": list(models) or None,
        "tiers": list(tiers) or None,
        "regions": list(regions) or None,
        "privacy_floor": privacy_floor,
        "requests_per_minute": rpm,
        "tokens_per_minute": tpm,
        "concurrent_jobs": concurrent,
        "batch_tokens": batch_tokens,
        "budget_usd": budget,
        "budget_tokens": budget_tokens,
        "budget_window": budget_window,
        "expires_in_s": expires_in,
    }
    given = {field: value for field, value in given.items() if value is not None}
    try:
        asked = KeyRequest.model_validate(given)
    except ValidationError as error:
        raise refusal(error, given) from None
    now_ms = _now_ms()
    new = NewKey(
        tenant=asked.tenant,
        scopes=tuple(asked.scopes),
        created_ms=now_ms,
        created_by="cli",
        name=asked.name,
        permissions=asked.permissions,
        expires_ms=None if asked.expires_in_s is None else now_ms + asked.expires_in_s * 1000,
    )
    with on_ledger(config, data_dir) as here:
        made, key = here.ledger.write(ledger_keys.create, here.secrets, new)
        here.keep_head()
    _show_once(key_object(made, now_ms), key, as_json=as_json)


@keys.command("ls")
@click.option("--tenant", help="Only this tenant's. [default: all]")
@config_option
@data_dir_option
@json_option
def list_keys(tenant: str | None, config: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """List keys, newest first. Of each only its beginning is known."""
    from fabric.cli.on_ledger import on_ledger
    from fabric.ledger import keys as ledger_keys
    from fabric.ledger.keys import key_object

    found, now_ms = [], _now_ms()
    with on_ledger(config, data_dir) as here:
        more, after = True, None
        while more:
            page, more = here.ledger.read(ledger_keys.page, limit=1_000, after=after, tenant=tenant)
            found += [key_object(key, now_ms) for key in page]
            after = page[-1].id if page else None
    if as_json:
        print_json(found)
        return
    print_table(
        ("ID", "BEGINS", "TENANT", "NAME", "STATE", "SCOPES", "LIMITS", "EXPIRES", "FIRST USED"),
        [
            (
                *(key["id"], key["prefix"], key["tenant"], key["name"], key["state"], ",".join(key["scopes"])),
                *(_limits(key), local_time(key["expires_at"]), local_time(key["first_used_at"])),
            )
            for key in found
        ],
    )


def _limits(key: dict[str, Any]) -> str | None:
    given = [f"{name}={','.join(key[name])}" for name in ("models", "tiers", "regions") if key[name]]
    if key["privacy_floor"]:
        given.append(f"floor={key['privacy_floor']}")
    given += [f"{short}={key[name]}" for name, short in _SHORT.items() if key[name]]
    return " ".join(given) or None


@keys.command()
@click.argument("key_id")
@config_option
@data_dir_option
@json_option
def revoke(key_id: str, config: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """End a key, for good. Jobs that were accepted with it go on."""
    from fabric.cli.on_ledger import on_ledger
    from fabric.ledger import keys as ledger_keys
    from fabric.ledger.keys import key_object

    now_ms = _now_ms()
    with on_ledger(config, data_dir) as here:
        key = here.ledger.write(ledger_keys.revoke, here.secrets, key_id, now_ms, here.actor)
        here.keep_head()
    if as_json:
        print_json(key_object(key, now_ms))
    else:
        click.echo(f"{key.id} ({key.prefix}…) is revoked; every process refuses it within two seconds")


@keys.command()
@click.argument("key_id")
@click.option(
    "--overlap", type=_Seconds(), default=0, help="How long the old key still works, such as 1h. [default: 0]"
)
@config_option
@data_dir_option
@json_option
def rotate(key_id: str, overlap: int, config: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Put a new key in a key's place: it may do the same, for as long again."""
    from fabric.cli.on_ledger import on_ledger
    from fabric.contracts.new_key import LONGEST_OVERLAP_S
    from fabric.ledger import keys as ledger_keys
    from fabric.ledger.keys import key_object

    if overlap > LONGEST_OVERLAP_S:
        raise click.BadParameter(f"at most {LONGEST_OVERLAP_S // 86_400}d", param_hint="--overlap")
    now_ms = _now_ms()
    with on_ledger(config, data_dir) as here:
        made, key = here.ledger.write(
            ledger_keys.rotate, here.secrets, key_id, now_ms, here.actor, overlap_ms=overlap * 1000
        )
        here.keep_head()
    _show_once(key_object(made, now_ms), key, as_json=as_json)


def _show_once(shown: dict[str, Any], key: str, *, as_json: bool) -> None:
    """The key alone goes to standard output, so that it can be caught without the words around it."""
    if as_json:
        print_json({**shown, "key": key})
        return
    click.echo(f"{shown['id']} for tenant {shown['tenant']}; keep the key, it isn't shown again:", err=True)
    click.echo(key)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
