// Elementwise operations in eight 52-bit lanes.

#include "blake2xb.hpp"
#include "ifma_ntt.hpp"
#include "sums.hpp"

namespace secateur {
namespace {

void add(u64* dst, const u64* a, const u64* b, std::size_t n, const Modulus& modulus) {
    const Lanes q = splat(modulus.value);
    for (std::size_t i = 0; i < n; i += 8) store(dst + i, reduce_once(_mm512_add_epi64(load(a + i), load(b + i)), q));
}

// a - b, wrapped below zero where b > a; adding q then gives the smaller of the two.
inline Lanes subtract(Lanes a, Lanes b, Lanes q) {
    const Lanes difference = _mm512_sub_epi64(a, b);
    return _mm512_min_epu64(difference, _mm512_add_epi64(difference, q));
}

void sub(u64* dst, const u64* a, const u64* b, std::size_t n, const Modulus& modulus) {
    const Lanes q = splat(modulus.value);
    for (std::size_t i = 0; i < n; i += 8) store(dst + i, subtract(load(a + i), load(b + i), q));
}

void negate(u64* dst, const u64* a, std::size_t n, const Modulus& modulus) {
    const Lanes q = splat(modulus.value);
    for (std::size_t i = 0; i < n; i += 8) store(dst + i, subtract(_mm512_setzero_si512(), load(a + i), q));
}

void multiply(u64* dst, const u64* a, const u64* b, std::size_t n, const Modulus& modulus) {
    const LaneModulus m(modulus.value);
    // With t = floor(product / 2^(bits - 2)) below 2^(bits + 2) <= 2^52 and c = floor(2^(50 + bits) / q) <= 2^51, the
    // high half of t * c is the quotient minus at most two.
    const __m128i down = _mm_cvtsi32_si128(modulus.bits - 2);
    const __m128i up = _mm_cvtsi32_si128(52 - (modulus.bits - 2));
    const Lanes barrett = splat(modulus.barrett52);
    for (std::size_t i = 0; i < n; i += 8) {
        const Lanes x = load(a + i);
        const Lanes y = load(b + i);
        const Lanes high = high52(x, y);
        const Lanes low = low52(x, y);
        const Lanes top = _mm512_or_si512(_mm512_sll_epi64(high, up), _mm512_srl_epi64(low, down));
        const Lanes estimate = high52(top, barrett);
        const Lanes rest = _mm512_and_si512(_mm512_madd52lo_epu64(low, estimate, m.minus_q), m.mask);
        store(dst + i, reduce_fully<4>(rest, m));
    }
}

void multiply_constant(u64* dst, const u64* a, Factor w, std::size_t n, const Modulus& modulus) {
    const LaneModulus m(modulus.value);
    const LaneFactor factor = splat(w);
    for (std::size_t i = 0; i < n; i += 8) store(dst + i, reduce_once(mul_lazy(load(a + i), factor, m), m.q));
}

void sub_multiply_constant(u64* dst, const u64* a, const u64* b, Factor w, std::size_t n, const Modulus& modulus) {
    const LaneModulus m(modulus.value);
    const LaneFactor factor = splat(w);
    for (std::size_t i = 0; i < n; i += 8) {
        const Lanes difference = _mm512_sub_epi64(_mm512_add_epi64(load(a + i), m.q), load(b + i));
        store(dst + i, reduce_once(mul_lazy(difference, factor, m), m.q));
    }
}

// Sums in two accumulators of 52-bit halves, value = high * 2^52 + low.
struct Halves {
    using Value = Lanes;
    using Sum = Lanes;
    static constexpr std::size_t kWidth = 8;
    // Low halves are below 2^52, so this many of them and a residue fit 64 bits; high halves are smaller.
    static constexpr std::size_t kProducts = 4092;
    static constexpr int kGroup = 6;
    static constexpr bool kWideFactors = true;  // 52 bits, which fit too: high halves are below 2^50 then

    explicit Halves(const Modulus& modulus)
        : m(modulus.value), one(splat(modulus.one)), two52(splat(modulus.two52)), two104(splat(modulus.two104)) {}

    // A value that two products share is kept in a register: the compiler would load it once for each.
    static Lanes value(const u64* p) {
        Lanes x = secateur::load(p);
        __asm__("" : "+v"(x));
        return x;
    }
    static Lanes constant(u64 w) { return splat(w); }
    static Lanes zero() { return _mm512_setzero_si512(); }
    static Lanes load(const u64* p) { return secateur::load(p); }
    static void store(u64* p, Lanes x) { secateur::store(p, x); }

