"""ConureDB, a key-value store that keeps its word; docs/architecture.md shows the wings."""

VERSION = "0.1.0"
