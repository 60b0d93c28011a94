"""Images that only QEMU reads: the same results, nothing opened unasked, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcowdelta import ImageDelta, OpenPolicy, inspect_delta, open_image
from qcowdelta.errors import (
    EncryptedImageError,
    FormatError,
    ImageLockedError,
    OptionError,
    PolicyError,
    QemuError,
    UnsupportedFeatureError,
)
from qcowdelta.formats import FOREIGN
from qcowdelta.qemu import daemon as daemon_module
from qcowdelta.qemu.image import QemuLayer
from qcowdelta.secret import Secret
from tests.support import foreign, hostile, qemu
from tests.support.commandline import ok, refused
from tests.support.foreign import ENCRYPTED, KIB, MIB, SIZE, VARIANTS, Variant

DAEMON, IMG = "QCOWDELTA_QEMU_STORAGE_DAEMON", "QCOWDELTA_QEMU_IMG"
NOWHERE = "/nonexistent/program"

pytestmark = pytest.mark.usefixtures("qemu_tools")


@pytest.fixture(scope="module")
def qemu_tools() -> None:
    qemu.require("qemu-img", "qemu-io", "qemu-storage-daemon")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, qemu_tools: None) -> Path:
    """A folder with OLD and NEW as raw files, and in every other format as it is needed."""
    folder = tmp_path_factory.mktemp("foreign")
    foreign.write_pair(folder)
    foreign.secret_file(folder)
    return folder


@pytest.fixture
def raws(made: Path) -> tuple[Path, Path]:
    return made / "old.raw", made / "new.raw"


def image(made: Path, side: str, variant: Variant) -> Path:
    """OLD or NEW in a format."""
    path = made / variant.name / f"{side}.{variant.format}"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        variant.make(made / f"{side}.raw", path)
    return path


def words(made: Path, variant: Variant, side: str) -> list[str | Path]:
    """The options that a side needs in that format."""
    found: list[str | Path] = [word for name in variant.told for word in (f"--{side}-format", name)]
    if variant.encrypt is not None:
        found += [f"--{side}-secret-file", foreign.secret_file(made)]
    return found


def backed(overlay: Path, variant: Variant, base: Path) -> str:
    """An overlay over an image of that format, for the judge."""
    below = variant.judged(base).split(",")
    return ",".join([f"driver=qcow2,file.filename={overlay}", *(f"backing.{w}" for w in below)])


def policy(variant: Variant, **more: object) -> OpenPolicy:
    secret = Secret(foreign.SECRET) if variant.encrypt is not None else None
    return OpenPolicy(secret=secret, **more)  # type: ignore[arg-type]


@pytest.fixture(params=sorted(VARIANTS))
def variant(request: pytest.FixtureRequest) -> Variant:
    return VARIANTS[request.param]


# --- the same results -----------------------------------------------------------------------------


def test_every_foreign_format_is_in_the_matrix() -> None:
    assert {each.format for each in VARIANTS.values()} - {"qcow2"} == set(FOREIGN)


@pytest.mark.slow
def test_overlay_reads_as_new(variant: Variant, made: Path, tmp_path: Path) -> None:
    old, new = image(made, "old", variant), image(made, "new", variant)
    out = tmp_path / "out.qcow2"
    options = [*words(made, variant, "old"), *words(made, variant, "new")]
    figures = ok("diff", old, new, "-o", out, "--json", *options).json
    for side in ("old", "new"):
        (opened,) = figures["opened"][side]
        assert opened["by"] == "qemu-storage-daemon"
        assert opened["format"] == variant.format
        assert opened["reason"]
    assert foreign.compare(backed(out, variant, old), variant.judged(new), made)
    assert foreign.compare(
        backed(out, variant, old), f"driver=raw,file.filename={made / 'new.raw'}", made
    )
    info = qemu.info(out, fmt="qcow2")
    assert info["backing-filename-format"] == variant.format
    assert out.stat().st_size < MIB  # what differs, and not all of NEW
    secret = words(made, variant, "base")[-2:] if variant.encrypt is not None else []
    checked = ok("check", out, "--allow-path", old.parent, *secret)
    assert "no errors" in checked.out
    assert "was not modified" in checked.out


@pytest.mark.slow
def test_patch_reads_as_new_and_is_that_of_the_raw_pair(
    variant: Variant, made: Path, raws: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = image(made, "old", variant), image(made, "new", variant)
    options = [*words(made, variant, "old"), *words(made, variant, "new")]
    out, native, again = tmp_path / "x.qcpatch", tmp_path / "n.qcpatch", tmp_path / "again.raw"
    ok("diff", old, new, "-o", out, *options)
    ok("apply", out, "--base", old, "-o", again, *words(made, variant, "base"))
    content = raws[1].read_bytes()
    assert again.read_bytes().rstrip(b"\0") == content.rstrip(b"\0")
    if variant.name != "vpc-chs":  # its size is rounded to whole cylinders
        ok("diff", *raws, "-o", native)
        assert out.read_bytes() == native.read_bytes()


@pytest.mark.slow
def test_mixed_chain_is_read_natively_down_to_what_only_qemu_reads(
    variant: Variant, made: Path, tmp_path: Path
) -> None:
    old = image(made, "old", variant)
    new, out = tmp_path / "new.qcow2", tmp_path / "out.qcow2"
    size = qemu.info(old, fmt=variant.format)["virtual-size"]
    qemu.create(new, size, backing=old, backing_fmt=variant.format, unsafe=True)
    top = tmp_path / "data"
    top.write_bytes(os.urandom(64 * KIB))
    command = f"write -q -s {top} {512 * KIB} {64 * KIB}"
    opts = backed(new, variant, old)
    argv = [qemu.program("qemu-io"), *foreign.secret_object(made), "--image-opts", "-c", command]
    qemu.run([*argv, opts])
    options = [*words(made, variant, "old"), *words(made, variant, "new"), "--allow-path", made]
    options = [
        w for i, w in enumerate(options) if "--new-format" not in options[max(0, i - 1) : i + 1]
    ]
    figures = ok("diff", old, new, "-o", out, "--json", *options).json
    assert [each["by"] for each in figures["opened"]["new"]] == ["native", "qemu-storage-daemon"]
    assert figures["data_bytes"] == 64 * KIB
    # The same file on both sides: what shows through is equal without being read.
    assert figures["decided"]["shared_layer"] > 0
    assert figures["bytes_read_old"] <= 64 * KIB
    assert foreign.compare(backed(out, variant, old), opts, made)


@pytest.mark.parametrize("fmt", ["qcow2", "raw", "odd raw"])
def test_qemu_reads_what_we_read(fmt: str, raws: tuple[Path, Path], tmp_path: Path) -> None:
    paths = []
    for raw in raws:
        path = tmp_path / f"{raw.stem}.{fmt.split()[-1]}"
        if fmt == "qcow2":
            qemu.convert(raw, path, source_fmt="raw", target_fmt="qcow2", compressed=True)
        else:
            shutil.copyfile(raw, path)
            if fmt == "odd raw":
                with path.open("ab") as file:
                    file.write(b"odd")
        paths.append(path)
    found = []
    for through_qemu in (False, True):
        how = OpenPolicy(through_qemu=through_qemu)
        with open_image(paths[0], policy=how) as old, open_image(paths[1], policy=how) as new:
            assert old.size == new.size
            assert {h.by for h in old.how} == {"qemu-storage-daemon" if through_qemu else "native"}
            kept: list[object] = []
            inspected = inspect_delta(
                ImageDelta(old, new, granularity=4096), cells=64, longest=10, each=kept.append
            )
            content = new.reader().read(0, new.size)
            found.append((kept, inspected.summary.data_bytes, content))
    assert found[0] == found[1]


def test_what_is_native_stays_native(raws: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "x.qcow2"
    qemu.convert(raws[0], path, source_fmt="raw", target_fmt="qcow2")
    with open_image(path) as opened:
        assert [(h.by, h.reason) for h in opened.how] == [("native", None)]


def test_verbose_says_how_each_file_is_read(
    made: Path, raws: tuple[Path, Path], tmp_path: Path
) -> None:
    old = image(made, "old", VARIANTS["vdi"])
    done = ok("diff", old, raws[1], "-o", tmp_path / "out.qcow2", "-v")
    lines = done.err.splitlines()
    assert len(lines) == 2
    assert "old.vdi: vdi, read by qemu-storage-daemon: vdi is read by QEMU only" in lines[0]
    assert "new.raw: raw, read natively" in lines[1]
    assert ok("diff", old, raws[1], "-o", tmp_path / "quiet.qcow2").err == ""


@pytest.mark.slow
def test_info_tells_format_and_size_without_qemu(
    variant: Variant, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = image(made, "old", variant)
    monkeypatch.setenv(DAEMON, NOWHERE)
    monkeypatch.setenv(IMG, NOWHERE)
    if variant.format == "qcow":
        assert "older format qcow" in refused("info", path)
        return
    found = ok("info", path, "--json").json
    if not variant.told:
        assert found["format"] == variant.format
        assert found["virtual_size"] >= SIZE
        assert found["virtual_size"] < SIZE + 2 * MIB
    assert str(found["virtual_size"])[:3] in ok("info", path).out.replace(",", "")


@pytest.mark.slow
def test_inspect_and_verify_take_foreign_images(made: Path, tmp_path: Path) -> None:
    variant = VARIANTS["vmdk-streamOptimized"]
    old, new = image(made, "old", variant), image(made, "new", VARIANTS["luks"])
    secret = foreign.secret_file(made)
    found = ok("inspect", old, new, "--new-secret-file", secret, "--json").json
    assert found["opened"]["new"][0]["encrypted"] is True
    assert found["changed_clusters"] > 0
    patch = tmp_path / "x.qcpatch"
    ok("diff", old, new, "-o", patch, "--new-secret-file", secret)
    ok("verify", patch, "--base", old, "--target", new, "--target-secret-file", secret)
    ok("invert", patch, "--base", old, "-o", tmp_path / "back.qcpatch")


def test_output_is_never_one_of_the_files_of_a_vmdk(made: Path, tmp_path: Path) -> None:
    for file in (image(made, "old", VARIANTS["vmdk-monolithicFlat"])).parent.iterdir():
        shutil.copy(file, tmp_path)
    extent = tmp_path / "old-flat.vmdk"
    before = extent.read_bytes()
    said = refused("diff", tmp_path / "old.vmdk", made / "new.raw", "-o", extent, "--force")
    assert "is one of the inputs" in said
    assert extent.read_bytes() == before


def test_vmdk_parent_is_read_with_it(made: Path, raws: tuple[Path, Path], tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    base = VARIANTS["vmdk-monolithicSparse"].make(raws[0], here / "base.vmdk")
    top = here / "top.vmdk"
    qemu.create(top, None, fmt="vmdk", backing="base.vmdk", backing_fmt="vmdk")
    qemu.write(top, MIB, 64 * KIB, 0x77, fmt="vmdk")
    with open_image(top) as opened:
        assert opened.reader().read(0, 64 * KIB) == raws[0].read_bytes()[: 64 * KIB]
        assert opened.reader().read(MIB, 64 * KIB) == b"\x77" * 64 * KIB
        assert {(s := base.stat()).st_ino} <= {key[1] for key in opened.keys if key[0] == s.st_dev}
    base.rename(elsewhere / "base.vmdk")
    base.symlink_to(elsewhere / "base.vmdk")
    with pytest.raises(PolicyError, match=r"parent .*--allow-path"):
        open_image(top)


# --- without the daemon ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["vmdk-monolithicFlat", "vmdk-streamOptimized", "vhdx", "luks", "qcow2-aes", "qcow2-luks"],
)
def test_without_a_daemon_a_copy_is_converted_and_announced(
    name: str, made: Path, raws: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = VARIANTS[name]
    old, new = image(made, "old", variant), image(made, "new", variant)
    out, native = tmp_path / "x.qcpatch", tmp_path / "n.qcpatch"
    ok("diff", *raws, "-o", native)
    monkeypatch.setenv(DAEMON, NOWHERE)
    options = [*words(made, variant, "old"), *words(made, variant, "new")]
    done = ok("diff", old, new, "-o", out, "--json", *options)
    assert [h["by"] for h in done.json["opened"]["old"]] == ["qemu-img convert"]
    announced = [
        line for line in done.err.splitlines() if "there is no qemu-storage-daemon" in line
    ]
    assert len(announced) == 2
    assert out.read_bytes() == native.read_bytes()


def test_without_qemu_the_packages_are_named(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = image(made, "old", VARIANTS["vdi"])
    monkeypatch.setenv(DAEMON, NOWHERE)
    monkeypatch.setenv(IMG, NOWHERE)
    said = refused("diff", old, made / "new.raw", "-o", tmp_path / "out.qcow2")
    assert "qemu-system-common" in said
    assert "qemu-utils" in said
    ok("diff", made / "old.raw", made / "new.raw", "-o", tmp_path / "out.qcow2")


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCRYPTED)
def test_without_its_secret_an_encrypted_image_is_refused(name: str, made: Path) -> None:
    path = image(made, "old", VARIANTS[name])
    with pytest.raises(EncryptedImageError, match=r"ciphertext.*--old-secret-file"):
        open_image(path)


@pytest.mark.slow
@pytest.mark.parametrize("convert", [False, True])
@pytest.mark.parametrize("name", ["luks", "qcow2-luks"])
def test_wrong_secret_is_told_and_not_shown(
    name: str, convert: bool, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if convert:
        monkeypatch.setenv(DAEMON, NOWHERE)
    wrong = tmp_path / "wrong"
    wrong.write_text("another-guess")
    path = image(made, "old", VARIANTS[name])
    said = refused("inspect", path, made / "new.raw", "--old-secret-file", wrong)
    assert "Invalid password" in said
    assert path.name in said
    assert "another-guess" not in said
    assert "newline" not in said


@pytest.mark.slow
def test_secret_is_on_no_command_line_and_in_no_text(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = VARIANTS["luks"]
    path = image(made, "old", variant)
    encoded = Secret(foreign.SECRET).base64.encode()
    mark = uuid.uuid4().hex
    monkeypatch.setenv(foreign.MARK, mark)
    with open_image(path, policy=policy(variant)):
        running = foreign.marked(mark)
        assert running
        for pid in running:
            shown = Path(f"/proc/{pid}/cmdline").read_bytes()
            shown += Path(f"/proc/{pid}/environ").read_bytes()
            assert foreign.SECRET not in shown
            assert encoded not in shown
    assert foreign.SECRET.decode() not in repr(policy(variant))
    logged = tmp_path / "log"
    script = tmp_path / "qemu-img"
    script.write_text(f'#!/bin/sh\necho "$@" >>{logged}\nexec {qemu.program("qemu-img")} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv(DAEMON, NOWHERE)
    monkeypatch.setenv(IMG, str(script))
    with open_image(path, policy=policy(variant)):
        said = logged.read_bytes()
    assert b"--object" in said
    assert foreign.SECRET not in said
    assert encoded not in said


@pytest.mark.slow
def test_secret_is_taken_from_a_pipe_as_well(made: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, foreign.SECRET)
    os.close(write)
    old = image(made, "old", VARIANTS["luks"])
    try:
        found = ok(
            "inspect", old, made / "old.raw", "--json", "--old-secret-file", f"/dev/fd/{read}"
        )
        assert found.json["changed_clusters"] == 0
    finally:
        os.close(read)


@pytest.mark.slow
@pytest.mark.parametrize("convert", [False, True])
def test_newline_at_the_end_belongs_to_the_secret_and_the_error_says_so(
    convert: bool, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if convert:
        monkeypatch.setenv(DAEMON, NOWHERE)
    longer = tmp_path / "longer"
    longer.write_bytes(foreign.SECRET + b"\n")
    old = image(made, "old", VARIANTS["luks"])
    said = refused("inspect", old, made / "new.raw", "--old-secret-file", longer)
    assert "Invalid password" in said
    assert "newline" in said
    assert "printf %s" in said
    empty = tmp_path / "empty"
    empty.touch()
    assert "empty" in refused("inspect", old, made / "new.raw", "--old-secret-file", empty)


@pytest.mark.slow
def test_plain_output_over_an_encrypted_image_is_told(made: Path, tmp_path: Path) -> None:
    old, secret = image(made, "old", VARIANTS["luks"]), foreign.secret_file(made)
    out = tmp_path / "out.qcow2"
    done = ok("diff", old, made / "new.raw", "-o", out, "--old-secret-file", secret)
    (line,) = done.err.splitlines()
    assert "out.qcow2: is not encrypted" in line
    assert "in plain" in line


# --- what may be opened ---------------------------------------------------------------------------

DESCRIPTOR = """# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="monolithicFlat"
{lines}
"""


def descriptor(folder: Path, *lines: str) -> Path:
    path = folder / "x.vmdk"
    path.write_text(DESCRIPTOR.format(lines="\n".join(lines)))
    return path


@pytest.mark.parametrize("convert", [False, True])
@pytest.mark.parametrize("name", ["/etc/passwd", "../../../../../../etc/passwd", "link.vmdk"])
def test_extent_outside_of_its_folder_is_refused(
    name: str, convert: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if convert:
        monkeypatch.setenv(DAEMON, NOWHERE)
    (tmp_path / "link.vmdk").symlink_to("/etc/passwd")
    path = descriptor(tmp_path, f'RW 8 FLAT "{name}" 0')
    with pytest.raises(PolicyError, match=r"extent.*--allow-path"):
        open_image(path)


def test_extent_that_is_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.vmdk")
    path = descriptor(tmp_path, 'RW 8 FLAT "fifo.vmdk" 0')
    began = time.monotonic()
    with pytest.raises(PolicyError, match="FIFO"):
        open_image(path)
    assert time.monotonic() - began < 2


def test_extents_are_read_where_the_policy_allows_it(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x.bin").write_bytes(b"\x42" * 8192)
    (tmp_path / "here").mkdir()
    path = descriptor(tmp_path / "here", f'RW 16 FLAT "{tmp_path}/there/x.bin" 0')
    with open_image(path, policy=OpenPolicy(allow_paths=(tmp_path / "there",))) as opened:
        assert opened.reader().read(0, 8192) == b"\x42" * 8192


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (['RDONLY 8 FLAT "x.bin" 0'], UnsupportedFeatureError),
        (['RW 8 FLAT "x.bin" 0', "RW 8 ZERO"], UnsupportedFeatureError),
        (["RW 8 FLAT x.bin 0"], UnsupportedFeatureError),
        ([], FormatError),
        (['parentFileNameHint="x.bin"', 'RW 8 FLAT "x.bin" 0'], FormatError),
        (['RW 8 SPARSE "nested.vmdk"'], FormatError),
    ],
)
def test_descriptor_that_qemu_would_misread_is_refused(
    lines: list[str], error: type[Exception], tmp_path: Path
) -> None:
    (tmp_path / "x.bin").write_bytes(bytes(4096))
    # A sparse extent of no capacity is taken for a descriptor, whose names QEMU would follow.
    nested = b"KDMV" + (1).to_bytes(4, "little") + bytes(20) + (1).to_bytes(8, "little")
    inner = DESCRIPTOR.format(lines='RW 8 FLAT "/etc/passwd" 0').encode()
    (tmp_path / "nested.vmdk").write_bytes(nested.ljust(512, b"\0") + inner)
    with pytest.raises(error):
        open_image(descriptor(tmp_path, *lines))


def test_sparse_vmdk_that_names_extents_goes_through_the_policy(tmp_path: Path) -> None:
    nested = b"KDMV" + (1).to_bytes(4, "little") + bytes(20) + (1).to_bytes(8, "little")
    inner = DESCRIPTOR.format(lines='RW 8 FLAT "/etc/passwd" 0').encode()
    path = tmp_path / "x.vmdk"
    path.write_bytes(nested.ljust(512, b"\0") + inner)
    with pytest.raises(PolicyError, match="/etc/passwd"):
        open_image(path)


def test_differencing_vhd_is_refused(made: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(image(made, "old", VARIANTS["vpc"]), tmp_path))
    content = bytearray(path.read_bytes())
    for at in (0, len(content) - 512):
        content[at + 60 : at + 64] = (4).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(UnsupportedFeatureError, match="differencing"):
        open_image(path)


def test_backing_file_is_never_probed(tmp_path: Path, made: Path) -> None:
    """A guest wrote a VMDK into its raw disk: as a backing file it stays raw."""
    base = descriptor(tmp_path, 'RW 8 FLAT "/etc/passwd" 0').rename(tmp_path / "base.raw")
    top = tmp_path / "top.qcow2"
    qemu.create(top, 4096, backing="base.raw", backing_fmt="raw")
    with open_image(top) as opened:
        assert [h.format for h in opened.how] == ["qcow2", "raw"]
        assert opened.reader().read(0, 21) == base.read_bytes()[:21]


def test_fixed_vhd_is_raw_unless_it_is_named(made: Path) -> None:
    path = image(made, "old", VARIANTS["vpc-fixed"])
    with open_image(path) as opened:
        assert opened.format == "raw"
        assert opened.size == SIZE + 512
    with open_image(path, format="vpc") as opened:
        assert opened.size == SIZE


@pytest.mark.slow
def test_encrypted_chain_is_opened_by_the_policy(
    made: Path, raws: tuple[Path, Path], tmp_path: Path
) -> None:
    """QEMU reads an encrypted overlay with what lies below it: files that we opened."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    base = VARIANTS["vdi"].make(raws[0], here / "base.vdi")
    top = here / "top.qcow2"
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    argv = [qemu.program("qemu-img"), "create", "-q", *foreign.secret_object(made), "-f", "qcow2"]
    foreign.run_patiently([*argv, "-o", options, "-b", str(base), "-F", "vdi", str(top)])
    how = OpenPolicy(secret=Secret(foreign.SECRET))
    with open_image(top, policy=how) as opened:
        assert opened.reader().read(0, SIZE) == raws[0].read_bytes()
        assert (base.stat().st_dev, base.stat().st_ino) in opened.keys
    base.rename(elsewhere / "base.vdi")
    base.symlink_to(elsewhere / "base.vdi")
    with pytest.raises(PolicyError, match=r"backing file .*--allow-path"):
        open_image(top, policy=how)


