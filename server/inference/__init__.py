"""The inference service, and the window that makes retries idempotent."""
