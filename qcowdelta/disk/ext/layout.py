"""The on-disk structures of ext2, ext3 and ext4; names are the kernel's, without prefix."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from construct import Array, Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Padding, Struct

MAGIC = 0xEF53
SUPERBLOCK_OFFSET = 1024
SUPERBLOCK_SIZE = 1024
EXTENT_MAGIC = 0xF30A
UNWRITTEN = 1 << 15
"""An extent longer than this many blocks is allocated but not written: it is shorter by it."""
MAX_DEPTH = 5
"""Of a tree of extents."""


class Compatible(IntFlag):
    """Features that a reader need not know."""

    HAS_JOURNAL = 0x4
    SPARSE_SUPER2 = 0x200
    ORPHAN_FILE = 0x1000


class Incompatible(IntFlag):
    """Features that a reader must know."""

    COMPRESSION = 0x1
    FILETYPE = 0x2
    RECOVER = 0x4
    JOURNAL_DEV = 0x8
    META_BG = 0x10
    EXTENTS = 0x40
    BIT64 = 0x80
    MMP = 0x100
    FLEX_BG = 0x200
    EA_INODE = 0x400
    DIRDATA = 0x1000
    CSUM_SEED = 0x2000
    LARGEDIR = 0x4000
    INLINE_DATA = 0x8000
    ENCRYPT = 0x10000
    CASEFOLD = 0x20000


UNDERSTOOD = (
    Incompatible.FILETYPE | Incompatible.RECOVER | Incompatible.META_BG | Incompatible.EXTENTS
    | Incompatible.BIT64 | Incompatible.MMP | Incompatible.FLEX_BG | Incompatible.EA_INODE
    | Incompatible.CSUM_SEED | Incompatible.LARGEDIR | Incompatible.INLINE_DATA
    | Incompatible.ENCRYPT | Incompatible.CASEFOLD
)  # fmt: skip
"""The incompatible features that are read here."""


class ReadOnly(IntFlag):
    """Features that a writer must know."""

    SPARSE_SUPER = 0x1
    LARGE_FILE = 0x2
    BTREE_DIR = 0x4
    HUGE_FILE = 0x8
    GDT_CSUM = 0x10
    DIR_NLINK = 0x20
    EXTRA_ISIZE = 0x40
    SNAPSHOT = 0x80
    QUOTA = 0x100
    BIGALLOC = 0x200
    METADATA_CSUM = 0x400
    READONLY = 0x1000
    PROJECT = 0x2000
    SHARED_BLOCKS = 0x4000
    VERITY = 0x8000
    ORPHAN_PRESENT = 0x10000


KNOWN_READ_ONLY = (
    ReadOnly.SPARSE_SUPER | ReadOnly.LARGE_FILE | ReadOnly.BTREE_DIR | ReadOnly.HUGE_FILE
    | ReadOnly.GDT_CSUM | ReadOnly.DIR_NLINK | ReadOnly.EXTRA_ISIZE | ReadOnly.QUOTA
    | ReadOnly.BIGALLOC | ReadOnly.METADATA_CSUM | ReadOnly.READONLY | ReadOnly.PROJECT
    | ReadOnly.SHARED_BLOCKS | ReadOnly.VERITY | ReadOnly.ORPHAN_PRESENT
)  # fmt: skip
"""Those under which what is read here means what it is taken for."""


class State(IntFlag):
    """Bits of the superblock's ``state``."""

    VALID = 0x1
    ERROR = 0x2
    ORPHAN = 0x4


class GroupFlag(IntFlag):
    """Bits of a group descriptor's ``flags``; they count with checksums of descriptors only."""

    INODE_UNINIT = 0x1
    BLOCK_UNINIT = 0x2


class InodeFlag(IntFlag):
    """Bits of an inode's ``flags``."""

    ENCRYPT = 0x800
    EXTENTS = 0x80000
    EA_INODE = 0x200000
    INLINE_DATA = 0x10000000


class SpecialInode(IntEnum):
    """Inodes with a fixed purpose."""

    BAD = 1
    ROOT = 2
    USER_QUOTA = 3
    GROUP_QUOTA = 4
    RESIZE = 7
    JOURNAL = 8


