"""The other nodes: connections, messages and whole states between them."""
