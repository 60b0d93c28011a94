"""What explains a delta's size: measured facts, each with the bytes that it is worth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..disk.kinds import SpaceKind
from ..errors import printable
from .figures import Advice, Attribution, FileChange, FileStatus, PartitionShare

_WORTH_TELLING = 200
"""Facts that explain less than this part of the change are not told."""
_ALMOST_ALL = 0.85
_ENCRYPTED = {"luks", "bitlocker"}


@dataclass(frozen=True)
class _Place:
    """Files by where they are: what they are, and what can be done about them.

    Attributes:
        code: see :class:`.Advice`.
        what: completes "… of the change is".
        remedy: what to do.
        paths: beginnings of their paths; one that does not end in ``/`` is a whole path too.
    """

    code: str
    what: str
    remedy: str
    paths: tuple[bytes, ...]


# The first that fits a file counts, so what is inside of another comes before it.
_PLACES = (
    _Place("package-cache", "downloaded packages in apt's cache",
           "run apt-get clean before sealing", (b"/var/cache/apt/",)),
    _Place("package-cache", "downloaded packages and metadata in dnf's or yum's cache",
           "run dnf clean all before sealing",
           (b"/var/cache/dnf/", b"/var/cache/yum/", b"/var/cache/libdnf5/")),
    _Place("package-cache", "downloaded packages in another package manager's cache",
           "clean the cache before sealing",
           (b"/var/cache/zypp/", b"/var/cache/pacman/", b"/var/cache/apk/", b"/etc/apk/cache/",
            b"/var/lib/snapd/cache/", b"/var/cache/PackageKit/")),
    _Place("package-lists", "apt's lists of packages",
           "remove /var/lib/apt/lists/* before sealing; apt-get update fetches them anew",
           (b"/var/lib/apt/lists/",)),
    _Place("system-journal", "the system's journal",
           "run journalctl --rotate --vacuum-time=1s, or remove /var/log/journal/*",
           (b"/var/log/journal/",)),
    _Place("logs", "logs", "empty them before sealing", (b"/var/log/",)),
    _Place("temporary-files", "temporary files", "remove them before sealing",
           (b"/tmp/", b"/var/tmp/")),
    _Place("core-dumps", "core dumps and crash reports", "remove them before sealing",
           (b"/var/crash/", b"/var/lib/systemd/coredump/")),
    _Place("swap-file", "a swap file",
           "make it at first boot, not in the image",
           (b"/swapfile", b"/swap.img", b"/swap/", b"/var/swap")),
    _Place("user-cache", "caches in home folders", "remove them before sealing",
           (b"/root/.cache/",)),
    _Place("font-and-man-cache", "other caches that are made anew when they are missing",
           "remove them before sealing", (b"/var/cache/",)),
    _Place("initramfs", "initial RAM disks, which are packed anew as a whole",
           "", (b"/boot/initrd", b"/boot/initramfs")),
    _Place("windows-paging", "files that Windows pages or hibernates to",
           "turn hibernation off (powercfg /h off) and clear the page file at shutdown",
           (b"/pagefile.sys", b"/hiberfil.sys", b"/swapfile.sys")),
    _Place("windows-update-cache", "downloaded updates of Windows",
           "run the disk clean-up before sealing", (b"/Windows/SoftwareDistribution/Download/",)),
    _Place("temporary-files", "temporary files of Windows", "remove them before sealing",
           (b"/Windows/Temp/",)),
    _Place("restore-points", "restore points of Windows", "delete them before sealing",
           (b"/System Volume Information/",)),
)  # fmt: skip
_HOME_CACHE = b"/.cache/"
_ANYWHERE = (b"/home/", *(path for place in _PLACES for path in place.paths))
_BYTECODE = (b".pyc", b".pyo")


def advise(found: Attribution) -> tuple[Advice, ...]:
    """Return what explains a delta, what explains most first."""
    facts = [
        *_free_space(found),
        *_layout(found),
        *_moved(found),
        *_journals(found),
        *_swap(found),
        *_places(found),
        *_bytecode(found),
        *_volumes(found.by_partition),
        *_storage(found),
        *_rounding(found),
    ]
    least = found.changed_bytes // _WORTH_TELLING
    told = [fact for fact in facts if not fact.bytes or fact.bytes > least]
    return tuple(sorted(told, key=lambda fact: -fact.bytes))


def _data(found: Attribution | PartitionShare, kind: SpaceKind) -> int:
    """Return the changed bytes of a kind of space that are data in NEW: zeros cost nothing."""
    return found.by_kind.get(kind, 0) - found.zeroed.get(kind, 0)


def _free_space(found: Attribution) -> Iterator[Advice]:
    # Not all of the free space that changed: a cluster that holds something else too is stored.
    free = found.droppable_bytes
    if free:
        yield Advice(
            "free-space",
            free,
            (free, " of the change is nothing but free space: old data that nobody needs"),
            "run fstrim before sealing" + (", or use --drop-free" if found.free_is_sure else ""),
        )


def _layout(found: Attribution) -> Iterator[Advice]:
    """Tell if almost all differs; and if so, whether the file systems are not the same ones."""
    old, new = found.sources
    if new is None or (old is not None and not old.data_bytes + old.compressed_bytes):
        return  # an OLD without data has nothing that could have been kept
    data = new.data_bytes + new.compressed_bytes
    changed = found.changed_bytes - sum(found.zeroed.values())
    if not data or changed < _ALMOST_ALL * data:
        return
    yield Advice(
        "almost-all-differs",
        changed,
        (f"{min(100, 100 * changed / data):.0f} % of NEW's data differs from what OLD has in the "
         f"same place: {_why(found, changed)}",),
        "update a copy of OLD in place rather than building anew; "
        "a patch finds content that has moved, an overlay cannot",
    )  # fmt: skip


def _why(found: Attribution, changed: int) -> str:
    """Say what is known of why almost all differs."""
    laid = sum(file.changed_bytes for file in _laid_elsewhere(found))
    if laid > changed // 2:
        return "built with a new layout; most of it is files with the same content as before"
    shares = [share for share in found.by_partition if share.partition is not None]
    parts = [share.partition for share in shares if share.changed_bytes > changed // 2]
    if any(part is not None and part.filesystem in _ENCRYPTED for part in parts):
        return "it is encrypted"
    if any(part is not None and part.read for part in parts):
        return "most of its files are new or other ones"
    return "encrypted, or built with a new layout"


def _laid_elsewhere(found: Attribution) -> list[FileChange]:
    return [f for f in found.files if f.status is FileStatus.MOVED and f.old_path == f.path]


def _count(files: list[FileChange]) -> str:
    return "1 file" if len(files) == 1 else f"{len(files):,} files"


def _moved(found: Attribution) -> Iterator[Advice]:
    laid = _laid_elsewhere(found)
    moved = sum(file.changed_bytes for file in laid)
    if moved:
        yield Advice(
            "same-content-elsewhere",
            moved,
            (moved, f" of the change is {_count(laid)} with the same content as in OLD, "
             "written to another place of the disk"),
            "write only what differs (rsync --checksum, say); a patch copies such content from OLD",
        )  # fmt: skip


def _journals(found: Attribution) -> Iterator[Advice]:
    journal = _data(found, SpaceKind.JOURNAL)
    if journal:
        yield Advice(
            "journal",
            journal,
            (journal, " of the change is the journals of file systems"),
            "every mount for writing leaves something there; "
            "e2fsck and a new journal (tune2fs -O ^has_journal, then -j) empty that of ext4",
        )


def _swap(found: Attribution) -> Iterator[Advice]:
    swap = _data(found, SpaceKind.SWAP)
    if swap:
        yield Advice(
            "swap",
            swap,
            (swap, " of the change is in swap partitions"),
            "run swapoff, then mkswap and blkdiscard, before sealing",
        )


def _places(found: Attribution) -> Iterator[Advice]:
    """Add up files by where they are."""
    sums: dict[_Place, int] = {}
    home = 0
    for file in found.files:
        if not file.changed_bytes or not file.path.startswith(_ANYWHERE):
            continue
        place = next((p for p in _PLACES if file.path.startswith(p.paths)), None)
        if place is not None:
            sums[place] = sums.get(place, 0) + file.changed_bytes
        elif _HOME_CACHE in file.path:
            home += file.changed_bytes
    for place, total in sums.items():
        yield Advice(place.code, total, (total, f" of the change is {place.what}"), place.remedy)
    if home:
        yield Advice(
            "user-cache",
            home,
            (home, " of the change is caches in users' home folders"),
            "remove them before sealing",
        )


def _bytecode(found: Attribution) -> Iterator[Advice]:
    total = sum(f.changed_bytes for f in found.files if f.path.endswith(_BYTECODE))
    if total:
        yield Advice(
            "bytecode",
            total,
            (total, " of the change is bytecode of Python, which is made from the sources"),
            "compile it with --invalidation-mode unchecked-hash, so that no times are in it",
        )


def _volumes(shares: Iterable[PartitionShare]) -> Iterator[Advice]:
    """Tell of what is encrypted, or not read."""
    for share in shares:
        part = share.partition
        changed = _data(share, SpaceKind.NOT_READ)
        if part is None or not changed:
            continue
        name = f"partition {part.number}" if part.number else "the disk"
        if part.filesystem in _ENCRYPTED:
            yield Advice(
                "encrypted",
                changed,
                (changed, f" of the change is in {name}, which is encrypted: every rewritten block "
                 "looks new"),
            )  # fmt: skip
        else:
            yield Advice(
                "not-read",
                changed,
                (changed, f" of the change is in {name}, which is not read: "
                 f"{printable(part.note or '')}"),
            )  # fmt: skip


def _storage(found: Attribution) -> Iterator[Advice]:
    """Compare how the two images are stored."""
    old, new = found.sources
    if old is None or new is None:
        return
    compressed = [4 * s.compressed_bytes > s.compressed_bytes + s.data_bytes for s in (old, new)]
    if compressed[0] != compressed[1]:
        names = ("OLD", "NEW") if compressed[0] else ("NEW", "OLD")
        yield Advice(
            "compression-differs",
            0,
            (f"{names[0]} is compressed, {names[1]} is not",),
            "compress the overlay (--compress) to compare its size with OLD's"
            if compressed[0]
            else "",
        )
    if old.cluster_size and new.cluster_size and old.cluster_size != new.cluster_size:
        yield Advice(
            "cluster-size-differs",
            0,
            ("OLD has clusters of ", old.cluster_size, ", NEW of ", new.cluster_size),
        )


def _rounding(found: Attribution) -> Iterator[Advice]:
    neighbours = [f for f in found.files if f.status is FileStatus.UNCHANGED]
    total = sum(file.changed_bytes for file in neighbours)
    if total:
        yield Advice(
            "unchanged-neighbours",
            total,
            (total, f" of the change is {_count(neighbours)} that did not change, but share "
             "clusters of ", found.granularity, " with what did"),
            "smaller clusters, or --subclusters, leave them out",
        )  # fmt: skip
