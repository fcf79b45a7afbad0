#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernel.hpp"

namespace secateur {
namespace {

constexpr Path kPaths[] = {Path::ifma, Path::avx2, Path::portable};  // fastest first

Path path_by_name(const std::string& name) {
    for (const Path path : kPaths) {
        if (name == path_name(path)) return path;
    }
    throw std::runtime_error("cannot use SECATEUR_KERNEL=" + name + ": need portable, avx2 or ifma");
}

}  // namespace

const char* path_name(Path path) {
    switch (path) {
        case Path::avx2: return "avx2";
        case Path::ifma: return "ifma";
        default: return "portable";
    }
}

bool path_available(Path path) {
#ifdef SECATEUR_X86
    // The compiler's run-time check also asks whether the operating system saves these registers.
    if (path == Path::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (path == Path::ifma) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512ifma");
    }
#endif
    return path == Path::portable;
}

Path default_path() {
    const char* forced = std::getenv("SECATEUR_KERNEL");
    if (forced != nullptr && *forced != '\0') {
        const Path path = path_by_name(forced);
        if (!path_available(path)) {
            throw std::runtime_error("cannot use SECATEUR_KERNEL=" + std::string(forced) +
                                     ": this machine lacks its instructions; try portable");
        }
        return path;
    }
    for (const Path path : kPaths) {
        if (path_available(path)) return path;
    }
    return Path::portable;
}

const Kernel& kernel_of(Path path) {
#ifdef SECATEUR_X86
    if (path == Path::ifma) return ifma_kernel;
    if (path == Path::avx2) return avx2_kernel;
#endif
    (void)path;
    return portable_kernel;
}

const Kernel& kernel_for(Path path, const Modulus& modulus) {
    return is_narrow(modulus) ? kernel_of(path) : portable_kernel;
}

}  // namespace secateur
