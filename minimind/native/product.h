// The inner loops of products of bfloat16 matrices, summed in float32; for matmul.cpp and attention.cpp.
//
// Both matrices are read in words of 32 bits, along the summed dimension. A word holds two bfloat16 numbers, for the
// processors' bfloat16 instruction (AVX512-BF16's vdpbf16ps), or one float32 number, for all other processors: a cast in
// the inner loop would cost as much as the product. In the left matrix successive words of a row are neighbours in
// memory. The right matrix is packed: a row of words for each word of the summed dimension, one for each column.

#pragma once
#include "vector.h"

typedef uint32_t word;

// Rows and vectors of a tile of sums, so that it fits the registers beside its vectors of the right matrix and one of
// the left: 6 x 4 sums in AVX-512's 32 registers, 6 x 2 in AVX's 16. Vectors of 16 bytes are mostly ARM's, of which there
// are 32: 4 x 4.
static const int ROWS = BYTES == 16 ? 4 : 6, WIDEST = BYTES == 32 ? 2 : 4;
// Columns of the wide and of the narrow blocks, in float32 lanes: 64 and 32 with AVX-512.
static const long LANES = 4 * VECTOR, FEW = 2 * VECTOR;

// Rounds both vectors to bfloat16 and writes them as words, `first` in the lower halves.
static inline words round_pair(floats first, floats second) {
#ifdef __AVX512BF16__
    // The conversion puts all of `first` before all of `second`; this permutation interleaves them.
    static const uint16_t interleave[] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    return (words)_mm512_permutexvar_epi16(_mm512_loadu_si512(interleave), rounded);
#else
    return round_words(first) >> 16 | (round_words(second) & 0xffff0000u);
#endif
}

// Words of two bfloat16 numbers, the first in the lower half.
struct Pairs {
    typedef bf16 Element;         // of a left matrix
    static const long DEPTH = 2;  // numbers in a word

    // sum + a's first number * b's first + a's second * b's second, in each lane.
    static inline floats add_product(floats sum, words a, words b) {
#ifdef __AVX512BF16__
        return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
        sum += (floats)(a << 16) * (floats)(b << 16);
        return sum + (floats)(a & 0xffff0000u) * (floats)(b & 0xffff0000u);
#endif
    }
};

// Words of one float32 number.
struct Singles {
    typedef float Element;
    static const long DEPTH = 1;
    static inline floats add_product(floats sum, words a, words b) { return sum + (floats)a * (floats)b; }
};

// A left matrix: word k of row r is at data + r * row + k * step.
template <typename Form>
struct Left {
    const typename Form::Element* data;
    long row, step = Form::DEPTH;
};

// One tile: c (R, V vectors) = a (R, count words) * b (count words, V vectors), or c += that. Its sums stay in registers
// for the whole loop over k: each word of the right matrix is loaded once per tile, each sum is stored once.
template <typename Form, int R, int V>
static void tile(const Left<Form>& a, const word* b, long b_row, float* c, long c_row, long count, bool add) {
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
            word left;
            memcpy(&left, a.data + r * a.row + k * a.step, 4);
            words in_all_lanes = left - words{};
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v] = Form::add_product(sums[r][v], in_all_lanes, right[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) *(floats*)(c + r * c_row + v * VECTOR) = sums[r][v];
}

// All rows of V vectors of columns: whole tiles, then one of the rows that are left.
template <int V, typename Form>
static void columns(Left<Form> a, const word* b, long b_row, float* c, long c_row, long rows, long count, bool add) {
    if constexpr (V > WIDEST) {
        columns<V / 2>(a, b, b_row, c, c_row, rows, count, add);
        return columns<V / 2>(a, b + V / 2 * VECTOR, b_row, c + V / 2 * VECTOR, c_row, rows, count, add);
    }
    for (; rows >= ROWS; rows -= ROWS, a.data += ROWS * a.row, c += ROWS * c_row)
        tile<Form, ROWS, V>(a, b, b_row, c, c_row, count, add);
    switch (rows) {
        case 5: return tile<Form, 5, V>(a, b, b_row, c, c_row, count, add);
        case 4: return tile<Form, 4, V>(a, b, b_row, c, c_row, count, add);
        case 3: return tile<Form, 3, V>(a, b, b_row, c, c_row, count, add);
        case 2: return tile<Form, 2, V>(a, b, b_row, c, c_row, count, add);
        case 1: return tile<Form, 1, V>(a, b, b_row, c, c_row, count, add);
    }
}

// c (rows, width) = or += a (rows, count words) * b (count words, width); width is a multiple of FEW.
template <typename Form>
static void product(Left<Form> a, const word* b, long b_row, float* c, long c_row, long rows, long width, long count,
                    bool add) {
    for (; width >= LANES; width -= LANES, b += LANES, c += LANES) columns<4>(a, b, b_row, c, c_row, rows, count, add);
    if (width) columns<2>(a, b, b_row, c, c_row, rows, count, add);
}
