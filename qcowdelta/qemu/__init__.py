"""What QEMU's own programs do for us: opening what is not read natively, and running machines."""
