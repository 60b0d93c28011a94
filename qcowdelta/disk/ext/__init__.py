"""The file systems ext2, ext3 and ext4, as far as needed to tell whose each block is."""
