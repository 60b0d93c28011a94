"""What the tests share: QEMU's own tools as the judge, random images, and the fixtures."""
