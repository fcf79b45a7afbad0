"""Load, faults and figures of the service, without an HE library where HE is not the point: `make soak`, `make chaos`."""
