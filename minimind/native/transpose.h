// Packs bfloat16 matrices into words of two elements, as product.h's right matrices need them, transposed or not.

#pragma once
#include <algorithm>
#include "product.h"

// Unrolled, a transposition is long code: inlining a copy into each caller would double the time to compile.
#define NO_INLINE __attribute__((noinline))

// The lanes of a and b with the given numbers; b's lanes are numbered after a's.
static inline words pick(words a, words b, ints numbers) {
#ifdef __clang__
    words out;
    for (long i = 0; i < VECTOR; i++) out[i] = numbers[i] < VECTOR ? a[numbers[i]] : b[numbers[i] - VECTOR];
    return out;
#else
    return (words)__builtin_shuffle((ints)a, (ints)b, numbers);
#endif
}

// Transposes a square of VECTOR x VECTOR words in registers: the upper right and the lower left quarter are exchanged,
// then likewise within each quarter, log2(VECTOR) times.
template <int HALF>
static inline void transpose_square(words* x) {
    ints lane{};
    for (int i = 0; i < VECTOR; i++) lane[i] = i;
    ints right = (lane & HALF) != 0;
    ints upper = right ? lane + (int)(VECTOR - HALF) : lane, lower = right ? lane + (int)VECTOR : lane + HALF;
    for (int i = 0; i < VECTOR; i++)
        if (!(i & HALF)) {
            words a = x[i], b = x[i + HALF];
            x[i] = pick(a, b, upper), x[i + HALF] = pick(a, b, lower);
        }
    if constexpr (HALF > 1) transpose_square<HALF / 2>(x);
}

// Transposes a matrix of words: load(row, column) returns VECTOR words of a row, store(column, row, words) gets VECTOR
// words of a column. Both are called for whole squares, so they must ignore rows and columns beyond the matrix.
template <typename Load, typename Store>
static inline void transpose_words(long rows, long columns, Load load, Store store) {
    for (long row = 0; row < rows; row += VECTOR)
        for (long column = 0; column < columns; column += VECTOR) {
            words x[VECTOR];
            for (int i = 0; i < VECTOR; i++) x[i] = load(row + i, column);
            transpose_square<VECTOR / 2>(x);
            for (int i = 0; i < VECTOR; i++) store(column + i, row, x[i]);
        }
}

// A matrix (tokens, size) whose rows are `token` elements apart: one head of a tensor, for instance.
struct Rows {
    const bf16* data;
    long token;
    const bf16* at(long t) const { return data + t * token; }
};

// Words of two neighbours in a row, from element `first` on; 0 from `size` on.
static inline words row_words(const bf16* row, long first, long size) {
    words out{};
    if (first + 2 * VECTOR <= size) out = *(const words*)(row + first);
    else if (first < size) memcpy(&out, row + first, (size - first) * sizeof(bf16));
    return out;
}

// Words of an element of the upper row and the one below it, from column `first` on; 0 from `size` on, and instead of a
// lower row that does not exist.
static inline words column_words(const bf16* upper, const bf16* lower, long first, long size) {
    halves high{}, low{};
    long count = std::min(VECTOR, size - first);
    if (count == VECTOR) low = *(const halves*)(upper + first);
    else if (count > 0) memcpy(&low, upper + first, count * sizeof(bf16));
    if (lower && count == VECTOR) high = *(const halves*)(lower + first);
    else if (lower && count > 0) memcpy(&high, lower + first, count * sizeof(bf16));
    return extend(low) | extend(high) << 16;
}

// x (n, size), rows `first` to first + n -> words (size / 2, width), out_row words apart: the transpose, with pairs of
// neighbours in a row of x. Lanes from n on are 0.
NO_INLINE static void pair_along(const Rows& x, long first, long n, long size, pair32* out, long width, long out_row) {
    transpose_words(width, size / 2,
                    [&](long i, long d) { return i < n ? row_words(x.at(first + i), 2 * d, size) : words{}; },
                    [&](long d, long i, words w) { if (d < size / 2) *(words*)(out + d * out_row + i) = w; });
}

// x (n, size), rows `first` to first + n -> words (width / 2, padded), not transposed: pairs of successive rows of x.
// Words beyond n or size are 0.
NO_INLINE static void pair_down(const Rows& x, long first, long n, long size, pair32* out, long width, long padded) {
    for (long i = 0; i < width; i += 2)
        for (long d = 0; d < padded; d += VECTOR, out += VECTOR)
            *(words*)out = i < n ? column_words(x.at(first + i), i + 1 < n ? x.at(first + i + 1) : nullptr, d, size)
                                 : words{};
}
