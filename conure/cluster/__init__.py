"""One member: the monitor that drives the core, and all that belongs to it."""
