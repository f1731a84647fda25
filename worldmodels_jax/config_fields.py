"""The fields of a config: their types, values as text, and documentation.

What ``worldmodels_jax.config``, which says what a config is, has in common with its help.
"""

import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Union

UNIONS = (Union, types.UnionType)
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Leaf(NamedTuple):
    """A field that holds a value.

    Attributes:
      path: ``"model.prior"``.
      hint: its type, as written in the class.
      value: what it holds.
      doc: its entry in the ``Attributes:`` section of its class' docstring, or nothing.
    """

    path: str
    hint: Any
    value: Any
    doc: str


def describe(config: Any) -> str:
    """Returns a table of every field: path, type, value and documentation, one line each.

    The documentation is the field's entry in the ``Attributes:`` section of its class' docstring,
    the value is written as ``config.apply_overrides`` would read it.
    """
    rows = [("path", "type", "value", "doc")]
    rows += [
        (leaf.path, type_name(leaf.hint), as_text(leaf.value), leaf.doc) for leaf in leaves(config)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def leaves(section: Any, path: str = "") -> Iterator[Leaf]:
    """Yields the fields of a section and of the sections in it, in the order of their classes.

    Args:
      section: a frozen dataclass.
      path: of the section.
    """
    docs = _docs(type(section))
    for name, hint in field_types(type(section)).items():
        value, full = getattr(section, name), join_path(path, name)
        if is_section(value):
            yield from leaves(value, full)
        else:
            yield Leaf(full, hint, value, docs.get(name, ""))


def is_section(value: Any) -> bool:
    """Whether a value is a dataclass' instance, that is, has fields of its own."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def field_types(cls: Any) -> dict[str, Any]:
    """Returns the types of a dataclass' fields by name, strings resolved."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def join_path(path: str, name: str) -> str:
    """Returns the path of a section's field; ``""`` is the config itself."""
    return f"{path}.{name}" if path else name


def type_name(hint: Any) -> str:
    """Returns a type as the help shows it: ``"int|none"``, ``"maskgit|mlp"``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is types.NoneType:
        return "none"
    if hint is Ellipsis:
        return "..."
    if origin is Literal:
        return "|".join(map(as_text, arguments))
    if origin in UNIONS:
        return "|".join(map(type_name, arguments))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(type_name, arguments))}]"
    return getattr(hint, "__name__", str(hint))


def as_text(value: Any) -> str:
    """Writes a value as ``parse`` reads it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"({','.join(map(as_text, value))})"
    return str(value)


def parse(text: str, hint: Any) -> Any:
    """Reads a value; ValueError where the text does not fit, TypeError where no text could."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        choices = {as_text(choice): choice for choice in arguments}
        if text not in choices:
            raise ValueError(text)
        return choices[text]
    if origin is tuple:
        items = [item.strip() for item in re.sub(r"^\((.*)\)$", r"\1", text.strip()).split(",")]
        if not items[-1]:  # "()" and "(1,)"
            items.pop()
        return tuple(map(parse, items, item_types(hint, len(items))))
    if origin not in UNIONS:
        return _parse_scalar(text, hint)
    for member in sorted(arguments, key=lambda member: member is not types.NoneType):
        try:
            return parse(text, member)
        except ValueError:
            continue
    raise ValueError(text)


def item_types(hint: Any, length: int) -> tuple[Any, ...]:
    """Returns the types of the items of a tuple; ValueError if it cannot be that long."""
    kinds = typing.get_args(hint)
    if kinds[1:] == (Ellipsis,):
        return kinds[:1] * length
    if len(kinds) != length:
        raise ValueError(f"{length} items for {type_name(hint)}")
    return kinds


def _parse_scalar(text: str, kind: Any) -> Any:
    if kind not in (bool, int, float, str, types.NoneType):
        raise TypeError(kind)
    if kind is str:
        return text
    text = text.strip().lower()
    if kind is int:
        return _parse_int(text)
    if kind is float and not math.isnan(float(text)):
        return float(text)
    if kind is bool and text in _BOOLEANS:
        return _BOOLEANS[text]
    if kind is types.NoneType and text == "none":
        return None
    raise ValueError(text)


def _parse_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)  # "1e5"; beyond 2**53 a float no longer holds every integer
        if not number.is_integer() or abs(number) > 2**53:
            raise
        return int(number)


def _docs(cls: type) -> dict[str, str]:
    """Returns the ``Attributes:`` entries of a class and its bases, each as one line."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        section = re.search(r"^Attributes:\n((?:[ ].*\n?|\n)*)", text, re.MULTILINE)
        if section:
            entries = inspect.cleandoc("\n" + section.group(1))
            found = re.findall(r"^(\w+)(?: \(.*?\))?:((?:.*)(?:\n+[ ].*)*)", entries, re.MULTILINE)
            docs |= {name: " ".join(doc.split()) for name, doc in found}
    return docs
