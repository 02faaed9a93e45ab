// bfloat16 in plain loops: widened to float32, computed with, rounded once.

#pragma once
#include <cstdint>
#include <cstring>

typedef uint16_t bf16;

// Fewer elements than this are done before other threads have woken up.
static const long PARALLEL = 1 << 14;

static inline float widen(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

// Round to nearest, ties to even. Adding to the bits of a NaN could make an infinity or zero of it: it stays as it is.
static inline bf16 narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (bf16)rounded;
}

// e^x to 2 units in the last place (polynomial of Cephes' expf), finite for every x that is not NaN: of a float, or of a
// vector of them with a vector of as many 32-bit words.
template <typename Float = float, typename Word = uint32_t>
static inline Float exponential(Float x) {
    const Float least = Float{} - 87.0f, most = Float{} + 88.0f;
    x = x < least ? least : x;
    x = x > most ? most : x;
    Float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's last bits are the rounded integer
    Float whole = shifted - 12582912.0f;
    Float f = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Float y = f * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * f + 8.3334519073e-3f;
    y = y * f + 4.1665795894e-2f;
    y = y * f + 1.6666665459e-1f;
    y = y * f + 5.0000001201e-1f;
    y = y * f * f + f + 1.0f;
    Word bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000;
    Float power;
    memcpy(&power, &bits, sizeof power);
    return y * power;
}