# --- protocols ------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(raw: Path, folder: Path) -> Iterator[Path]:
    """A raw file on an NBD server; yields its socket."""
    qemu.require("qemu-nbd")
    socket = folder / "nbd"
    argv = [
        qemu.program("qemu-nbd"),
        "-r",
        "-t",
        "-e",
        "9",
        "-f",
        "raw",
        "-k",
        str(socket),
        str(raw),
    ]
    server = subprocess.Popen(argv)
    try:
        until = time.monotonic() + 10
        while not socket.exists() and time.monotonic() < until:
            time.sleep(0.01)
        yield socket
    finally:
        server.terminate()
        server.wait()


def over(folder: Path, name: str, fmt: str = "raw") -> Path:
    path = folder / "over.qcow2"
    qemu.create(path, SIZE, backing=name, backing_fmt=fmt, unsafe=True)
    return path


NBD_NAMES = [
    ("nbd+unix:///?socket={socket}", ["nbd"]),
    ("nbd:unix:{socket}", ["nbd"]),
    (
        'json:{{"driver":"raw","file":{{"driver":"nbd","server.type":"unix",'
        '"server.path":"{socket}"}}}}',
        ["json", "nbd"],
    ),
    (
        'json:{{"driver":"nbd","server":{{"type":"unix","path":"{socket}"}}}}',
        ["json", "nbd"],
    ),
]


