"""The key store and its service: evaluation keys by content, durable and resumable."""
