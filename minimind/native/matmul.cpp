// Products of whole bfloat16 matrices, summed in float32 and rounded once.
//
//     right matrix -> panels of LANES columns, in pairs        left matrix as it lies, or turned and in pairs
//     a block of rows times a panel -> sums in the first cache -> bfloat16
//
// A pack has ever new lengths. Libraries that generate code for each size spend milliseconds on every new one; here
// there is nothing to generate. Threads take blocks as they come: one that is held up delays nobody.

#include <algorithm>
#include "turn.h"

// Rows of a block: whole tiles and whole vectors.
static const long BLOCK = 48;
static_assert(BLOCK % ROWS == 0 && BLOCK % VECTOR == 0, "a block is cut into tiles, and packed in vectors");
// Words of the summed dimension that are gone through at once: so much of a panel stays in the second cache while a
// block's tiles read it one after the other.
static const long DEPTH = 256;

static inline words pair_words(const bf16* upper, const bf16* lower) {
    words low = __builtin_convertvector(*(const halves*)upper, words);
    return low | __builtin_convertvector(*(const halves*)lower, words) << 16;
}

// x (depth, size), rows `row` elements apart -> panels of `width` columns, (words, width) each: pairs of successive
// rows, 0 beyond. Rows are read once and in order. Shared by the threads that call it together.
template <long width>
static void pack_down(const bf16* x, long row, long depth, long size, pair32* out) {
    long count = (depth + 1) / 2;
#pragma omp for schedule(static)
    for (long k = 0; k < count; k++) {
        const bf16 *upper = x + 2 * k * row, *lower = 2 * k + 1 < depth ? upper + row : nullptr;
        for (long first = 0; first < size; first += width) {
            pair32* to = out + first * count + k * width;
            bool whole = lower && first + width <= size;
            for (long i = 0; i < width; i += VECTOR)
                *(words*)(to + i) = whole ? pair_words(upper + first + i, lower + first + i)
                                          : column_words(upper, lower, first + i, size);
        }
    }
}

// x (size, depth), rows `row` elements apart -> the same panels of its transpose.
static void pack_along(const bf16* x, long row, long depth, long size, pair32* out) {
    long count = (depth + 1) / 2;
#pragma omp for schedule(dynamic)
    for (long first = 0; first < size; first += LANES)
        pair_along(Rows{x, row}, first, std::min(LANES, size - first), depth, out + first * count, LANES);
}

extern "C" {

// Whether products are as fast here as a processor's bfloat16 gets: it has vector instructions for them and no matrix
// units, which only libraries know to use.
long made_for_matmul() {
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
    return 1;
#else
    return 0;
#endif
}

// Words that matmul works in.
long matmul_space(long rows, long columns, long depth, long left_turned) {
    long count = (depth + 1) / 2, panels = (columns + LANES - 1) / LANES, blocks = (rows + BLOCK - 1) / BLOCK;
    return count * (panels * LANES + (left_turned ? blocks * BLOCK : 0));
}

// a (rows, depth) b (depth, columns) -> out (rows, columns). A turned matrix lies as its transpose; each one's rows, as
// it lies, are a_row, b_row, out_row elements apart. The depth is even unless a is turned and b is not, and not both are.
void matmul(const bf16* a, const bf16* b, bf16* out, pair32* space, long rows, long columns_of_b, long depth, long a_row,
            long b_row, long out_row, long a_turned, long b_turned) {
    long count = (depth + 1) / 2, panels = (columns_of_b + LANES - 1) / LANES, blocks = (rows + BLOCK - 1) / BLOCK;
    pair32* turned = space + count * panels * LANES;
#pragma omp parallel
    {
        if (b_turned) pack_along(b, b_row, depth, columns_of_b, space);
        else pack_down<LANES>(b, b_row, depth, columns_of_b, space);
        if (a_turned) pack_down<BLOCK>(a, a_row, depth, rows, turned);
#pragma omp for schedule(guided)
        for (long item = 0; item < blocks * panels; item++) {
            long first = item / panels * BLOCK, n = std::min(BLOCK, rows - first);
            long column = item % panels * LANES, width = std::min(LANES, columns_of_b - column);
            Left left = as_it_lies(a + first * a_row, a_row);
            if (a_turned) left = {(const bf16*)(turned + first * count), 2, 2 * BLOCK};
            float sums[BLOCK * LANES];
            for (long k = 0; k < count; k += DEPTH, left.data += DEPTH * left.step)
                columns<4>(left, space + column * count + k * LANES, LANES, sums, LANES, n,
                           std::min(DEPTH, count - k), k > 0);
            for (long r = 0; r < n; r++)
                for (long i = 0; i < width; i += VECTOR)
                    store(out + (first + r) * out_row + column + i, at(sums + r * LANES + i), width - i);
        }
    }
}
}
