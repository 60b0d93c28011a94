"""Random disk images and pairs of them: what to make, as plain data, and a builder that makes it.

A spec says everything about a pair and nothing about where it lies, so hypothesis can shrink it and
a failing one can be pasted into a test. What QEMU would refuse is left out: choices that exclude
each other when the spec is drawn, operations that cannot work at their point when it is built.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from hypothesis import strategies as st

from tests.support import qemu

Format = Literal["qcow2", "raw"]
Fill = Literal["pattern", "random", "mixed"]
OpKind = Literal["write", "compressed", "zero", "unmap", "discard", "snapshot", "resize"]
Relation = Literal[
    "independent", "copy+changes", "convert", "overlay", "siblings", "snapshots"
]  # fmt: skip

RELATIONS: tuple[Relation, ...] = get_args(Relation)
SECTOR = 512
MAX_SIZE = 8 << 20
MAX_SIZE_TINY_CLUSTERS = 1 << 20
FILL_LENGTH = 96 << 10


@dataclass(frozen=True)
class Op:
    """One thing done to an image; ranges are wrapped into the disk as it is when the op runs.

    `seed` is the byte of a pattern and the seed of random content; `length` is a resize's new size.
    """

    kind: OpKind
    start: int = 0
    length: int = 0
    fill: Fill = "pattern"
    seed: int = 0


@dataclass(frozen=True)
class LayerSpec:
    """One image file (two with a data file). All but size, ops, tail_cut are for qcow2 only."""

    format: Format = "qcow2"
    size: int = 1 << 20
    ops: tuple[Op, ...] = ()
    cluster_size: int = 65536
    compat: Literal["0.10", "1.1"] = "1.1"
    refcount_bits: int = 16
    extended_l2: bool = False
    compression: Literal["zlib", "zstd"] = "zlib"
    lazy_refcounts: bool = False
    data_file: bool = False
    data_file_raw: bool = False
    preallocation: Literal["off", "metadata"] = "off"
    tail_cut: int = 0
    """Bytes missing from a raw file's last sector."""

    @property
    def snapshots(self) -> int:
        """How many internal snapshots the ops ask for."""
        return sum(op.kind == "snapshot" for op in self.ops)


@dataclass(frozen=True)
class ChainSpec:
    """Images stacked on each other, the base first. Only the base may be raw."""

    layers: tuple[LayerSpec, ...] = ()


@dataclass(frozen=True)
class PairSpec:
    """OLD and NEW. What `new` holds depends on the relation.

    independent: NEW's whole chain; convert, overlay, siblings: one layer, the copy's or overlay's
    (with siblings all of `old` but its top is the shared base); copy+changes: one layer of which
    only ops and tail_cut count; snapshots: nothing, `picks` choose two states of OLD's top layer.
    """

    relation: Relation
    old: ChainSpec
    new: ChainSpec = ChainSpec()
    convert_compressed: bool = False
    picks: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class BuiltPair:
    """A pair on disk; a snapshot of None is the active state."""

    spec: PairSpec
    folder: Path
    old: Path
    new: Path
    old_format: Format
    new_format: Format
    old_snapshot: str | None = None
    new_snapshot: str | None = None


# --- building -----------------------------------------------------------------------------------


@dataclass
class _State:
    """What must be known of an image in the making, to leave out what QEMU would refuse."""

    size: int
    written: set[int] = field(default_factory=set)
    """Clusters with an entry of any kind: a compressed write to one of them fails."""
    all_written: bool = False
    compressed: bool = False
    snapshots: int = 0
    backed: bool = False

    def copy(self) -> _State:
        return replace(self, written=set(self.written))


@dataclass(frozen=True)
class _Built:
    path: Path
    spec: LayerSpec
    state: _State


def build(spec: PairSpec, folder: Path) -> BuiltPair:
    """Make the pair's files in `folder`."""
    if spec.relation == "snapshots":
        return _build_snapshots(spec, folder)
    old_files = _build_chain(spec.old, folder, "old", None)
    old = old_files[-1]
    match spec.relation:
        case "copy+changes":
            new = _build_copy(spec, folder, old)
        case "convert":
            new = _build_conversion(spec, folder, old)
        case "overlay":
            new = _build_chain(spec.new, folder, "new", old)[-1]
        case "siblings":
            new = _build_chain(spec.new, folder, "new", old_files[-2])[-1]
        case _:
            new = _build_chain(spec.new, folder, "new", None)[-1]
    return BuiltPair(spec, folder, old.path, new.path, old.spec.format, new.spec.format)


