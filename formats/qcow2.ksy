meta:
  id: qcow2
  title: QEMU copy-on-write disk image, version 2 and 3
  file-extension: qcow2
  license: Apache-2.0
  endian: be
  ks-version: "0.9"
doc: |
  The structures of a qcow2 image that qcowdelta reads and writes, its own header extension
  included. What of it is read, written and refused, and within which limits, is told in
  qcow2-profile.md. scripts/check-ksy holds this file against the declarations in
  qcowdelta/qcow2/layout.py: names, order, integer types, constants and behaviour.

  Only the clusters' content is left out: data clusters, and the payloads of compressed ones, are
  found through l2_entry, by guest offset.
doc-ref: https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.rst

seq:
  - id: header
    type: header
  - id: v3
    type: header_v3
    if: header.version >= 3
instances:
  cluster_size:
    value: 1 << header.cluster_bits
  header_length:
    value: "header.version >= 3 ? v3.header_length : 72"
  has_extended_l2:
    value: "header.version >= 3 and (v3.incompatible_features & 0x10) != 0"
  extensions:
    pos: header_length
    type: extension
    repeat: until
    repeat-until: _.type == extension_type::end
    doc: They also end where the backing file's name, or the second cluster, begins.
  backing_file:
    pos: header.backing_file_offset
    size: header.backing_file_size
    if: header.backing_file_offset != 0
  l1_table:
    pos: header.l1_table_offset
    type: l1_entry
    repeat: expr
    repeat-expr: header.l1_size
  refcount_table:
    pos: header.refcount_table_offset
    type: refcount_table_entry
    repeat: expr
    repeat-expr: header.refcount_table_clusters * cluster_size / 8
  snapshots:
    pos: header.snapshots_offset
    type: snapshot
    repeat: expr
    repeat-expr: header.nb_snapshots
    if: header.nb_snapshots != 0

