"""What a delta changes, as a page and as JSON."""