    static void multiply_add(Lanes& high, Lanes& low, Lanes x, Lanes y) {
        high = _mm512_madd52hi_epu64(high, x, y);
        low = _mm512_madd52lo_epu64(low, x, y);
    }

    void finish(u64* dst, Lanes high, Lanes low, std::size_t count) const {
        high = _mm512_add_epi64(high, _mm512_srli_epi64(low, 52));
        Lanes sum = mul_lazy(low, one, m);  // the multiplier reads only the low 52 bits
        sum = _mm512_add_epi64(sum, mul_lazy(high, two52, m));
        if (count <= 15) return store(dst, reduce_fully<4>(sum, m));  // high halves below 2^48: fifteen and a carry
        sum = _mm512_add_epi64(sum, mul_lazy(_mm512_srli_epi64(high, 52), two104, m));
        store(dst, reduce_fully<6>(sum, m));
    }

    LaneModulus m;
    LaneFactor one, two52, two104;
};

void convert(u64* dst, const u64* a, std::size_t n, const Modulus& from, const Modulus& to) {
    if (from.bits > 52) return portable_kernel.convert(dst, a, n, from, to);
    const LaneModulus m(to.value);
    const LaneFactor one = splat(to.one);
    for (std::size_t i = 0; i < n; i += 8) store(dst + i, reduce_once(mul_lazy(load(a + i), one, m), m.q));
}

bool all_below(const u64* a, std::size_t n, u64 q) {
    Lanes greatest = _mm512_setzero_si512();
    for (std::size_t i = 0; i < n; i += 8) greatest = _mm512_max_epu64(greatest, load(a + i));
    return _mm512_cmpge_epu64_mask(greatest, splat(q)) == 0;
}

void lift(u64* dst, const u64* src, const Lift& lift, std::size_t n) {
    if (lift.signs == nullptr) {
        const Centred values(src, lift);
        for (std::size_t i = 0; i < n; i += 8) store(dst + i, values(i));
    } else {
        const Signed values(src, lift);
        for (std::size_t i = 0; i < n; i += 8) store(dst + i, values(i));
    }
}

void round_quotient(u64* dst, const u64* const* v, const double* inverse, std::size_t count, std::size_t n) {
    for (std::size_t i = 0; i < n; i += 8) {
        __m512d sum = _mm512_set1_pd(0.5);
        for (std::size_t k = 0; k < count; ++k) {
            sum = _mm512_add_pd(sum, _mm512_mul_pd(_mm512_cvtepu64_pd(load(v[k] + i)), _mm512_set1_pd(inverse[k])));
        }
        store(dst + i, _mm512_cvttpd_epu64(sum));
    }
}

void permute(u64* dst, const u64* src, std::size_t from, const GaloisTable& table, std::size_t begin, std::size_t count) {
    const std::uint32_t* source = table.source + begin / 8;
    for (std::size_t i = 0; i < count / 8; ++i) {
        _mm_prefetch(reinterpret_cast<const char*>(src + source[i + kGaloisAhead] - from), _MM_HINT_T0);
        const Lanes block = load(src + (source[i] & ~std::uint32_t{7}) - from);
        store(dst + 8 * i, _mm512_permutexvar_epi64(load(table.lanes[source[i] & 7]), block));
    }
}

// Eight nodes of BLAKE2Xb.
struct Octets {
    typedef u64 Words __attribute__((vector_size(64)));
    static constexpr std::size_t kCount = 8;
    template <int bits>
    static Words rotate_right(Words x) {
        return reinterpret_cast<Words>(_mm512_ror_epi64(reinterpret_cast<__m512i>(x), bits));
    }
};

}  // namespace

const Kernel ifma_kernel = {
    "ifma",            ifma_forward,  ifma_inverse,
    ifma_block,        ifma_forward_begin, ifma_forward_end,
    add,               sub,           negate,
    multiply,          multiply_constant, sub_multiply_constant,
    Sums<Halves>::dot, Sums<Halves>::dot_pair, Sums<Halves>::gadget_pair, Sums<Halves>::dot_constants,
    convert,           all_below,     lift,
    round_quotient,    permute,       Blake2xb<Octets>::nodes,
};

}  // namespace secateur
