// Packs bfloat16 matrices into the words that product.h's right matrices consist of, transposed or not.

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

// Elements of a row from `first` on, cast to float32; 0 from `size` on.
static inline words row_singles(const bf16* row, long first, long size) {
    return first < size ? (words)load(row + first, size - first) : words{};
}

// x (n, size), rows `first` to first + n -> words (size / DEPTH, width), out_row words apart: the transpose, summed along
// rows of x. Lanes from n on are 0.
template <typename Form>
NO_INLINE static void pack_along(const Rows& x, long first, long n, long size, word* out, long width, long out_row) {
    long count = size / Form::DEPTH;
    transpose_words(width, count,
                    [&](long i, long d) {
                        const bf16* row = x.at(first + i);
                        if (i >= n) return words{};
                        return Form::DEPTH == 2 ? row_words(row, 2 * d, size) : row_singles(row, d, size);
                    },
                    [&](long d, long i, words w) { if (d < count) *(words*)(out + d * out_row + i) = w; });
}

// x (n, size), rows `first` to first + n -> words (width / DEPTH, padded), not transposed: summed along columns of x.
// Words beyond n or size are 0.
template <typename Form>
NO_INLINE static void pack_down(const Rows& x, long first, long n, long size, word* out, long width, long padded) {
    for (long i = 0; i < width; i += Form::DEPTH)
        for (long d = 0; d < padded; d += VECTOR, out += VECTOR) {
            const bf16* row = x.at(first + i);
            if (i >= n) *(words*)out = words{};
            else if (Form::DEPTH == 1) *(words*)out = row_singles(row, d, size);
            else *(words*)out = column_words(row, i + 1 < n ? row + x.token : nullptr, d, size);
        }
}