types:
  header:
    doc: The first 72 bytes, all of a version 2 header.
    seq:
      - id: magic
        contents: [0x51, 0x46, 0x49, 0xfb]
      - id: version
        type: u4
      - id: backing_file_offset
        type: u8
      - id: backing_file_size
        type: u4
      - id: cluster_bits
        type: u4
      - id: size
        type: u8
        doc: The virtual size in bytes; it counts in whole sectors of 512, rounded down.
      - id: crypt_method
        type: u4
        enum: crypt_method
      - id: l1_size
        type: u4
        doc: Entries, not bytes.
      - id: l1_table_offset
        type: u8
      - id: refcount_table_offset
        type: u8
      - id: refcount_table_clusters
        type: u4
      - id: nb_snapshots
        type: u4
      - id: snapshots_offset
        type: u8

  header_v3:
    doc: What version 3 adds, from byte 72.
    seq:
      - id: incompatible_features
        type: u8
      - id: compatible_features
        type: u8
      - id: autoclear_features
        type: u8
      - id: refcount_order
        type: u4
      - id: header_length
        type: u4
      - id: additional
        type: additional_fields
        if: header_length >= 112

  additional_fields:
    seq:
      - id: compression_type
        type: u1
        enum: compression_type
      - size: 7

  extension:
    seq:
      - id: type
        type: u4
        enum: extension_type
      - id: length
        type: u4
      - id: data
        size: length
        type:
          switch-on: type
          cases:
            extension_type::feature_names: feature_names
            extension_type::bitmaps: bitmaps_extension
            extension_type::full_disk_encryption: encryption_extension
            extension_type::delta: delta_extension
      - size: (8 - length % 8) % 8

  feature_names:
    seq:
      - id: entries
        type: feature_name
        repeat: eos

  feature_name:
    seq:
      - id: type
        type: u1
        doc: 0 incompatible, 1 compatible, 2 autoclear.
      - id: bit
        type: u1
      - id: name
        size: 46
        doc: Padded with NULs; what follows the first one means nothing.

  bitmaps_extension:
    seq:
      - id: nb_bitmaps
        type: u4
      - id: reserved
        type: u4
      - id: directory_size
        type: u8
      - id: directory_offset
        type: u8

  encryption_extension:
    seq:
      - id: offset
        type: u8
      - id: length
        type: u8

  delta_extension:
    doc: qcowdelta's own; qcow2-profile.md, "The delta extension".
    seq:
      - id: version
        type: u2
        valid: 1
      - id: flags
        type: u2
        doc: Bit 0, base_digest is there.
      - id: reserved
        type: u4
        valid: 0
      - id: base_size
        type: u8
      - id: base_mtime_ns
        type: u8
      - id: base_fingerprint
        size: 32
      - id: base_digest
        size: 32
      - id: data_bytes
        type: u8
      - id: zero_bytes
        type: u8

  l1_entry:
    seq:
      - id: entry
        type: u8
    instances:
      copied:
        value: (entry >> 63) != 0
      l2_table_offset:
        value: entry & 0x00fffffffffffe00

  l2_entry:
    doc: With extended L2 entries, l2_bitmap follows each.
    params:
      - id: cluster_bits
        type: u4
    seq:
      - id: entry
        type: u8
    instances:
      copied:
        value: (entry >> 63) != 0
      compressed:
        value: ((entry >> 62) & 1) != 0
      all_zero:
        value: (entry & 1) != 0
        doc: Not in version 2, nor with extended L2 entries.
      host_offset:
        value: entry & 0x00fffffffffffe00
        doc: Of a cluster that is not compressed.
      shift:
        value: 62 - (cluster_bits - 8)
      payload_offset:
        value: entry & ((1 << shift) - 1)
        doc: Of a compressed cluster.
      payload_sectors:
        value: ((entry >> shift) & ((1 << (cluster_bits - 8)) - 1)) + 1
      payload_bound:
        value: payload_sectors * 512 - (payload_offset & 511)
        doc: No payload is longer; the stream itself says where it ends.

  l2_bitmap:
    seq:
      - id: bitmap
        type: u8
    instances:
      allocated:
        value: bitmap & 0xffffffff
        doc: Bit n, sub-cluster n is data.
      zero:
        value: bitmap >> 32
        doc: Bit n, sub-cluster n reads as zeros.

  refcount_table_entry:
    seq:
      - id: entry
        type: u8
    instances:
      refcount_block_offset:
        value: entry & 0xfffffffffffffe00

  snapshot:
    seq:
      - id: header
        type: snapshot_header
      - id: extra
        size: header.extra_data_size
        type: snapshot_extra(header.extra_data_size)
      - id: id
        size: header.id_size
      - id: name
        size: header.name_size
      - size: (8 - (header.extra_data_size + header.id_size + header.name_size) % 8) % 8

  snapshot_header:
    seq:
      - id: l1_table_offset
        type: u8
      - id: l1_size
        type: u4
      - id: id_size
        type: u2
      - id: name_size
        type: u2
      - id: date_sec
        type: u4
      - id: date_nsec
        type: u4
      - id: vm_clock_nsec
        type: u8
      - id: vm_state_size
        type: u4
      - id: extra_data_size
        type: u4

  snapshot_extra:
    params:
      - id: length
        type: u4
    seq:
      - id: vm_state_size
        type: u8
        if: length >= 16
      - id: disk_size
        type: u8
        if: length >= 16
      - id: icount
        type: u8
        if: length >= 24

  bitmap:
    seq:
      - id: header
        type: bitmap_header
      - id: extra_data
        size: header.extra_data_size
      - id: name
        size: header.name_size
      - size: (8 - (header.extra_data_size + header.name_size) % 8) % 8

  bitmap_header:
    seq:
      - id: table_offset
        type: u8
      - id: table_size
        type: u4
      - id: flags
        type: u4
        doc: Bit 0 in use, bit 1 auto.
      - id: type
        type: u1
        doc: 1, a dirty bitmap.
      - id: granularity_bits
        type: u1
      - id: name_size
        type: u2
      - id: extra_data_size
        type: u4

  bitmap_table_entry:
    seq:
      - id: entry
        type: u8
    instances:
      all_ones:
        value: (entry & 1) != 0
        doc: Only without an offset; all of the entry 0 means that all bits are clear.
      bits_offset:
        value: entry & 0x00fffffffffffe00
        doc: Of a cluster of bits, the least significant of a byte first.

enums:
  crypt_method:
    0: none
    1: aes
    2: luks
  compression_type:
    0: zlib
    1: zstd
  extension_type:
    0: end
    0xe2792aca: backing_format
    0x6803f857: feature_names
    0x23852875: bitmaps
    0x0537be77: full_disk_encryption
    0x44415441: data_file_name
    0x5143444c: delta
  incompatible_bit:
    0: dirty
    1: corrupt
    2: external_data_file
    3: compression_type
    4: extended_l2
  compatible_bit:
    0: lazy_refcounts
  autoclear_bit:
    0: bitmaps
    1: raw_external_data
