"""What a front asks of a node."""
