"""The model repository and its service."""
