"""Pages and files below the engine."""
