"""An interpreter of as much of Kaitai Struct as the files in formats/ use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml

Spec: TypeAlias = dict[str, Any]


class KsyError(Exception):
    """The .ksy uses something that is not known here, or does not fit the bytes."""


class Reader:
    """Bytes, and how far they have been read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        data = self.data[self.position : self.position + size]
        if size < 0 or len(data) < size:
            raise KsyError(f"{size} bytes wanted at {self.position}, {len(data)} are there")
        self.position += size
        return data


class Namespace(dict[str, Any]):
    """Values of fields, reached with a dot as in Kaitai's expressions."""

    __getattr__ = dict.__getitem__


class Ksy:
    """A .ksy file that can be run on bytes."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        little = spec["meta"]["endian"] == "le"
        self.order: Literal["little", "big"] = "little" if little else "big"
        self.enums = {
            f"{enum}::{name}": number
            for enum, names in spec["enums"].items()
            for number, name in names.items()
        }

    def evaluate(self, expression: Any, names: dict[str, Any]) -> Any:
        """Evaluate an expression; those used here are Python's, but for ``?:``, ``::``, ``/``."""
        if not isinstance(expression, str):
            return expression
        text = re.sub(r"\w+::\w+", lambda m: str(self.enums[m[0]]), expression)
        text = re.sub(r"^(.+?) \? (.+) : (.+)$", r"(\2) if (\1) else (\3)", text)
        text = text.replace("/", "//")
        # The file is one of our own repository.
        return eval(text, {"__builtins__": {}}, names)

    def parse(self, type_name: str, reader: Reader, *arguments: int) -> Namespace:
        """Parse a type's fields; its value instances can be had from the result too."""
        spec = self.spec["types"][type_name]
        names = Namespace(zip((p["id"] for p in spec.get("params", ())), arguments, strict=True))
        for field in spec.get("seq", ()):
            if self.evaluate(field.get("if", True), names):
                value = self._field(field, reader, names)
                if "id" in field:
                    names[field["id"]] = value
        self._values(spec, names)
        return names

    def _values(self, spec: Spec, names: Namespace) -> None:
        for name, instance in spec.get("instances", {}).items():
            if "value" in instance:
                names[name] = self.evaluate(instance["value"], names)

    def _field(self, field: Spec, reader: Reader, names: Namespace) -> Any:
        if field.get("repeat") == "expr":
            count = self.evaluate(field["repeat-expr"], names)
            return [self._field({**field, "repeat": ""}, reader, names) for _ in range(count)]
        if "contents" in field:
            wanted = bytes(field["contents"])
            found = reader.take(len(wanted))
            if found != wanted:
                raise KsyError(f"{found!r} is not {wanted!r}")
            return found
        kind = field.get("type")
        if isinstance(kind, dict):
            value = self.evaluate(kind["switch-on"], names)
            cases = {self.evaluate(case, names): then for case, then in kind["cases"].items()}
            kind = cases.get(value)
        if "size" in field:
            inner = Reader(reader.take(self.evaluate(field["size"], names)))
            return self._typed(kind, inner, names) if kind else inner.data
        if field.get("repeat") == "eos":
            found_all = []
            while reader.position < len(reader.data):
                found_all.append(self._typed(kind, reader, names))
            return found_all
        value = self._typed(kind, reader, names)
        if "valid" in field and value != field["valid"]:
            raise KsyError(f"{field['id']} is {value}, not {field['valid']}")
        return value

    def _typed(self, kind: Any, reader: Reader, names: Namespace) -> Any:
        name, _, rest = str(kind).partition("(")
        if re.fullmatch("u[1248]", name):
            return int.from_bytes(reader.take(int(name[1])), self.order)
        words = rest.removesuffix(")").split(", ") if rest else []
        arguments = [self.evaluate(word, names) for word in words]
        return self.parse(name, reader, *arguments)

    def image(self, data: bytes) -> Namespace:
        """Parse a whole file: its sequence, then its instances."""
        root = Namespace()
        reader = Reader(data)
        for field in self.spec["seq"]:
            if self.evaluate(field.get("if", True), root):
                root[field["id"]] = self._field(field, reader, root)
        for name, instance in self.spec.get("instances", {}).items():
            if "value" in instance:
                root[name] = self.evaluate(instance["value"], root)
            elif self.evaluate(instance.get("if", True), root):
                reader.position = self.evaluate(instance["pos"], root)
                root[name] = self._placed(instance, reader, root)
        return root

    def _placed(self, instance: Spec, reader: Reader, root: Namespace) -> Any:
        if instance.get("repeat") == "until":
            found: list[Any] = []
            while True:
                found.append(self._field({**instance, "repeat": ""}, reader, root))
                if self.evaluate(instance["repeat-until"], Namespace(root, _=found[-1])):
                    return found
        return self._field(instance, reader, root)


def load(path: Path) -> Spec:
    spec: Spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    return spec
