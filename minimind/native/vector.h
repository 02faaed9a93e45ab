// bfloat16 in vectors: widened to float32, computed with, rounded once. The compiler lowers the vector types to whatever
// registers there are.

#pragma once
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
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
// Lanes of a vector.
static const long VECTOR = BYTES / 4;

typedef uint16_t bf16;
typedef float floats __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef double doubles __attribute__((vector_size(2 * BYTES), aligned(8), may_alias));
typedef uint32_t words __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef bf16 halves __attribute__((vector_size(BYTES / 2), aligned(2), may_alias));

static inline floats all(float x) { return floats{} + x; }

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

// The larger and the smaller of two, lane by lane; b where either is a NaN. Compilers take two instructions for what is one.
static inline floats larger(floats a, floats b) {
#ifdef __AVX512F__
    return (floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return a > b ? a : b;
#endif
}

static inline floats smaller(floats a, floats b) {
#ifdef __AVX512F__
    return (floats)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return a < b ? a : b;
#endif
}

// 16 bits to 32, zeros above. GCC 12 takes four instructions for the one that there is.
static inline words extend(halves x) {
#ifdef __AVX512F__
    return (words)_mm512_cvtepu16_epi32((__m256i)x);
#else
    return __builtin_convertvector(x, words);
#endif
}

static inline float widen(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

// Round to nearest, ties to even. A NaN stays one: added to, its bits could become those of an infinity or of zero.
static inline halves round_half(floats x) {
#ifdef __AVX512BF16__
    return (halves)_mm512_cvtneps_pbh((__m512)x);
#else
    words bits = (words)x, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return __builtin_convertvector((bits & 0x7fffffff) > 0x7f800000 ? words{} + 0x7fc0 : rounded, halves);
#endif
}

// The first n of a vector's elements, all of them if there are more; 0 beyond.
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

// As bfloat16 keeps it.
static inline floats rounded(floats x) { return (floats)(extend(round_half(x)) << 16); }

static inline void store(bf16* out, floats x, long n = VECTOR) {
    halves raw = round_half(x);
    if (n >= VECTOR) *(halves*)out = raw;
    else memcpy(out, &raw, n * sizeof(bf16));
}

static inline void store(float* out, floats x, long n = VECTOR) {
    if (n >= VECTOR) *(floats*)out = x;
    else memcpy(out, &x, n * sizeof(float));
}

// e^x to 2 units in the last place, finite for every x that is not NaN. Below -87, where float32 loses its last places, it
// may be 0.
static inline floats exponential(floats x) {
    x = smaller(all(88.0f), x);
#ifdef __AVX512F__
    x = larger(all(-200.0f), x);
    // 2^(whole + f): a minimax polynomial of 2^f for f in [-1/2, 1/2]. What whole is off by, f makes good.
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
    // The polynomial of Cephes' expf.
    floats shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's last bits are the rounded integer
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

// 2^x to 5e-6 of it, far below what bfloat16 keeps, for x up to 127. Beyond, where it is not infinity, it is at least 2^126.
// 2^0 is 1. A NaN stays one.
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

static inline floats sigmoid(floats x) { return 1.0f / (1.0f + power_of_two(smaller(all(128.0f), x * -1.44269504f))); }

// silu(gate) * up
static inline floats swiglu(floats gate, floats up) { return gate * sigmoid(gate) * up; }