def _build_snapshots(spec: PairSpec, folder: Path) -> BuiltPair:
    image = _build_chain(spec.old, folder, "old", None)[-1]
    states = [None, *(f"s{index}" for index in range(image.state.snapshots))]
    old, new = (pick % len(states) for pick in spec.picks)
    if old == new:
        new = (new + 1) % len(states)
    path, fmt = image.path, image.spec.format
    return BuiltPair(spec, folder, path, path, fmt, fmt, states[old], states[new])


def _build_chain(spec: ChainSpec, folder: Path, stem: str, backing: _Built | None) -> list[_Built]:
    built: list[_Built] = []
    for index, layer in enumerate(spec.layers):
        backing = _build_layer(layer, folder, f"{stem}{index}", backing)
        built.append(backing)
    return built


def _build_layer(spec: LayerSpec, folder: Path, name: str, backing: _Built | None) -> _Built:
    path = folder / f"{name}.{spec.format}"
    if spec.format == "raw":
        path.touch()
        os.truncate(path, spec.size)
    else:
        base = None if backing is None else backing.path.name
        base_format = None if backing is None else backing.spec.format
        options = _options(spec, path)
        qemu.create(path, spec.size, backing=base, backing_fmt=base_format, **options)
    state = _State(
        spec.size, all_written=spec.preallocation != "off", backed=backing is not None
    )  # fmt: skip
    return _apply(_Built(path, spec, state), spec)


def _build_copy(spec: PairSpec, folder: Path, old: _Built) -> _Built:
    path = folder / f"new0.{old.spec.format}"
    shutil.copyfile(old.path, path)
    if old.spec.data_file:
        shutil.copyfile(_data_file(old.path), _data_file(path))
        qemu.amend(path, data_file=str(_data_file(path)))
    if old.spec.format == "raw":
        os.truncate(path, old.state.size)
    return _apply(_Built(path, old.spec, old.state.copy()), spec.new.layers[0])


def _build_conversion(spec: PairSpec, folder: Path, old: _Built) -> _Built:
    layer = spec.new.layers[0]
    path = folder / f"new0.{layer.format}"
    compressed = spec.convert_compressed and layer.format == "qcow2" and not layer.data_file
    if compressed:
        layer = replace(layer, preallocation="off")
    qemu.convert(
        old.path, path, source_fmt=old.spec.format, target_fmt=layer.format,
        compressed=compressed, **_options(layer, path),
    )  # fmt: skip
    state = _State(old.state.size, all_written=True, compressed=compressed)
    return _apply(_Built(path, layer, state), layer)


def _data_file(path: Path) -> Path:
    """Named in full, since QEMU takes a relative name from its working folder."""
    return path.absolute().with_suffix(".data")


def _options(spec: LayerSpec, path: Path) -> dict[str, Any]:
    """The spec as qemu-img's options; a v2 image is not told of what v3 brought."""
    if spec.format == "raw":
        return {}
    options: dict[str, Any] = {"cluster_size": spec.cluster_size, "compat": spec.compat}
    if spec.preallocation != "off":
        options["preallocation"] = spec.preallocation
    if spec.compat == "1.1":
        options["refcount_bits"] = spec.refcount_bits
        options["extended_l2"] = spec.extended_l2
        options["compression_type"] = spec.compression
        options["lazy_refcounts"] = spec.lazy_refcounts
        if spec.data_file:
            options["data_file"] = str(_data_file(path))
            options["data_file_raw"] = spec.data_file_raw
    return options


def _apply(image: _Built, changes: LayerSpec) -> _Built:
    """Do the ops of `changes`, as few qemu-io processes as can be."""
    for run in _runs(changes.ops):
        if run[0].kind == "snapshot":
            _take_snapshot(image)
            continue
        commands = [each for op in run for each in _commands(op, image.spec, image.state)]
        qemu.io(image.path, commands, fmt=image.spec.format)
    if image.spec.format == "raw" and changes.tail_cut:
        os.truncate(image.path, max(image.state.size - changes.tail_cut, 0))
    return image


