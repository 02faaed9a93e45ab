// The inner loops of products of bfloat16 matrices, summed in float32; for matmul.cpp and attention.cpp.
//
// The processors' bfloat16 instruction (AVX512-BF16's vdpbf16ps) multiplies pairs: two successive elements of the
// summed dimension, in one 32-bit word. In the left matrix such pairs are neighbours in memory. The right matrix must
// be packed: word (k, column) holds its rows 2 k and 2 k + 1 of one column. Processors without the instruction multiply
// the two halves of a word in float32.

#pragma once
#include "vector.h"

typedef uint32_t pair32;  // two bfloat16 numbers, the first in the lower half

// Rows of a tile of sums, so that a tile of 4 vectors a row fits the registers, beside 4 vectors of the right matrix
// and a word of the left: 6 x 4 sums in AVX-512's 32 registers, 2 x 4 in AVX's 16. Vectors of 16 bytes are mostly
// ARM's, of which there are 32: 4 x 4.
static const int ROWS = BYTES == 64 ? 6 : BYTES == 32 ? 2 : 4;
// Columns of the wide tile and of the narrow one, in float32 lanes: 64 and 32 with AVX-512.
static const long LANES = 4 * VECTOR, FEW = 2 * VECTOR;

// Rounds both vectors to bfloat16 and writes them as words, `first` in the lower halves.
static inline void store_pairs(pair32* out, floats first, floats second) {
#ifdef __AVX512BF16__
    // The conversion puts all of `first` before all of `second`; this permutation interleaves them.
    static const uint16_t interleave[] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    *(words*)out = (words)_mm512_permutexvar_epi16(_mm512_loadu_si512(interleave), rounded);
#else
    *(words*)out = extend(round_half(first)) | extend(round_half(second)) << 16;
#endif
}

// sum + a's first element * b's first + a's second * b's second, in each lane.
static inline floats add_product(floats sum, words a, words b) {
#ifdef __AVX512BF16__
    return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum += (floats)(a << 16) * (floats)(b << 16);
    return sum + (floats)(a & 0xffff0000u) * (floats)(b & 0xffff0000u);
#endif
}

// A left matrix: elements 2 k and 2 k + 1 of row r are at data + r * row + k * step.
struct Left {
    const bf16* data;
    long row, step;
};

// A matrix that is stored row by row, `row` elements apart.
static inline Left row_major(const bf16* data, long row) { return {data, row, 2}; }

// One tile: c (R, V vectors) = a (R, 2 count) * b (count words, V vectors), or c += that. Its sums stay in registers
// for the whole loop over k: each word of the right matrix is loaded once per tile, each sum is stored once.
template <int R, int V>
static void tile(const bf16* a, long a_row, long a_step, const pair32* b, long b_row, float* c, long c_row, long count,
                 bool add) {
    floats sums[R][V];
    // The pragmas unroll these loops before registers are assigned; otherwise `sums` may end up in memory.
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
            words left = word - words{};  // the same word in all lanes
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v] = add_product(sums[r][v], left, right[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) *(floats*)(c + r * c_row + v * VECTOR) = sums[r][v];
}

// All rows of V vectors of columns: whole tiles, then one of the rows that are left.
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

// c (rows, width) = or += a (rows, 2 count) * b (count words, width); width is a multiple of FEW.
static void product(const bf16* a, long a_row, const pair32* b, long b_row, float* c, long c_row, long rows, long width,
                    long count, bool add) {
    Left left = row_major(a, a_row);
    for (; width >= LANES; width -= LANES, b += LANES, c += LANES)
        columns<4>(left, b, b_row, c, c_row, rows, count, add);
    if (width) columns<2>(left, b, b_row, c, c_row, rows, count, add);
}
