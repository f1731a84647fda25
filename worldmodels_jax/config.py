"""Nested frozen dataclasses as configuration: overrides, JSON round trip, differences, help.

A config is a frozen dataclass whose fields are values (bool, int, float, str, ``Literal``, tuples
and optionals of them) or *sections*, dataclasses in their turn. A field is addressed by its path,
``"model.prior"``. Nothing here knows a particular config; presets live in ``experiments/configs``.
"""

import collections
import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

from worldmodels_jax.config_fields import (
    UNIONS,
    as_text,
    describe,
    field_types,
    is_section,
    item_types,
    join_path,
    leaves,
    parse,
    type_name,
)

__all__ = [
    "ConfigError",
    "apply_overrides",
    "describe",
    "diff",
    "from_dict",
    "split_flags",
    "to_dict",
]

Config = TypeVar("Config")


class ConfigError(ValueError):
    """An unknown, ill-typed or inconsistent config field; the message names it and the remedy."""


def split_flags(argv: Sequence[str], name: str = "config") -> tuple[list[str], dict[str, str]]:
    """Takes the overrides out of a command line.

    Understood are ``--config.a.b=v``, ``--config.a.b v`` and both with a single dash; of a repeated
    path the last value wins. ``--config=preset`` is no override and stays, and so does everything
    after a bare ``--``.

    Args:
      argv: the command line, with or without the program's name.
      name: the flag the paths hang from.

    Returns:
      The remaining arguments in their order, and the overrides ``{"a.b": "v"}``.

    Raises:
      ConfigError: an override has no value.
    """
    flag = re.compile(rf"--?{re.escape(name)}\.([^=]*)(?:=(.*))?", re.DOTALL)
    remaining: list[str] = []
    overrides: dict[str, str] = {}
    arguments = collections.deque(argv)
    while arguments:
        argument = arguments.popleft()
        if argument == "--":
            remaining += [argument, *arguments]
            break
        match = flag.fullmatch(argument)
        if match is None:
            remaining.append(argument)
            continue
        path, value = match.groups()
        if value is None:
            # A single dash may begin a negative number, so only unmistakable flags are refused.
            if not arguments or arguments[0].startswith("--") or flag.fullmatch(arguments[0]):
                raise ConfigError(f"{argument} has no value; write {argument}=VALUE")
            value = arguments.popleft()
        overrides[path] = value
    return remaining, overrides


def apply_overrides(config: Config, overrides: Mapping[str, str]) -> Config:
    """Returns ``config`` with the fields at the given paths replaced.

    Texts are parsed by the field's type: bool (true/false/1/0/yes/no), int (``1_000`` and ``1e5``
    too), float (not NaN), str, ``Literal``, tuples (``1,2,3``, ``(1,2,3)``), optionals (``none``).
    Each section is rebuilt once, with all its changes, so that a ``__post_init__`` that compares
    two fields never sees only one of them changed.

    Args:
      config: a frozen dataclass, left as it is.
      overrides: ``{"model.prior": "mlp"}``, as from ``split_flags``.

    Raises:
      ConfigError: unknown path, ill-typed text, a section as target, or a value that a section's
        own ``__post_init__`` refuses.
    """
    return _override(config, overrides, "", config)


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the config as nested dicts of JSON values; tuples become lists, ±inf strings.

    Raises:
      ConfigError: a field holds what JSON cannot carry there and back, NaN included.
    """
    return _encode(config, "")


def from_dict(cls: type[Config], mapping: Mapping[str, Any]) -> Config:
    """Inverts ``to_dict``: builds a ``cls`` from nested dicts, as read from JSON.

    A field whose type is a union of sections takes the one whose fields fit; one whose type is a
    dataclass without fields takes the subclass whose fields fit, among those that are imported. Of
    several that fit it is the one with the fewest fields that are not given.

    A field that is not given takes its class's default, so that what an older version wrote can be
    read: **the default of a field that is new must be what was done before there was one**.

    Raises:
      ConfigError: unknown or ill-typed keys, or missing ones that have no default; two sections of
        a union that fit equally.
    """
    return _decode(mapping, cls, "")


def diff(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Returns ``{path: (value in a, value in b)}`` for every field that differs.

    Sections of different classes are one difference, at the section's path (``""`` at the top).
    """
    return dict(_differences(a, b, ""))


def _override(section: Any, overrides: Mapping[str, str], path: str, root: Any) -> Any:
    hints = field_types(type(section))
    changes: dict[str, Any] = {}
    nested: dict[str, dict[str, str]] = {}
    for key, text in overrides.items():
        name, dot, rest = key.partition(".")
        full = join_path(path, key)
        if name not in hints:
            raise ConfigError(_unknown_field(full, path, list(hints), root))
        value = getattr(section, name)
        if dot:
            if not is_section(value):
                raise ConfigError(
                    f"there is no {full!r}: {join_path(path, name)!r} is a value "
                    f"({as_text(value)}), not a section; drop what follows it"
                )
            nested.setdefault(name, {})[rest] = text
        elif is_section(value) or any(
            map(dataclasses.is_dataclass, (hints[name], *typing.get_args(hints[name])))
        ):
            raise ConfigError(
                f"{full!r} is a section and cannot be set to {text!r}; set its fields, "
                f"{full}.NAME=VALUE, or choose another preset"
            )
        else:
            changes[name] = _parse_field(full, text, hints[name])
    for name, inner in nested.items():
        changes[name] = _override(getattr(section, name), inner, join_path(path, name), root)
    return _build(path, lambda: dataclasses.replace(section, **changes))