def _runs(ops: Iterable[Op]) -> Iterator[list[Op]]:
    """The ops split at snapshots, and before a compressed write that follows other writes.

    The second split steps around a bug of QEMU (7.2 and 10.0 at least): freeing a host cluster of
    compressed data does not forget it as the place for more of it, and so it may be given out for
    plain data and then have a payload written into it, until the image is opened anew.
    """
    run: list[Op] = []
    for op in ops:
        alone = op.kind == "snapshot" or (run and run[-1].kind == "snapshot")
        after_others = op.kind == "compressed" and run and run[-1].kind != "compressed"
        if run and (alone or after_others):
            yield run
            run = []
        run.append(op)
    if run:
        yield run


def _take_snapshot(image: _Built) -> None:
    if _may_snapshot(image.spec, image.state):
        qemu.snapshot(image.path, f"s{image.state.snapshots}")
        image.state.snapshots += 1


def _may_snapshot(spec: LayerSpec, state: _State) -> bool:
    """Snapshots raise every refcount by one, compressed clusters share host clusters."""
    if spec.format == "raw" or spec.data_file:
        return False
    if state.compressed and spec.refcount_bits < 16:
        return False
    return state.snapshots + 2 <= 1 << min(spec.refcount_bits, 16) - 1


def _may_resize(size: int, spec: LayerSpec, state: _State) -> bool:
    """What grows must hide a longer backing file's tail.

    That is beyond v2 (which also keeps its size once it has snapshots), and beyond sub-clusters
    where the last cluster is compressed.
    """
    uncovers = state.backed and size > state.size
    if spec.format == "raw":
        return True
    if spec.compat == "0.10":
        return not state.snapshots and not uncovers
    return not (uncovers and spec.extended_l2 and state.compressed)


def _commands(op: Op, spec: LayerSpec, state: _State) -> Iterator[qemu.Command]:
    """What to tell qemu-io for `op`: nothing where QEMU would refuse it."""
    if op.kind == "resize":
        if _may_resize(op.length, spec, state):
            if state.backed:  # growing may have to hide the tail of a longer backing file
                state.written.update(_clusters(state.size, op.length, spec.cluster_size))
            state.size = op.length
            yield qemu.truncate_command(op.length)
        return
    if op.kind == "compressed":
        yield from _compressed_commands(op, spec, state)
        return
    start, length = _wrapped(op, SECTOR, state.size)
    if length == 0:
        return
    state.written.update(_clusters(start, length, spec.cluster_size))
    match op.kind:
        case "zero" | "unmap":
            yield qemu.zero_command(start, length, unmap=op.kind == "unmap")
        case "discard":
            yield qemu.discard_command(start, length)
        case _:
            yield _fill_command(op, start, length)


def _compressed_commands(op: Op, spec: LayerSpec, state: _State) -> Iterator[qemu.Command]:
    """One write per cluster of the range that has no entry yet, in whole clusters up to the end."""
    no_room = state.snapshots and spec.refcount_bits < 16
    if spec.format == "raw" or spec.data_file or state.all_written or no_room:
        return
    start, length = _wrapped(op, spec.cluster_size, state.size)
    for cluster in _clusters(start, length, spec.cluster_size):
        if cluster not in state.written:
            offset = cluster * spec.cluster_size
            state.written.add(cluster)
            state.compressed = True
            count = min(spec.cluster_size, state.size - offset)
            yield _fill_command(op, offset, count, compressed=True)


def _wrapped(op: Op, unit: int, size: int) -> tuple[int, int]:
    """The op's range moved into a disk of `size` and cut at its end; the start is aligned."""
    if size == 0:
        return 0, 0
    start = op.start % size // unit * unit
    return start, min(op.length, size - start)


