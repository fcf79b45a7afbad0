"""The network interface: .proto files (package secateur.v1), generated code, native<->proto pairs, status mapping."""
