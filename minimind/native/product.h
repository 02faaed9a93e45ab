// Products of bfloat16 matrices, summed in float32.
//
// A product takes its left matrix as it lies in memory and its right one in pairs: two successive elements of the
// summed dimension in one 32-bit word, as the processors' bfloat16 instruction wants them. Processors without it
// multiply the two halves in float32.

#pragma once
#include "vector.h"

typedef uint32_t pair32;  // two bfloat16

// Rows of the left matrix that are multiplied at once: about as many sums as the vector registers hold.
static const int ROWS = BYTES == 64 ? 6 : BYTES == 32 ? 2 : 4;
// Lanes of a product's widest tile, and of its narrow one.
static const long LANES = 4 * VECTOR, FEW = 2 * VECTOR;

// Words whose first element is of `first`, whose second of `second`.
static inline void store_pairs(pair32* out, floats first, floats second) {
#ifdef __AVX512BF16__
    // Numbers of the words' halves: one of the first, one of the second.
    static const uint16_t turns[] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    *(words*)out = (words)_mm512_permutexvar_epi16(_mm512_loadu_si512(turns), rounded);
#else
    *(words*)out = extend(round_half(first)) | extend(round_half(second)) << 16;
#endif
}

static inline floats add_product(floats sum, words a, words b) {
#ifdef __AVX512BF16__
    return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum += (floats)(a << 16) * (floats)(b << 16);
    return sum + (floats)(a & 0xffff0000u) * (floats)(b & 0xffff0000u);
#endif
}

// The left matrix: element 2 k of row r, and the one after it, lie at data + r * row + k * step.
struct Left {
    const bf16* data;
    long row, step;
};

// As it lies in memory, rows `row` elements apart.
static inline Left as_it_lies(const bf16* data, long row) { return {data, row, 2}; }

// c (R, V vectors) = or += a (R, 2 count) * b (count words, V vectors)
template <int R, int V>
static void tile(const bf16* a, long a_row, long a_step, const pair32* b, long b_row, float* c, long c_row, long count,
                 bool add) {
    floats sums[R][V];
    // Unrolled before the compiler decides what lives in registers.
    if (add) {
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v] = at(c + r * c_row + v * VECTOR);
    } else {
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v] = floats{};
    }
    for (long k = 0; k < count; k++) {
        words right[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) right[v] = *(const words*)(b + k * b_row + v * VECTOR);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            pair32 word;
            memcpy(&word, a + r * a_row + k * a_step, 4);
            words left = word - words{};
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v] = add_product(sums[r][v], left, right[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) *(floats*)(c + r * c_row + v * VECTOR) = sums[r][v];
}

template <int V>
static void columns(const Left& a, const pair32* b, long b_row, float* c, long c_row, long rows, long count, bool add) {
    long r = 0;
    const bf16* left = a.data;
    for (; r + ROWS <= rows; r += ROWS, left += ROWS * a.row)
        tile<ROWS, V>(left, a.row, a.step, b, b_row, c + r * c_row, c_row, count, add);
    c += r * c_row;
    switch (rows - r) {
        case 5: return tile<5, V>(left, a.row, a.step, b, b_row, c, c_row, count, add);
        case 4: return tile<4, V>(left, a.row, a.step, b, b_row, c, c_row, count, add);
        case 3: return tile<3, V>(left, a.row, a.step, b, b_row, c, c_row, count, add);
        case 2: return tile<2, V>(left, a.row, a.step, b, b_row, c, c_row, count, add);
        case 1: return tile<1, V>(left, a.row, a.step, b, b_row, c, c_row, count, add);
    }
}

// c (rows, width) = or += a (rows, 2 count) * b (count words, width); width is whole lanes.
static void product(const bf16* a, long a_row, const pair32* b, long b_row, float* c, long c_row, long rows, long width,
                    long count, bool add) {
    Left left = as_it_lies(a, a_row);
    for (; width >= LANES; width -= LANES, b += LANES, c += LANES)
        columns<4>(left, b, b_row, c, c_row, rows, count, add);
    if (width) columns<2>(left, b, b_row, c, c_row, rows, count, add);
}
