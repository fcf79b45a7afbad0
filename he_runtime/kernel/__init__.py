"""The native kernel: C++ for the `native` backend. `_kernel` exists only where it was built (CMakeLists.txt)."""
