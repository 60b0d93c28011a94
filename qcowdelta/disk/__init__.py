"""What a disk's content means: partitions, file systems, and whose each range is."""
