"""The state machine: what entries make of the records, and what goes to other nodes of that."""
