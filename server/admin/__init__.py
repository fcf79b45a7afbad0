"""Administration of a running server, on a port of its own."""