def _clusters(start: int, length: int, cluster_size: int) -> range:
    return range(start // cluster_size, -(-(start + length) // cluster_size))


def _fill_command(op: Op, start: int, length: int, *, compressed: bool = False) -> qemu.Command:
    if op.fill == "pattern":
        return qemu.write_command(start, length, op.seed % 256, flags="-c" if compressed else "")
    source = _fill_file(op.fill, op.seed)
    return qemu.write_file_command(start, length, source, compressed=compressed)


@cache
def _fill_file(fill: Fill, seed: int) -> Path:
    """A file of random bytes, or of compressible ones if mixed; qemu-io repeats it as needed.

    It is in memory and has no name of its own, so that a killed test leaves nothing behind.
    """
    data = random.Random(seed).randbytes(FILL_LENGTH)
    if fill == "mixed":
        data = data.translate(bytes(byte & 0x8F for byte in range(256)))
    fd = os.memfd_create(f"qcowdelta-{fill}-{seed}")
    os.pwrite(fd, data, 0)
    return Path(f"/proc/{os.getpid()}/fd/{fd}")


# --- strategies ---------------------------------------------------------------------------------

CLUSTER_SIZES = (512, 1024, 4096, 16384, 65536, 262144, 2 << 20)
REFCOUNT_BITS = (1, 2, 4, 8, 16, 32, 64)


def sizes(limit: int = MAX_SIZE) -> st.SearchStrategy[int]:
    """Virtual sizes: multiples of 512, round ones and odd ones, now and then none at all."""
    return st.one_of(
        st.sampled_from([0, SECTOR, 65536, 1 << 20, limit]),
        st.integers(1, limit // 65536).map(lambda count: count * 65536),
        st.integers(1, limit // SECTOR).map(lambda count: count * SECTOR),
    )


def ops(
    layer: LayerSpec, *, min_ops: int = 1, max_ops: int = 8
) -> st.SearchStrategy[tuple[Op, ...]]:
    """What may be done to an image made as `layer` says."""
    return st.lists(_any_op(layer), min_size=min_ops, max_size=max_ops).map(tuple)


RANGE_OPS: tuple[OpKind, ...] = ("write", "compressed", "zero", "unmap", "discard")
RANGE_WEIGHTS = (4, 3, 2, 2, 2)


@st.composite
def _any_op(draw: st.DrawFn, layer: LayerSpec) -> Op:
    kinds = [kind for kind, weight in zip(RANGE_OPS, RANGE_WEIGHTS, strict=True)
             for _ in range(weight)]  # fmt: skip
    if layer.format == "qcow2" and not layer.data_file:
        kinds.append("snapshot")
    kind = draw(st.sampled_from([*kinds, "resize"]))
    limit = _size_limit(layer.cluster_size)
    match kind:
        case "snapshot":
            return Op(kind)
        case "resize":
            return Op(kind, length=draw(sizes(limit)))
    return draw(_range_op(kind, layer.cluster_size, limit))


@st.composite
def _range_op(draw: st.DrawFn, kind: OpKind, cluster_size: int, limit: int) -> Op:
    unit = draw(st.sampled_from([SECTOR, 4096, cluster_size]))
    reach = min(limit, max(16 * cluster_size, 1 << 20)) // unit
    longest = max(1, min(256 << 10, limit) // unit)
    return Op(
        kind,
        start=draw(st.integers(0, reach)) * unit,
        length=draw(st.one_of(st.integers(1, 4), st.integers(1, longest))) * unit,
        fill=draw(st.sampled_from(["pattern", "random", "mixed"])),
        seed=draw(st.integers(0, 3)),
    )


def _size_limit(cluster_size: int) -> int:
    return MAX_SIZE_TINY_CLUSTERS if cluster_size < 4096 else MAX_SIZE


@st.composite
def layers(
    draw: st.DrawFn, *, fmt: Format = "qcow2", backed: bool = False, plain: bool = False
) -> LayerSpec:
    """One image with its ops; `plain` suits internal snapshots: no data file, wide refcounts."""
    spec = draw(_qcow2_layers(backed, plain)) if fmt == "qcow2" else LayerSpec("raw")
    size = draw(sizes(_size_limit(spec.cluster_size)))
    spec = replace(spec, size=size, tail_cut=draw(_tail_cuts()) if fmt == "raw" else 0)
    return replace(spec, ops=draw(ops(spec)))


def _tail_cuts() -> st.SearchStrategy[int]:
    return st.one_of(st.just(0), st.integers(1, SECTOR - 1))


@st.composite
def _qcow2_layers(draw: st.DrawFn, backed: bool, plain: bool) -> LayerSpec:
    cluster_size = draw(st.sampled_from(CLUSTER_SIZES))
    preallocation: Literal["off", "metadata"] = draw(
        st.sampled_from(["off", "off", "off", "metadata"])
    )
    spec = LayerSpec(
        cluster_size=cluster_size, preallocation="off" if backed else preallocation
    )  # fmt: skip
    if draw(st.integers(0, 4)) == 4:
        return replace(spec, compat="0.10")
    data_file = not plain and draw(st.integers(0, 5)) == 5
    return replace(
        spec,
        refcount_bits=16 if plain else draw(st.sampled_from(REFCOUNT_BITS)),
        extended_l2=cluster_size >= 16384 and draw(st.booleans()),
        compression=draw(st.sampled_from(["zlib", "zstd"])),
        lazy_refcounts=draw(st.booleans()),
        data_file=data_file,
        data_file_raw=data_file and not backed and draw(st.booleans()),
    )


@st.composite
def chains(
    draw: st.DrawFn, *, min_depth: int = 1, max_depth: int = 3, plain_top: bool = False
) -> ChainSpec:
    """Stacked layers, each of its own format, geometry and size: backings get short and long."""
    depth = draw(st.integers(min_depth, max_depth))
    raw_base = draw(st.integers(0, 2)) == 2 and not (plain_top and depth == 1)
    built = []
    for index in range(depth):
        plain = plain_top and index == depth - 1
        fmt: Format = "raw" if raw_base and index == 0 else "qcow2"
        built.append(draw(layers(fmt=fmt, backed=index > 0, plain=plain)))
    return ChainSpec(tuple(built))


@st.composite
def pair_specs(
    draw: st.DrawFn, relations: Iterable[Relation] = RELATIONS, max_depth: int = 3
) -> PairSpec:
    """Pairs of every relation in `relations`."""
    relation = draw(st.sampled_from(tuple(relations)))
    match relation:
        case "snapshots":
            return draw(_snapshot_pairs(max_depth))
        case "siblings":
            old = draw(chains(min_depth=2, max_depth=max(2, max_depth)))
            return PairSpec(relation, old, _chain(draw(layers(backed=True))))
    old = draw(chains(max_depth=max_depth))
    match relation:
        case "independent":
            return PairSpec(relation, old, draw(chains(max_depth=max_depth)))
        case "copy+changes":
            top = old.layers[-1]
            cut = draw(_tail_cuts()) if top.format == "raw" else 0
            return PairSpec(
                relation, old, _chain(replace(top, ops=draw(ops(top)), tail_cut=cut))
            )  # fmt: skip
        case "convert":
            fmt: Format = draw(st.sampled_from(["qcow2", "qcow2", "raw"]))
            copy = _chain(draw(layers(fmt=fmt)))
            return PairSpec(relation, old, copy, convert_compressed=draw(st.booleans()))
        case _:
            return PairSpec(relation, old, _chain(draw(layers(backed=True))))


def _chain(layer: LayerSpec) -> ChainSpec:
    return ChainSpec((layer,))


@st.composite
def _snapshot_pairs(draw: st.DrawFn, max_depth: int) -> PairSpec:
    """One file in which at least one snapshot is followed by changes."""
    chain = draw(chains(max_depth=max_depth, plain_top=True))
    top = chain.layers[-1]
    forced = (*top.ops, Op("snapshot"), *draw(ops(top)), *draw(_maybe_snapshot()))
    old = ChainSpec((*chain.layers[:-1], replace(top, ops=(*forced, *draw(ops(top, max_ops=3))))))
    return PairSpec("snapshots", old, picks=draw(st.tuples(st.integers(0, 5), st.integers(0, 5))))


def _maybe_snapshot() -> st.SearchStrategy[tuple[Op, ...]]:
    return st.sampled_from([(), (Op("snapshot"),)])
