# Named by CMAKE_TOOLCHAIN_FILE while Pyfhel is built: its copy of Microsoft SEAL would otherwise download Microsoft GSL,
# zlib and Zstandard. Without them SEAL writes uncompressed files, which he_runtime/backends/seal_format.py handles.
set(SEAL_USE_MSGSL OFF CACHE BOOL "" FORCE)
set(SEAL_USE_ZLIB OFF CACHE BOOL "" FORCE)
set(SEAL_USE_ZSTD OFF CACHE BOOL "" FORCE)
set(SEAL_BUILD_DEPS OFF CACHE BOOL "" FORCE)
