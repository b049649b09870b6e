"""Puts the sources together: environment over file over defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fabric.contracts.breaker import Breaker
from fabric.contracts.catalog import Catalog, Deployment, Model
from fabric.contracts.errors import ConfigError
from fabric.contracts.policy import BUILT_IN
from fabric.pricing import priced
from fabric.settings import document, environment, rules
from fabric.settings.batch_apis import with_batch_apis
from fabric.settings.defaults import default_model, shipped_model
from fabric.settings.settings import Document, Options, Settings, resolve

_DEFAULT_FILE = Path("fabric.yaml")


def load(config: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Reads ``config``, else the file that ``FABRIC_CONFIG`` names, else ``./fabric.yaml`` where there is one.

    Relative paths in the file count from the file's folder, those in the environment from the
    working directory.

    Raises:
        ConfigError: a key, variable or value is unknown or wrong; the message says where and what to do.
    """
    given = environment.options(environ)
    path = config or _named(environ) or (_DEFAULT_FILE if _DEFAULT_FILE.exists() else None)
    written = document.read(path) if path else Document()
    folder = path.absolute().parent if path else Path.cwd()
    options = Options.model_validate({**_set(written, folder), **_set(given, Path.cwd())})
    catalog = _priced(_catalog(written, folder, environ.get(environment.CPU_MODEL), path), path)
    _check_rules(catalog, path)
    return resolve(options, catalog, path.absolute() if path else None, written.webhooks)


def _named(environ: Mapping[str, str]) -> Path | None:
    name = environ.get(environment.CONFIG)
    return Path(name) if name else None


def _set(options: Options, folder: Path) -> dict[str, Any]:
    """The process settings that this source gives."""
    given = {name: getattr(options, name) for name in options.model_fields_set & Options.model_fields.keys()}
    return {name: _at(value, folder) if isinstance(value, Path) else value for name, value in given.items()}


def _at(path: Path, folder: Path) -> Path:
    return folder / path.expanduser()


def _catalog(written: Document, folder: Path, cpu_model: str | None, path: Path | None) -> Catalog:
    chosen = Path(cpu_model).expanduser().absolute() if cpu_model else None
    known = {**BUILT_IN, **written.policies}
    if path and written.default_policy not in known:
        line = document.line_of(path, ("default_policy",))
        raise ConfigError(f"{path}:{line}: `default_policy` is wrong: use one of {', '.join(sorted(known))}.")
    given: dict[str, Any] = {
        "tiers": written.tiers,
        "baseline": written.baseline,
        "budgets": written.budgets,
        "tenant_weights": written.tenant_weights,
        "tenant_limits": written.tenant_limits,
        "privacy": written.privacy,
        "policies": written.policies,
        "default_policy": written.default_policy,
        "rules": written.rules,
        "rule_headers": written.rule_headers,
        "rule_timezone": written.rule_timezone,
    }
    if not written.models:
        return Catalog(models=(_with_breakers(default_model(chosen), written.breaker),), **given)
    unnamed = [d for m in written.models for d in m.deployments if d.engine == "llamacpp" and not d.model]
    if chosen and not unnamed:
        raise ConfigError(
            f"FABRIC_CPU_MODEL is set, but {path} names the file of every llamacpp deployment itself: "
            "unset the variable, or leave out `model` in the deployment that it is for."
        )
    models = tuple(_with_files(model, folder, chosen) for model in written.models)
    models = tuple(_with_breakers(model, written.breaker) for model in models)
    try:
        return Catalog(models=models, **given)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        line = document.line_of(path, ("models",)) if path else 1
        raise ConfigError(f"{path}:{line}: `models`: {message}.") from None


def _priced(catalog: Catalog, path: Path | None) -> Catalog:
    try:
        catalog = priced(catalog)
    except ConfigError as error:
        line = document.line_of(path, ("baseline",)) if path else 1
        raise ConfigError(f"{path}:{line}: {error.message}") from None
    try:
        return with_batch_apis(catalog)
    except ConfigError as error:
        line = document.line_of(path, ("models",)) if path else 1
        raise ConfigError(f"{path}:{line}: {error.message}") from None


def _check_rules(catalog: Catalog, path: Path | None) -> None:
    wrong = list(rules.complaints(catalog)) if catalog.rules else []
    if path and wrong:
        raise ConfigError(document.complain(path, wrong))


def _with_breakers(model: Model, of_all: Breaker) -> Model:
    deployments = tuple(d.model_copy(update={"breaker": d.breaker.over(of_all)}) for d in model.deployments)
    return model.model_copy(update={"deployments": deployments})


def _with_files(model: Model, folder: Path, chosen: Path | None) -> Model:
    deployments = tuple(_with_file(d, folder, chosen) for d in model.deployments)
    return model.model_copy(update={"deployments": deployments})


def _with_file(deployment: Deployment, folder: Path, chosen: Path | None) -> Deployment:
    if deployment.engine != "llamacpp":
        return deployment
    file = _at(Path(deployment.model), folder) if deployment.model else chosen or shipped_model()
    return deployment.model_copy(update={"model": str(file)})
