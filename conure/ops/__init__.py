"""Commands beside the server."""
