"""Attribution: whose the changed bytes are, what became of each file, and why it is so much."""