@pytest.mark.parametrize(("name", "protocols"), NBD_NAMES)
def test_protocol_is_followed_only_if_it_is_allowed(
    name: str, protocols: list[str], raws: tuple[Path, Path], tmp_path: Path
) -> None:
    with served(raws[0], tmp_path) as socket:
        path = over(tmp_path, name.format(socket=socket))
        for count in range(len(protocols)):
            said = refused(
                "inspect", raws[1], path, *(f"--allow-protocol={p}" for p in protocols[:count])
            )
            assert f"--allow-protocol {protocols[count]}" in said
        allowed = [f"--allow-protocol={p}" for p in protocols]
        found = ok("inspect", raws[0], path, "--json", *allowed).json
        assert found["changed_clusters"] == 0
        assert found["opened"]["new"][1]["by"] == "qemu-storage-daemon"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ('json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}', "--allow-path"),
        (
            'json:{"driver":"raw","file.driver":"file","file.filename":"/etc/passwd"}',
            "--allow-path",
        ),
        ('json:{"driver":"raw","file":{"driver":"file","filename":"x"}}', "absolute"),
        ('json:{"driver":"raw","offset":512,"file":{"driver":"null-co"}}', "nothing else"),
        ('json:{"driver":"raw","file":{"driver":"null-co"}}', "null-co"),
        ('json:{"driver":"raw","file":"qcowdelta-image"}', "nothing else"),
        (
            'json:{"driver":"https","url":"https://x/","password-secret":"qcowdelta-secret"}',
            "secret",
        ),
        ('json:{"driver":"nbd","tls-creds":"a","host":"h"}', "tls-creds"),
        ('json:{"driver":"nbd","server":{"type":"fd","str":"3"}}', "server"),
        ('json:{"driver":"qcow2","file":{"driver":"nbd","host":"h"}}', "recorded format"),
        ("json:{", "JSON"),
        ("json:[]", "object"),
        ("json:" + "[" * 900, "JSON"),
        ("rbd:pool/image", "not followed|known"),
        ("file:/etc/passwd", "not followed"),
    ],
)
def test_what_a_json_name_hides_is_refused(name: str, says: str, tmp_path: Path) -> None:
    how = OpenPolicy(allow_protocols=("json", "nbd", "https", "rbd"))
    path = hostile.Handmade(backing=name.encode(), extensions=[(0xE2792ACA, b"raw")]).write(
        tmp_path / "x.qcow2"
    )
    with pytest.raises(PolicyError, match=says):
        open_image(path, policy=how)


