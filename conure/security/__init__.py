"""Who may connect: what proves it, and the files that this comes from."""
