"""A delta as a native qcow2 overlay: backing file = base, clusters = what differs."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .choosing import Compress as Compress
from .choosing import choose_codec
from .clusters import ClusterSink
from .copying import Jobs
from .delta import Delta, Progress, Summary
from .errors import OptionError
from .identity import BaseIdentity
from .output import AtomicOutput
from .qcow2.geometry import Geometry
from .qcow2.layout import ExtensionType
from .qcow2.writer import Backing, Qcow2Writer


@dataclass(frozen=True)
class OverlayOptions:
    """How an overlay is written.

    Attributes:
        backing: what it records as its backing file.
        cluster_size: bytes.
        subclusters: use extended L2 entries, so that changes cost a 32nd of a cluster each.
        compress: ``keep`` leaves compressed what is compressed in the target, and the rest
            plain; the others store all data plain or compressed.
    """

    backing: Backing
    cluster_size: int = 64 << 10
    subclusters: bool = False
    compress: Compress = "keep"

    @property
    def geometry(self) -> Geometry:
        """The geometry of the overlay.

        Raises:
            OptionError: the cluster size is not a power of two, 512 to 2 MiB.
        """
        return Geometry.of_size(self.cluster_size, subclusters=self.subclusters)


@dataclass(frozen=True)
class OverlayReport:
    """What was written.

    Attributes:
        summary: the delta in figures.
        file_size: the overlay's length, bytes.
        copied_clusters: compressed clusters copied as they were.
        compressed_clusters: clusters compressed anew.
    """

    summary: Summary
    file_size: int
    copied_clusters: int
    compressed_clusters: int


def write_overlay(
    delta: Delta,
    output: AtomicOutput,
    options: OverlayOptions,
    identity: BaseIdentity,
    progress: Progress | None = None,
) -> OverlayReport:
    """Write a delta as an overlay. The output's owner decides when it gets its name.

    Args:
        delta: what to write; its granularity must be the overlay's cluster or sub-cluster.
        output: where to.
        options: how.
        identity: what the base is, recorded in the overlay.
        progress: called after each window.

    Raises:
        OptionError: options do not go together, or not with the disk's size.
        CorruptImageError: content that has to be read cannot be.
        OSError: reading or writing failed.
    """
    geometry = options.geometry
    if delta.granularity != geometry.unit:
        raise OptionError(
            f"a delta in steps of {delta.granularity} bytes does not make clusters of "
            f"{geometry.unit}"
        )
    codec = choose_codec(delta.target, options.compress)
    writer = Qcow2Writer(output, delta.target.size, geometry, codec, options.backing)
    summary = Summary(delta.target.size, delta.granularity)
    with Jobs() as jobs:
        clusters = ClusterSink(
            delta.target, output, writer, geometry, codec, options.compress, jobs
        )
        for window in delta.windows():
            summary.add(window.changes)
            clusters.add(window)
            if progress is not None:
                progress(window.stop, delta.target.size)
        clusters.finish()
    writer.add_extension(ExtensionType.DELTA, identity.build(summary))
    size = writer.finish()
    os.ftruncate(output.fd, size)
    return OverlayReport(summary, size, clusters.copied, clusters.compressed)
