"""``fabric up``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from fabric.cli.start import config_option, data_dir_option, environ, host_option, port_option


@click.command()
@config_option
@data_dir_option
@host_option
@port_option
def up(config: Path | None, data_dir: Path | None, host: str | None, port: int | None) -> None:
    """Run the whole fabric on this machine.

    Starts the API, the scheduler, the recorder, a worker for each tier that has deployments and,
    unless FABRIC_REDIS_URL names one, a Valkey of its own. What dies is started again. Ctrl-C stops
    everything in order; a second one at once. The log is also in fabric.log of the data directory,
    and run.json there says what runs.
    """
    from fabric.cli.data_dir import hold
    from fabric.cli.fabric_up import FabricUp
    from fabric.cli.journal import Journal
    from fabric.cli.listen import any_keys, guarded
    from fabric.settings import load

    variables = environ(config=config.absolute() if config else None, data_dir=data_dir, host=host, port=port)
    settings = load(environ=variables)
    guarded(settings, lambda: any_keys(settings))
    with hold(settings.data_dir):
        journal = Journal(settings.data_dir / "fabric.log", sys.stdout, level=settings.log_level)

        async def run() -> None:
            await FabricUp(settings, journal, variables).run()

        try:
            asyncio.run(run())
        finally:
            journal.close()
