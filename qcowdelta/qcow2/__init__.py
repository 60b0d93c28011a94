"""The qcow2 format: layout, limits, reading and writing (QEMU, docs/interop/qcow2.rst)."""
