// Vectors of bfloat16 numbers: cast to float32, computed with, rounded once when stored.
//
// GCC's and clang's vector types are used, so that one source serves all processors: the compiler maps them to the
// widest registers of the processor. Intrinsics stand only where the compilers need several instructions for what is
// one.

#pragma once
#include <cstdint>
#include <cstring>
#ifdef __AVX2__
#include <immintrin.h>
#endif

// Bytes of a vector register.
#if defined(__AVX512F__)
static const long BYTES = 64;
#elif defined(__AVX__)
static const long BYTES = 32;
#else
static const long BYTES = 16;
#endif
// Lanes of a vector: float32 numbers that it holds.
static const long VECTOR = BYTES / 4;

// `aligned` with the element's size: rows may start anywhere. `may_alias`: they are read through pointers of other
// types.
typedef uint16_t bf16;
typedef float floats __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef double doubles __attribute__((vector_size(2 * BYTES), aligned(8), may_alias));
typedef uint32_t words __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef bf16 halves __attribute__((vector_size(BYTES / 2), aligned(2), may_alias));

// The same number in all lanes.
static inline floats all(float x) { return floats{} + x; }

// The VECTOR numbers from x on.
static inline floats at(const float* x) { return *(const floats*)x; }

static inline float sum(floats x) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)x);
#else
    float total = 0;
    for (long i = 0; i < VECTOR; i++) total += x[i];
    return total;
#endif
}

// Maximum and minimum of each lane; b where either is a NaN. Compilers use two instructions, a comparison and a blend.
static inline floats larger(floats a, floats b) {
#ifdef __AVX512F__
    return (floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

static inline floats smaller(floats a, floats b) {
#ifdef __AVX512F__
    return (floats)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (floats)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return a < b ? a : b;
#endif
}

// 16 bits to 32, the upper half 0. GCC 12 uses four instructions for this one.
static inline words extend(halves x) {
#ifdef __AVX512F__
    return (words)_mm512_cvtepu16_epi32((__m256i)x);
#elif defined(__AVX2__)
    return (words)_mm256_cvtepu16_epi32((__m128i)x);
#else
    return __builtin_convertvector(x, words);
#endif
}

// 32 bits, of which the upper half is 0, to 16.
static inline halves narrow(words x) {
#if defined(__AVX512F__)
    return (halves)_mm512_cvtepi32_epi16((__m512i)x);
#elif defined(__AVX2__)
    __m256i packed = _mm256_packus_epi32((__m256i)x, (__m256i)x);  // within each half of the register
    return (halves)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
#else
    return __builtin_convertvector(x, halves);
#endif
}

// A bfloat16 number is the upper half of the float32 number with the same value.
static inline float to_float(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

// Rounds to nearest, ties to even, by adding just less than half of the last place that is kept; what is not kept stays
// in the lower halves. NaNs are handled apart: the addition could carry their bits over into those of an infinity or of
// zero.
static inline words round_words(floats x) {
    words bits = (words)x, rounded = bits + 0x7fff + (bits >> 16 & 1);
    return x == x ? rounded : words{} + 0x7fc00000;
}

static inline halves round_half(floats x) {
#ifdef __AVX512BF16__
    return (halves)_mm512_cvtneps_pbh((__m512)x);
#else
    return narrow(round_words(x) >> 16);
#endif
}

// The first n elements from x on, at most VECTOR, cast to float32; 0 in the other lanes. n may be larger than VECTOR.
static inline floats load(const bf16* x, long n = VECTOR) {
    halves raw{};
    if (n >= VECTOR) raw = *(const halves*)x;
    else memcpy(&raw, x, n * sizeof(bf16));
    return (floats)(extend(raw) << 16);
}

static inline floats load(const float* x, long n = VECTOR) {
    if (n >= VECTOR) return at(x);
    floats out{};
    memcpy(&out, x, n * sizeof(float));
    return out;
}

// Rounded to bfloat16 and cast back.
static inline floats rounded(floats x) {
#ifdef __AVX512BF16__
    return (floats)(extend(round_half(x)) << 16);
#else
    return (floats)(round_words(x) & 0xffff0000u);
#endif
}

// Writes the first n lanes, at most VECTOR.
static inline void store(bf16* out, floats x, long n = VECTOR) {
    halves raw = round_half(x);
    if (n >= VECTOR) *(halves*)out = raw;
    else memcpy(out, &raw, n * sizeof(bf16));
}

static inline void store(float* out, floats x, long n = VECTOR) {
    if (n >= VECTOR) *(floats*)out = x;
    else memcpy(out, &x, n * sizeof(float));
}

// e^x with an error of 2 units in the last place, finite for every x that is not a NaN: above 88, where float32 would
// overflow, it is e^88. Below -87, near float32's subnormal numbers, it may be 0.
static inline floats exponential(floats x) {
    x = smaller(all(88.0f), x);
#ifdef __AVX512F__
    x = larger(all(-200.0f), x);
    // e^x = 2^(whole + f), 2^f by a minimax polynomial for f in [-1/2, 1/2]. `whole` may be any integer near x log2(e),
    // so a short constant is enough for it; f needs log2(e) in two parts to be exact.
    floats whole = (floats)_mm512_roundscale_ps((__m512)(x * 1.4427f), _MM_FROUND_TO_NEAREST_INT);
    floats f = (x * 1.44269502f - whole) + x * 1.92596300e-8f;
    floats y = f * 1.535336188e-4f + 1.339887440e-3f;
    y = y * f + 9.618437357e-3f;
    y = y * f + 5.550332471e-2f;
    y = y * f + 2.402264791e-1f;
    y = y * f + 6.931472029e-1f;
    y = y * f + 1.0f;
    return (floats)_mm512_scalef_ps((__m512)y, (__m512)whole);
#else
    // The polynomial of Cephes' expf, for e^f with f in [-ln(2)/2, ln(2)/2]; ln(2) is subtracted in two parts.
    floats shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the last bits of the sum are the integer
    floats whole = shifted - 12582912.0f;
    floats f = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    floats y = f * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * f + 8.3334519073e-3f;
    y = y * f + 4.1665795894e-2f;
    y = y * f + 1.6666665459e-1f;
    y = y * f + 5.0000001201e-1f;
    y = y * f * f + f + 1.0f;
    y = y * (floats)(((words)shifted << 23) + 0x3f800000);
    return x < all(-87.0f) ? floats{} : y;
#endif
}

// 2^x with a relative error of 5e-6, far below bfloat16's 2e-3, for x up to 127; above, infinity or at least 2^126. 2^0
// is exactly 1, which attention relies on. A NaN stays a NaN.
static inline floats power_of_two(floats x) {
#ifdef __AVX512F__
    x = larger(all(-200.0f), x);
    floats whole = (floats)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
    floats f = x - whole;
    floats y = f * 9.582853358e-3f + 5.590642898e-2f;
    y = y * f + 2.402409863e-1f;
    y = y * f + 6.931241929e-1f;
    y = y * f + 1.0f;
    return (floats)_mm512_scalef_ps((__m512)y, (__m512)whole);
#else
    return exponential(x * 0.693147181f);
#endif
}

// 2^128 is enough to make it 0. Without the bound, x = -infinity would give a NaN: its fraction is infinity - infinity.
static inline floats sigmoid(floats x) { return 1.0f / (1.0f + power_of_two(smaller(all(128.0f), x * -1.44269504f))); }

// silu(gate) * up
static inline floats swiglu(floats gate, floats up) { return gate * sigmoid(gate) * up; }
