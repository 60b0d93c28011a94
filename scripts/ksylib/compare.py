"""A .ksy file compared with the construct declarations of a format."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from types import ModuleType
from typing import Any, TypeAlias

import construct
import numpy as np

from ksylib.interpreter import Ksy, KsyError, Reader, Spec

ROUNDS = 50
Row: TypeAlias = tuple[str, str]
"""A field: its name, "" for padding, and what it is."""


@dataclass(frozen=True)
class Sample:
    """Made-up bytes for a declaration: what construct, and what the .ksy's type, is told."""

    data: bytes
    context: Mapping[str, int]
    arguments: tuple[int, ...] = ()


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        layout: the module of its declarations.
        order: ``>`` or ``<``, that of all integers.
        types: the type in the .ksy for each declaration; one without is a difference.
        enums: the enumeration for each of the .ksy's, and whether its values are flags.
        sample: makes up bytes that a declaration, by its name, can parse.
        tables: what declares a table, apart from structs; its type has a sequence of columns.
    """

    layout: ModuleType
    order: str
    types: Mapping[str, str]
    enums: Mapping[str, tuple[type[IntEnum] | type[IntFlag], bool]]
    sample: Callable[[random.Random, str], Sample]
    tables: type | None = None

    def declared(self) -> set[str]:
        """Return the names of the declarations."""
        kinds = (construct.Struct, construct.GreedyRange, *filter(None, [self.tables]))
        return {
            name
            for name, value in vars(self.layout).items()
            if isinstance(value, kinds) and value is not construct.GreedyRange
        }

    def rows(self, declaration: Any) -> Iterator[Row]:
        """Yield the fields of a construct declaration, nested ones with a dotted name."""
        if self._is_table(declaration):
            dtype = declaration.dtype
            yield from ((name, f"u{dtype[name].itemsize}[]") for name in dtype.names)
            return
        if isinstance(declaration, construct.GreedyRange):
            yield from ((f"*.{name}", what) for name, what in self.rows(declaration.subcon))
            return
        for field in declaration.subcons:
            inner = field.subcon if isinstance(field, construct.Renamed) else field
            name = field.name or ""
            if isinstance(inner, construct.IfThenElse):
                inner = inner.thensubcon
            if isinstance(inner, construct.Struct) or self._is_table(inner):
                yield from ((f"{name}.{below}", what) for below, what in self.rows(inner))
            else:
                yield name, self._kind(inner)

    def _is_table(self, declaration: object) -> bool:
        return self.tables is not None and isinstance(declaration, self.tables)

    def _kind(self, field: Any) -> str:
        if isinstance(field, construct.Const):
            if isinstance(field.value, bytes):
                return f"bytes {field.value.hex()}"
            return f"{self._kind(field.subcon)} = {field.value}"
        if isinstance(field, construct.Array):
            return f"{self._kind(field.subcon)}[]"
        if isinstance(field, construct.FormatField):
            if not re.fullmatch(f"{self.order}[BHLQ]", field.fmtstr):
                raise KsyError(f"{field.fmtstr} is not an unsigned integer in the format's order")
            return f"u{field.length}"
        if isinstance(field, construct.Bytes | construct.Padded):
            return "bytes" if callable(field.length) else f"bytes of {field.length}"
        raise KsyError(f"construct's {type(field).__name__} is not known to check-ksy")


def ksy_rows(spec: Spec, type_name: str) -> Iterator[Row]:
    """Yield the fields of a .ksy type in the same form."""
    for field in spec["types"][type_name]["seq"]:
        name = field.get("id", "")
        kind = field.get("type")
        inner = kind.partition("(")[0] if isinstance(kind, str) else ""
        if field.get("repeat") == "eos":
            yield from ((f"*.{below}", what) for below, what in ksy_rows(spec, inner))
        elif inner in spec["types"] and "size" not in field:
            yield from ((f"{name}.{below}", what) for below, what in ksy_rows(spec, inner))
        else:
            yield name, ksy_kind(field)


def ksy_kind(field: Spec) -> str:
    """Return what a field of a .ksy type is."""
    if field.get("repeat") == "expr":
        return ksy_kind({**field, "repeat": ""}) + "[]"
    if "contents" in field:
        return f"bytes {bytes(field['contents']).hex()}"
    if "size" in field:
        size = field["size"]
        return f"bytes of {size}" if isinstance(size, int) else "bytes"
    kind = str(field.get("type"))
    if not re.fullmatch("u[1248]", kind):
        raise KsyError(f"type {kind} is not known to check-ksy")
    return f"{kind} = {field['valid']}" if "valid" in field else kind


def structures(spec: Spec, of: Format) -> Iterator[str]:
    """Yield every difference between structures, a line each."""
    if spec["meta"]["endian"] != {">": "be", "<": "le"}[of.order]:
        yield f"endian: {spec['meta']['endian']}"
        return
    declared = of.declared()
    for name in sorted(declared ^ of.types.keys()):
        yield f"{name}: {'not in check-ksy' if name in declared else 'not in layout.py'}"
    for name in sorted(declared & of.types.keys()):
        yield from _structure(spec, of, name)


def _structure(spec: Spec, of: Format, name: str) -> Iterator[str]:
    type_name = of.types[name]
    if type_name not in spec["types"]:
        yield f"{type_name}: not in the .ksy"
        return
    try:
        ours = list(of.rows(getattr(of.layout, name)))
        theirs = list(ksy_rows(spec, type_name))
        if ours != theirs:
            for index in range(max(len(ours), len(theirs))):
                pair = [rows[index] if index < len(rows) else None for rows in (ours, theirs)]
                if pair[0] != pair[1]:
                    yield f"{type_name}, field {index}: {pair[0]} in layout.py, {pair[1]} here"
            return
        yield from _behaviour(spec, of, name)
    except (KsyError, KeyError, NameError, TypeError) as error:
        yield f"{type_name}: {type(error).__name__}: {error}"


def _behaviour(spec: Spec, of: Format, name: str) -> Iterator[str]:
    """Parse made-up bytes both ways."""
    # The switch of a field's data has no counterpart: data is bytes in layout.py.
    plain = {**spec, "types": {k: _without_switches(t) for k, t in spec["types"].items()}}
    ksy, source, type_name = Ksy(plain), random.Random(name), of.types[name]
    for _ in range(ROUNDS):
        sample = of.sample(source, name)
        stream = io.BytesIO(sample.data)
        ours = getattr(of.layout, name).parse_stream(stream, **sample.context)
        reader = Reader(sample.data)
        theirs: Any = ksy.parse(type_name, reader, *sample.arguments)
        if isinstance(ours, list):
            theirs = theirs["entries"]
        if stream.tell() != reader.position:
            yield f"{type_name}: {reader.position} bytes long, {stream.tell()} in layout.py"
            return
        told = list(_unequal(ours, theirs, type_name))
        if told:
            yield from told
            return


def _without_switches(type_spec: Spec) -> Spec:
    fields = [
        {k: v for k, v in f.items() if k != "type" or not isinstance(v, dict)}
        for f in type_spec.get("seq", ())
    ]
    return {**type_spec, "seq": fields}


def _unequal(ours: Any, theirs: Any, where: str) -> Iterator[str]:
    if isinstance(ours, construct.ListContainer):
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            yield from _unequal(a, b, f"{where}[{index}]")
        return
    if isinstance(ours, np.ndarray):
        ours = {name: ours[name].tolist() for name in ours.dtype.names or ()}
    for name, value in ours.items():
        other = theirs.get(name)
        if name == "_io":
            continue
        if isinstance(value, construct.Container | np.ndarray):
            yield from _unequal(value, other, f"{where}.{name}")
        elif value != other:
            yield f"{where}.{name}: {other!r}, {value!r} in layout.py"


def enumerations(spec: Spec, of: Format) -> Iterator[str]:
    """Yield every difference between enumerations."""
    for name, (enum, flags) in of.enums.items():
        ours = {m.value.bit_length() - 1 if flags else m.value: str(m.name).lower() for m in enum}
        if spec["enums"].get(name) != ours:
            yield f"enum {name}: {spec['enums'].get(name)}, {ours} in layout.py"
    for extra in sorted(spec["enums"].keys() - of.enums.keys()):
        yield f"enum {extra}: not in check-ksy"
