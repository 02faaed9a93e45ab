// Matrices of bfloat16 in pairs, turned: what is a row in memory becomes the lanes of a product, and the other way round.

#pragma once
#include <algorithm>
#include "product.h"

// A function of its own: what turns a matrix is long once it is unrolled, and copies of it would double the compile time.
#define APART __attribute__((noinline))

// Lanes of a and b by number, those of b after those of a.
static inline words pick(words a, words b, ints numbers) {
#ifdef __clang__
    words out;
    for (long i = 0; i < VECTOR; i++) out[i] = numbers[i] < VECTOR ? a[numbers[i]] : b[numbers[i] - VECTOR];
    return out;
#else
    return (words)__builtin_shuffle((ints)a, (ints)b, numbers);
#endif
}

// Squares within a square of words, rows of VECTOR: the upper right and the lower left one change places, then likewise
// within each.
template <int HALF>
static inline void turn_square(words* x) {
    ints lane{};
    for (int i = 0; i < VECTOR; i++) lane[i] = i;
    ints right = (lane & HALF) != 0;
    ints upper = right ? lane + (int)(VECTOR - HALF) : lane, lower = right ? lane + (int)VECTOR : lane + HALF;
    for (int i = 0; i < VECTOR; i++)
        if (!(i & HALF)) {
            words a = x[i], b = x[i + HALF];
            x[i] = pick(a, b, upper), x[i + HALF] = pick(a, b, lower);
        }
    if constexpr (HALF > 1) turn_square<HALF / 2>(x);
}

// A matrix of words, turned: load(row, column) gives VECTOR words of a row, store(column, row, words) takes those of a
// column. Both are called for whole squares, and leave out what is beyond the matrix.
template <typename Load, typename Store>
static inline void turn(long rows, long columns, Load load, Store store) {
    for (long row = 0; row < rows; row += VECTOR)
        for (long column = 0; column < columns; column += VECTOR) {
            words x[VECTOR];
            for (int i = 0; i < VECTOR; i++) x[i] = load(row + i, column);
            turn_square<VECTOR / 2>(x);
            for (int i = 0; i < VECTOR; i++) store(column + i, row, x[i]);
        }
}

// Tokens of one head: (tokens, size), rows `token` elements apart.
struct Rows {
    const bf16* data;
    long token;
    const bf16* at(long t) const { return data + t * token; }
};

// Words of two successive elements of a row, as they lie there: from element `first` of `size` on.
static inline words row_words(const bf16* row, long first, long size) {
    words out{};
    if (first + 2 * VECTOR <= size) out = *(const words*)(row + first);
    else if (first < size) memcpy(&out, row + first, (size - first) * sizeof(bf16));
    return out;
}

// Words of elements below each other: from element `first` of `size` on.
static inline words column_words(const bf16* upper, const bf16* lower, long first, long size) {
    halves high{}, low{};
    long count = std::min(VECTOR, size - first);
    if (count == VECTOR) low = *(const halves*)(upper + first);
    else if (count > 0) memcpy(&low, upper + first, count * sizeof(bf16));
    if (lower && count == VECTOR) high = *(const halves*)(lower + first);
    else if (lower && count > 0) memcpy(&high, lower + first, count * sizeof(bf16));
    return extend(low) | extend(high) << 16;
}

// x (n, size) -> words (size / 2, width), rows out_row words apart: pairs along a row; lanes from n on are 0.
APART static void pair_along(const Rows& x, long first, long n, long size, pair32* out, long width, long out_row) {
    turn(width, size / 2,
         [&](long i, long d) { return i < n ? row_words(x.at(first + i), 2 * d, size) : words{}; },
         [&](long d, long i, words w) { if (d < size / 2) *(words*)(out + d * out_row + i) = w; });
}

// x (n, size) -> words (width / 2, padded): pairs of successive rows; what is beyond n or size is 0.
APART static void pair_down(const Rows& x, long first, long n, long size, pair32* out, long width, long padded) {
    for (long i = 0; i < width; i += 2)
        for (long d = 0; d < padded; d += VECTOR, out += VECTOR)
            *(words*)out = i < n ? column_words(x.at(first + i), i + 1 < n ? x.at(first + i + 1) : nullptr, d, size)
                                 : words{};
}