def test_json_name_of_a_file_is_read_as_its_file(
    raws: tuple[Path, Path], made: Path, tmp_path: Path
) -> None:
    name = f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{raws[0]}"}}}}'
    path = over(tmp_path, name)
    how = OpenPolicy(allow_protocols=("json",), allow_paths=(made,))
    with open_image(path, policy=how) as opened:
        assert opened.reader().read(0, SIZE) == raws[0].read_bytes()


def test_image_that_can_name_files_is_not_read_by_a_protocol(tmp_path: Path) -> None:
    path = over(tmp_path, "nbd://localhost/x", "qcow2")
    with pytest.raises(PolicyError, match="copy it here"):
        open_image(path, policy=OpenPolicy(allow_protocols=("nbd",)))


# --- locks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vmdk-monolithicSparse", "vdi"])
def test_image_in_use_is_refused_and_read_with_force_share(
    name: str, made: Path, tmp_path: Path
) -> None:
    variant = VARIANTS[name]
    path = Path(shutil.copy(image(made, "old", variant), tmp_path))
    with qemu.writer(path, variant.format):
        with pytest.raises(ImageLockedError):
            open_image(path)
        with open_image(path, policy=OpenPolicy(force_share=True)) as opened:
            assert opened.reader().read(0, 512) == (made / "old.raw").read_bytes()[:512]
    with open_image(path), pytest.raises(qemu.QemuError, match="lock"):
        qemu.write(path, 0, 512, 1, fmt=variant.format)