def _unknown_field(full: str, path: str, valid: Sequence[str], root: Any) -> str:
    name = full.removeprefix(f"{path}.").partition(".")[0]
    # A right name in the wrong section is as common as a misspelt one.
    last = full.rpartition(".")[2]
    near = [leaf.path for leaf in leaves(root) if leaf.path.rpartition(".")[2] == last]
    near += [join_path(path, match) for match in difflib.get_close_matches(name, valid)]
    hint = f"did you mean {' or '.join(map(repr, near[:5]))}? " if near else ""
    place = f"of {path!r}" if path else "at the top level"
    return f"there is no config field {full!r}; {hint}Valid fields {place}: {', '.join(valid)}"


def _parse_field(path: str, text: str, hint: Any) -> Any:
    try:
        return parse(text, hint)
    except ValueError as error:
        raise ConfigError(_ill_typed(path, text, hint)) from error
    except TypeError as error:
        raise ConfigError(
            f"{path}={text!r}: a {type_name(hint)} cannot be read from text; "
            "set it in the preset instead"
        ) from error


def _encode(value: Any, path: str) -> Any:
    if is_section(value):
        names = field_types(type(value))
        return {name: _encode(getattr(value, name), join_path(path, name)) for name in names}
    if isinstance(value, tuple):
        return [_encode(item, path) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    if value is None or (isinstance(value, bool | int | float | str) and value == value):
        return value
    raise ConfigError(
        f"{path} holds {value!r}, which does not survive JSON; "
        "use bool, int, float (not NaN), str, None or tuples of them"
    )


def _decode(value: Any, hint: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if kinds := _descendants(hint):
            return _decode_union(value, Union[*kinds], path)
        return _decode_section(value, hint, path)
    if origin in UNIONS:
        return _decode_union(value, hint, path)
    if origin is tuple and isinstance(value, list | tuple):
        try:
            hints = item_types(hint, len(value))
        except ValueError as error:
            raise ConfigError(_ill_typed(path, value, hint)) from error
        return tuple(_decode(item, kind, path) for item, kind in zip(value, hints, strict=True))
    if origin is Literal:
        fits = any(type(value) is type(choice) and value == choice for choice in arguments)
    elif hint is float and value in ("inf", "-inf"):
        return float(value)
    elif hint is float:
        fits = type(value) in (int, float) and value == value
    else:
        fits = type(value) is hint
    if not fits:
        raise ConfigError(_ill_typed(path, value, hint))
    return float(value) if hint is float else value


def _descendants(cls: Any) -> list[Any]:
    """The classes that a section may be whose type says nothing itself: those below it."""
    if dataclasses.fields(cls):
        return []
    below = [(sub, _descendants(sub)) for sub in cls.__subclasses__()]
    return [kind for sub, kinds in below for kind in kinds or [sub]]


def _decode_section(value: Any, cls: Any, path: str) -> Any:
    place = path or cls.__name__
    if not isinstance(value, Mapping):
        raise ConfigError(f"{place} is {value!r}; expected a mapping with the fields of {cls}")
    hints = field_types(cls)
    unknown, absent = sorted(value.keys() - hints), hints.keys() - value.keys()
    missing = sorted(absent & _required(cls))
    if unknown or missing:
        raise ConfigError(
            f"{place} does not fit {cls.__name__}: unknown keys {unknown}, missing keys {missing}; "
            "it was perhaps written by another version, which alone can read it"
        )
    fields = {
        name: _decode(value[name], hint, join_path(path, name))
        for name, hint in hints.items()
        if name in value
    }
    return _build(path, lambda: cls(**fields))


def _required(cls: Any) -> set[str]:
    """The fields that have no default."""
    return {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }


def _decode_union(value: Any, hint: Any, path: str) -> Any:
    members = typing.get_args(hint)
    if value is None and types.NoneType in members:
        return None
    members = tuple(member for member in members if member is not types.NoneType)
    if len(members) == 1:  # its own error says more than ours would
        return _decode(value, members[0], path)
    fits = []
    for member in members:
        try:
            fits.append(_decode(value, member, path))
        except ConfigError:
            continue
    if not fits:
        raise ConfigError(_ill_typed(path, value, hint))
    if any(map(is_section, fits)):
        absent = [len(field_types(type(section)).keys() - value.keys()) for section in fits]
        fits = [section for section, n in zip(fits, absent, strict=True) if n == min(absent)]
    if sum(map(is_section, fits)) > 1:
        raise ConfigError(
            f"{path} fits more than one section of {type_name(hint)}; "
            "give their classes a field of different name"
        )
    return fits[0]


def _differences(a: Any, b: Any, path: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if is_section(a) and type(a) is type(b):
        for name in field_types(type(a)):
            yield from _differences(getattr(a, name), getattr(b, name), join_path(path, name))
    elif a != b:
        yield path, (a, b)


def _build(path: str, make: Callable[[], Any]) -> Any:
    """Calls a constructor, whose own ValueError is the user's error in that section."""
    try:
        return make()
    except ValueError as error:
        raise ConfigError(f"{path or 'config'}: {error}") from error


def _ill_typed(path: str, value: Any, hint: Any) -> str:
    return f"{path}={value!r} is ill-typed; expected {type_name(hint)}"
