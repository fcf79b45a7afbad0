"""Admission, worker processes, and what runs in them."""
