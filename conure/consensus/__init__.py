"""The log of a cluster: members, messages, and what the core decides on, durable."""
