"""The portable cluster patch: formats/cluster-patch.md."""
