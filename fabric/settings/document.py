"""Reads ``fabric.yaml``. Every complaint names the file, the line, the key and what would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fabric.contracts.errors import ConfigError
from fabric.settings.settings import Document

Location = tuple[int | str, ...]

#: Complaints shown at once.
_SHOWN = 5


def read(path: Path) -> Document:
    """
    Raises:
        ConfigError: the file is missing, isn't YAML, or holds what the fabric doesn't know.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"Can't read the configuration file {path}: {reason}.") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = {} if node is None else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_yaml_complaint(error)}") from None
    except RecursionError:
        raise ConfigError(f"{path}: it is nested too deep.") from None
    except (ValueError, ArithmeticError, TypeError, AttributeError):
        # PyYAML's own words for a date or a number that is none don't say where.
        raise ConfigError(f"{path}: it holds a number or a date that isn't one; put it into quotes.") from None
    if node is None:
        return Document()
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}:1: the file must hold keys and values, such as `models:`.")
    if twice := _repeated(node, set()):
        raise ConfigError(f"{path}:{_line(twice)}: `{twice.value}` is given twice here; keep one.")
    try:
        return Document.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_complaints(path, node, error)) from None


def line_of(path: Path, location: Location) -> int:
    """The line of a key in a file that ``read`` has accepted."""
    node = yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)
    return 1 if node is None else _find(node, location)


def complain(path: Path, wrong: Iterable[tuple[Location, str]]) -> str:
    """One line each, as for what ``read`` finds, for parts of a file that it has accepted."""
    node = yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)
    assert node is not None  # of a file that says something wrong
    found = sorted((_find(node, location), f"`{_dotted(location)}` is wrong: {said}.") for location, said in wrong)
    return _shown(path, found)


def _complaints(path: Path, node: yaml.Node, error: ValidationError) -> str:
    """One line each, in the order of the file."""
    details = error.errors(include_url=False, include_input=False)
    # A list whose items are wrong also counts as too short: only the items' complaints help.
    causes = [d for d in details if d["type"] != "too_short" or not any(_inside(o["loc"], d["loc"]) for o in details)]
    return _shown(path, sorted((_find(node, tuple(d["loc"])), _sentence(d)) for d in causes))


def _shown(path: Path, lines: Sequence[tuple[int, str]]) -> str:
    shown = [f"{path}:{line}: {sentence}" for line, sentence in lines[:_SHOWN]]
    if len(lines) > _SHOWN:
        shown.append(f"… and {len(lines) - _SHOWN} more.")
    return "\n".join(shown)


def _inside(location: Location, outer: Location) -> bool:
    return len(location) > len(outer) and location[: len(outer)] == outer


def _yaml_complaint(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "not valid YAML"
    return f":{mark.line + 1}: {problem}." if mark else f": {problem}."


def _repeated(node: yaml.Node, seen: set[int]) -> yaml.ScalarNode | None:
    """A key that its mapping has already. YAML readers keep the last one and say nothing."""
    if id(node) in seen:
        return None
    seen.add(id(node))
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in names:
                    return key
                names.add(key.value)
            children.append(value)
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    return next((found for child in children if (found := _repeated(child, seen))), None)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _find(node: yaml.Node, location: Location) -> int:
    """The line of the deepest part of ``location`` that is written down."""
    line = _line(node)
    for step in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == step), None)
            if found is None:
                break
            line, node = _line(found[0]), found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = _line(node)
        else:
            break
    return line


def _sentence(detail: ErrorDetails) -> str:
    location = tuple(detail["loc"])
    if location[-1:] == ("[key]",):  # how pydantic says that a name is wrong, and not what it names
        location = location[:-1]
    path = _dotted(location)
    if detail["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        return f"unknown key `{path}`{_suggest(str(location[-1]), known)} Known here: {', '.join(known)}."
    if detail["type"] == "missing":
        return f"`{path}` is missing."
    if detail["type"] == "literal_error":
        return f"`{path}` is wrong: use {detail['ctx']['expected']}."
    message = re.sub("^Value error, ", "", detail["msg"])
    return f"`{path}` is wrong: {message}." if path else f"{message}."


def _suggest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, 1)
    return f"; did you mean `{near[0]}`?" if near else "."


def _dotted(location: Location) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).removeprefix(".")


def _known_keys(location: Location) -> list[str]:
    inside: Any = Document
    for step in location:
        if get_origin(inside) is dict:  # names of the user's own
            inside = get_args(inside)[1]
        elif isinstance(step, str):
            inside = _model_in(inside).model_fields[step].annotation
    return list(_model_in(inside).model_fields)


def _model_in(annotation: Any) -> type[BaseModel]:
    """The model inside of ``tuple[Model, ...]``, ``Model | None`` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(model for inner in get_args(annotation) if inner is not type(None) and (model := _model_in(inner)))
