"""The Open Inference Protocol, version 2, in front of the native services."""
