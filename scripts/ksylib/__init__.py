"""What holds the .ksy files in formats/ against the construct declarations."""