# --- a daemon that fails --------------------------------------------------------------------------


def daemon_of(opened: object) -> int:
    layer = opened.layers[-1]  # type: ignore[attr-defined]
    assert isinstance(layer, QemuLayer)
    child = layer._daemon._child
    assert child is not None
    return child.pid


def test_daemon_that_dies_is_told_with_the_image(made: Path) -> None:
    with open_image(image(made, "old", VARIANTS["vmdk-streamOptimized"])) as opened:
        assert opened.reader().read(0, 512)
        os.kill(daemon_of(opened), signal.SIGKILL)
        with pytest.raises(QemuError, match=r"old\.vmdk.*qemu-storage-daemon ended with SIGKILL"):
            opened.reader().read(MIB, 512)


@pytest.mark.slow
def test_daemon_that_hangs_is_given_up(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "TIMEOUT", 1.0)
    began = time.monotonic()
    with open_image(image(made, "old", VARIANTS["vmdk-streamOptimized"])) as opened:
        pid = daemon_of(opened)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(QemuError, match=r"old\.vmdk.*did not answer"):
            opened.reader().read(0, 512)
    assert time.monotonic() - began < 10
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.slow
@pytest.mark.parametrize("script", ["exec sleep 60", "echo out of order >&2; exit 3"])
def test_program_that_is_no_daemon_is_given_up(
    script: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "daemon"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv(DAEMON, str(fake))
    monkeypatch.setattr(daemon_module, "TIMEOUT", 1.0)
    with pytest.raises(QemuError, match=r"old\.vdi"):
        open_image(image(made, "old", VARIANTS["vdi"]))


def test_image_opened_by_a_thread_outlives_the_thread(made: Path) -> None:
    """The kernel kills the daemon with the thread that started it: that must be none of ours."""
    code = (
        "import sys, threading\nfrom qcowdelta import open_image\nfound = []\n"
        "t = threading.Thread(target=lambda: found.append(open_image(sys.argv[1])))\n"
        "t.start(); t.join()\nimport time; time.sleep(0.2)\n"
        "sys.stdout.buffer.write(found[0].reader().read(0, 512))\n"
    )
    argv = [sys.executable, "-c", code, str(image(made, "old", VARIANTS["vdi"]))]
    done = subprocess.run(argv, capture_output=True, check=True, timeout=60)
    assert done.stdout == (made / "old.raw").read_bytes()[:512]


def test_snapshot_and_format_of_a_foreign_image(made: Path) -> None:
    with pytest.raises(OptionError, match="no snapshots"):
        open_image(image(made, "old", VARIANTS["vdi"]), snapshot="a")
    with pytest.raises(OptionError, match="internal snapshots cannot be read"):
        open_image(image(made, "old", VARIANTS["qcow2-aes"]), snapshot="a")
    with pytest.raises(OptionError, match=r"known are: .*vmdk"):
        open_image(image(made, "old", VARIANTS["vdi"]), format="iso")
    with pytest.raises(QemuError, match=r"old\.vdi: QEMU cannot read it: Could not open the file"):
        open_image(image(made, "old", VARIANTS["vdi"]), format="vhdx")


@pytest.mark.parametrize(
    ("name", "looks"), [("vhdx", "vhdx"), ("vdi", "vdi"), ("vpc", "vpc"), (None, None)]
)
def test_what_is_no_vmdk_is_called_so_with_what_it_looks_like(
    name: str | None, looks: str | None, made: Path
) -> None:
    path = made / "new.raw" if name is None else image(made, "new", VARIANTS[name])
    said = refused("inspect", made / "old.raw", path, "--new-format", "vmdk")
    ending = "" if looks is None else f": it looks like {looks}"
    assert said.rstrip().endswith(f"{path.name}: is no VMDK{ending}")


# --- nothing is left ------------------------------------------------------------------------------


class Run:
    """A command in a process of its own, with a folder for temporary files of its own."""

    def __init__(self, argv: list[str | Path], folder: Path, **environment: str) -> None:
        self.mark = uuid.uuid4().hex
        self.folder = folder
        folder.mkdir(exist_ok=True)
        started = [sys.executable, "-c", "from qcowdelta.cli import main; main()", *argv]
        self.process = subprocess.Popen(
            started,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(folder), foreign.MARK: self.mark, **environment},
        )

    def end(self, number: int | None = None, after: float = 0.0) -> int:
        """Send a signal after so many seconds, wait, and assert that nothing is left."""
        if number is not None:
            time.sleep(after)
            self.process.send_signal(number)
        errors = self.process.communicate(timeout=60)[1]
        assert foreign.wait_until_none(self.mark) == []
        assert list(self.folder.iterdir()) == []
        # While Python still imports, Ctrl-C is Python's own to tell.
        assert number == signal.SIGINT or b"Traceback" not in errors, errors
        return self.process.returncode