Superblock = Struct(
    "inodes_count" / Int32ul,
    "blocks_count_lo" / Int32ul,
    "r_blocks_count_lo" / Int32ul,
    "free_blocks_count_lo" / Int32ul,
    "free_inodes_count" / Int32ul,
    "first_data_block" / Int32ul,
    "log_block_size" / Int32ul,
    "log_cluster_size" / Int32ul,
    "blocks_per_group" / Int32ul,
    "clusters_per_group" / Int32ul,
    "inodes_per_group" / Int32ul,
    "mtime" / Int32ul,
    "wtime" / Int32ul,
    "mnt_count" / Int16ul,
    "max_mnt_count" / Int16ul,
    "magic" / Int16ul,
    "state" / Int16ul,
    "errors" / Int16ul,
    "minor_rev_level" / Int16ul,
    "lastcheck" / Int32ul,
    "checkinterval" / Int32ul,
    "creator_os" / Int32ul,
    "rev_level" / Int32ul,
    "def_resuid" / Int16ul,
    "def_resgid" / Int16ul,
    "first_ino" / Int32ul,
    "inode_size" / Int16ul,
    "block_group_nr" / Int16ul,
    "feature_compat" / Int32ul,
    "feature_incompat" / Int32ul,
    "feature_ro_compat" / Int32ul,
    "uuid" / Bytes(16),
    "volume_name" / Bytes(16),
    "last_mounted" / Bytes(64),
    "algorithm_usage_bitmap" / Int32ul,
    "prealloc_blocks" / Int8ul,
    "prealloc_dir_blocks" / Int8ul,
    "reserved_gdt_blocks" / Int16ul,
    "journal_uuid" / Bytes(16),
    "journal_inum" / Int32ul,
    "journal_dev" / Int32ul,
    "last_orphan" / Int32ul,
    "hash_seed" / Bytes(16),
    "def_hash_version" / Int8ul,
    "jnl_backup_type" / Int8ul,
    "desc_size" / Int16ul,
    "default_mount_opts" / Int32ul,
    "first_meta_bg" / Int32ul,
    "mkfs_time" / Int32ul,
    "jnl_blocks" / Array(17, Int32ul),
    "blocks_count_hi" / Int32ul,
    "r_blocks_count_hi" / Int32ul,
    "free_blocks_count_hi" / Int32ul,
    "min_extra_isize" / Int16ul,
    "want_extra_isize" / Int16ul,
    "flags" / Int32ul,
    "raid_stride" / Int16ul,
    "mmp_interval" / Int16ul,
    "mmp_block" / Int64ul,
    "raid_stripe_width" / Int32ul,
    "log_groups_per_flex" / Int8ul,
    "checksum_type" / Int8ul,
    Padding(2),
    "kbytes_written" / Int64ul,
    Padding(20),
    "error_count" / Int32ul,
    Padding(96 + 8 + 64),
    "usr_quota_inum" / Int32ul,
    "grp_quota_inum" / Int32ul,
    "overhead_blocks" / Int32ul,
    "backup_bgs" / Array(2, Int32ul),
    "encrypt_algos" / Bytes(4),
    "encrypt_pw_salt" / Bytes(16),
    "lpf_ino" / Int32ul,
    "prj_quota_inum" / Int32ul,
    "checksum_seed" / Int32ul,
    Padding(8),
    "encoding" / Int16ul,
    "encoding_flags" / Int16ul,
    "orphan_file_inum" / Int32ul,
    Padding(376),
    "checksum" / Int32ul,
)

GroupDescriptor = Struct(
    "block_bitmap" / Int32ul,
    "inode_bitmap" / Int32ul,
    "inode_table" / Int32ul,
    "free_blocks_count" / Int16ul,
    "free_inodes_count" / Int16ul,
    "used_dirs_count" / Int16ul,
    "flags" / Int16ul,
    "exclude_bitmap" / Int32ul,
    "block_bitmap_csum" / Int16ul,
    "inode_bitmap_csum" / Int16ul,
    "itable_unused" / Int16ul,
    "checksum" / Int16ul,
)

GroupDescriptorHigh = Struct(
    "block_bitmap" / Int32ul,
    "inode_bitmap" / Int32ul,
    "inode_table" / Int32ul,
    "free_blocks_count" / Int16ul,
    "free_inodes_count" / Int16ul,
    "used_dirs_count" / Int16ul,
    "itable_unused" / Int16ul,
    Padding(12),
)
"""Bytes 32 to 63 of a descriptor, with the feature 64bit: the high halves."""

Inode = Struct(
    "mode" / Int16ul,
    "uid" / Int16ul,
    "size_lo" / Int32ul,
    "atime" / Int32ul,
    "ctime" / Int32ul,
    "mtime" / Int32ul,
    "dtime" / Int32ul,
    "gid" / Int16ul,
    "links_count" / Int16ul,
    "blocks_lo" / Int32ul,
    "flags" / Int32ul,
    "version" / Int32ul,
    "block" / Bytes(60),
    "generation" / Int32ul,
    "file_acl_lo" / Int32ul,
    "size_high" / Int32ul,
    "obso_faddr" / Int32ul,
    "blocks_high" / Int16ul,
    "file_acl_high" / Int16ul,
    "uid_high" / Int16ul,
    "gid_high" / Int16ul,
    "checksum_lo" / Int16ul,
    Padding(2),
)
"""The first 128 bytes, all of them in ext2 and ext3."""

InodeExtra = Struct(
    "extra_isize" / Int16ul,
    "checksum_hi" / Int16ul,
    "ctime_extra" / Int32ul,
    "mtime_extra" / Int32ul,
    "atime_extra" / Int32ul,
    "crtime" / Int32ul,
    "crtime_extra" / Int32ul,
    "version_hi" / Int32ul,
    "projid" / Int32ul,
)
"""What follows in larger inodes, as far as ``extra_isize`` says; then attributes."""

ExtentHeader = Struct(
    "magic" / Int16ul,
    "entries" / Int16ul,
    "max" / Int16ul,
    "depth" / Int16ul,
    "generation" / Int32ul,
)

Extent = Struct(
    "block" / Int32ul,
    "len" / Int16ul,
    "start_hi" / Int16ul,
    "start_lo" / Int32ul,
)

ExtentIndex = Struct(
    "block" / Int32ul,
    "leaf_lo" / Int32ul,
    "leaf_hi" / Int16ul,
    Padding(2),
)

DirectoryEntry = Struct(
    "inode" / Int32ul,
    "rec_len" / Int16ul,
    "name_len" / Int8ul,
    "file_type" / Int8ul,
)
"""What precedes a name; without the feature filetype, ``file_type`` is part of the length."""

AttributeEntry = Struct(
    "name_len" / Int8ul,
    "name_index" / Int8ul,
    "value_offs" / Int16ul,
    "value_inum" / Int32ul,
    "value_size" / Int32ul,
    "hash" / Int32ul,
)

ATTRIBUTES_MAGIC = 0xEA020000
SYSTEM_INDEX = 7
"""The ``name_index`` of attributes ``system.…``; inline data goes on in ``system.data``."""
