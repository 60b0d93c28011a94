meta:
  id: cluster_patch
  title: Cluster patch of a disk's content, version 1
  file-extension: qcpatch
  license: Apache-2.0
  endian: le
  ks-version: "0.9"
doc: |
  The structures of a cluster patch, whose meaning and limits are told in cluster-patch.md.
  scripts/check-ksy holds this file against the declarations in qcowdelta/patch/layout.py: names,
  order, integer types, constants and behaviour.

  Payloads, and directories that are zstd frames, have to be decoded by other means; what such a
  directory decodes to is the type directory.

seq:
  - id: header
    type: header
  - id: sections
    size: header.header_length - 168
    type: sections
  - id: header_digest
    size: 32
    doc: BLAKE3 of all before it.
  - id: segments
    type: segment
    repeat: expr
    repeat-expr: header.segment_count
  - id: index
    type: index(header.segment_count)
  - id: footer
    type: footer

types:
  header:
    doc: The fixed part.
    seq:
      - id: magic
        contents: [0x51, 0x43, 0x50, 0x41, 0x54, 0x43, 0x48, 0x0a]
      - id: version
        type: u4
        doc: 1.
      - id: header_length
        type: u4
        doc: With sections and digest.
      - id: incompatible_features
        type: u8
      - id: compatible_features
        type: u8
      - id: base_size
        type: u8
      - id: target_size
        type: u8
      - id: base_digest
        size: 32
      - id: target_digest
        size: 32
      - id: segment_bits
        type: u4
      - id: memory
        type: u4
      - id: segment_count
        type: u8
      - id: segments_length
        type: u8

  sections:
    seq:
      - id: entries
        type: section
        repeat: eos

  section:
    seq:
      - id: type
        type: u4
        enum: section_type
        doc: One with bit 31 must be understood.
      - id: length
        type: u4
      - id: data
        size: length
      - size: (8 - length % 8) % 8

  segment:
    seq:
      - id: head
        type: segment_head
      - id: lists
        type: segment_lists(head.leaves, head.references)
      - id: directory
        size: head.directory_length
        type:
          switch-on: head.directory_codec
          cases:
            codec::stored: directory(head.operations, head.ranges)
      - id: payload
        size: head.payload_length
      - id: digest
        size: 32
        doc: BLAKE3 of all of the segment before it.

  segment_head:
    seq:
      - id: magic
        contents: [0x51, 0x53, 0x45, 0x47]
      - id: length
        type: u4
        doc: Of the whole segment.
      - id: number
        type: u8
      - id: operations
        type: u4
      - id: ranges
        type: u4
      - id: directory_length
        type: u4
      - id: payload_length
        type: u4
      - id: data_length
        type: u4
      - id: dictionary_length
        type: u4
      - id: memory
        type: u4
      - id: directory_codec
        type: u1
        enum: codec
      - id: payload_codec
        type: u1
        enum: codec
      - id: leaves
        type: u1
      - id: references
        type: u1
      - id: base_digest
        size: 32

  segment_lists:
    params:
      - id: leaves
        type: u1
      - id: references
        type: u1
    seq:
      - id: leaf_digests
        size: 32
        repeat: expr
        repeat-expr: leaves
      - id: referenced
        type: u8
        repeat: expr
        repeat-expr: references

  directory:
    params:
      - id: num_operations
        type: u4
      - id: num_ranges
        type: u4
    seq:
      - id: operations
        type: operations(num_operations)
      - id: ranges
        type: ranges(num_ranges)

  operations:
    doc: Column by column.
    params:
      - id: count
        type: u4
    seq:
      - id: start
        type: u4
        repeat: expr
        repeat-expr: count
      - id: length
        type: u4
        repeat: expr
        repeat-expr: count
      - id: kind
        type: u1
        enum: operation_kind
        repeat: expr
        repeat-expr: count
      - id: source
        type: u8
        repeat: expr
        repeat-expr: count

  ranges:
    doc: The dictionary's parts, column by column.
    params:
      - id: count
        type: u4
    seq:
      - id: start
        type: u8
        repeat: expr
        repeat-expr: count
      - id: length
        type: u4
        repeat: expr
        repeat-expr: count
      - id: space
        type: u1
        enum: space
        repeat: expr
        repeat-expr: count

  index:
    doc: One row for each segment, column by column.
    params:
      - id: count
        type: u8
    seq:
      - id: number
        type: u8
        repeat: expr
        repeat-expr: count
      - id: offset
        type: u8
        repeat: expr
        repeat-expr: count
      - id: length
        type: u4
        repeat: expr
        repeat-expr: count
      - id: memory
        type: u4
        repeat: expr
        repeat-expr: count
      - id: users
        type: u4
        repeat: expr
        repeat-expr: count

  footer:
    seq:
      - id: index_offset
        type: u8
      - id: index_length
        type: u8
      - id: digest
        size: 32
      - id: magic
        contents: [0x51, 0x43, 0x50, 0x45, 0x4e, 0x44, 0x0d, 0x0a]

enums:
  section_type:
    1: creator
  operation_kind:
    0: zero
    1: data
    2: copy_base
    3: copy_target
  space:
    0: base
    1: target
  codec:
    0: stored
    1: lz4
    2: zstd