@pytest.mark.slow
@pytest.mark.parametrize("how", ["daemon", "convert"])
@pytest.mark.parametrize("ending", ["success", "failure", "interrupt", "kill"])
def test_nothing_is_left_behind(how: str, ending: str, made: Path, tmp_path: Path) -> None:
    """Fifty runs in all; signals come at moments spread over the whole run."""
    old, new = (
        image(made, "old", VARIANTS["vmdk-monolithicFlat"]),
        image(made, "new", VARIANTS["luks"]),
    )
    secret = foreign.secret_file(made)
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    more = {DAEMON: NOWHERE} if how == "convert" else {}
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong")
    argv: list[str | Path] = ["diff", old, new, "-o", outputs / "out.qcow2", "--force"]
    argv += ["--new-secret-file", wrong if ending == "failure" else secret]
    began = time.monotonic()
    status = Run(argv, tmp_path / "tmp", **more).end()
    took = time.monotonic() - began
    assert status == (2 if ending == "failure" else 0)
    number = {"interrupt": signal.SIGINT, "kill": signal.SIGKILL}.get(ending)
    count = 10 if number else 3
    for index in range(1, count):
        shutil.rmtree(outputs)
        outputs.mkdir()
        Run(argv, tmp_path / "tmp", **more).end(number, took * index / count)
        assert {path.name for path in outputs.iterdir()} <= {"out.qcow2"}
