// Products of whole bfloat16 matrices, summed in float32 and rounded once.
//
//     right matrix -> panels of LANES columns, in pairs        left matrix as it lies, or block after block in pairs
//     a block of rows times a panel -> sums in the first cache -> bfloat16
//
// A pack has ever new lengths. Libraries that generate code for each size spend milliseconds on every new one; here
// there is nothing to generate. Threads take blocks as they come: one that is held up delays nobody.
//
// Products that have a matrix in common are made together: with a right matrix in common it is packed once, with a result
// in common their sum is rounded once.

#include <algorithm>
#include <omp.h>
#include "transpose.h"

// Rows of a block, and most rows of one that is turned first.
static const long BLOCK = 48, TURNED_BLOCK = 96;
// Panels that a thread goes through at least, once it has a block of a turned matrix in pairs.
static const long SEVERAL = 4;
// Rows of a turned product, times panels, for each thread: fewer are cut into smaller blocks.
static const long FULL = 2 * SEVERAL * TURNED_BLOCK;
static_assert(BLOCK % ROWS == 0 && TURNED_BLOCK % ROWS == 0, "a block is cut into tiles");
static_assert(TURNED_BLOCK % VECTOR == 0, "a turned block is packed in vectors");
// Words of the summed dimension that are gone through at once: so much of a panel stays in the second cache while a
// block's tiles read it one after the other.
static const long DEPTH = 256;

static inline words pair_words(const bf16* upper, const bf16* lower) {
    return extend(*(const halves*)upper) | extend(*(const halves*)lower) << 16;
}

// Words k, pairs of rows 2 k and 2 k + 1, of `width` columns from x on: `size` there are of x (depth, ..), 0 beyond.
template <long width>
static inline void pair_rows(const bf16* x, long row, long k, long depth, long size, pair32* out) {
    const bf16 *upper = x + 2 * k * row, *lower = 2 * k + 1 < depth ? upper + row : nullptr;
    bool whole = lower && width <= size;
    for (long i = 0; i < width; i += VECTOR)
        *(words*)(out + i) = whole ? pair_words(upper + i, lower + i) : column_words(upper, lower, i, size);
}

// x (depth, size), rows `row` elements apart -> panels, (words, LANES) each: pairs of successive rows. Rows are read once
// and in order. Shared by the threads that call it together, which do not wait for each other.
static void pack_down(const bf16* x, long row, long depth, long size, pair32* out) {
    long count = (depth + 1) / 2;
#pragma omp for schedule(static) nowait
    for (long k = 0; k < count; k++)
        for (long first = 0; first < size; first += LANES)
            pair_rows<LANES>(x + first, row, k, depth, size - first, out + first * count + k * LANES);
}

// x (size, depth), rows `row` elements apart -> the same panels of its transpose, of which it fills `width` lanes each.
static void pack_along(const bf16* x, long row, long depth, long size, pair32* out, long width) {
    long count = (depth + 1) / 2;
#pragma omp for schedule(dynamic) nowait
    for (long first = 0; first < size; first += width)
        pair_along(Rows{x, row}, first, std::min(width, size - first), depth, out + first / width * count * LANES,
                   width, LANES);
}

// out (rows, columns) = a (rows, depth) b (depth, columns), rounded, and `added` where it is something. Rows, as matrices lie, are
// `.._row` elements apart; a turned matrix lies as its transpose. Packed, b begins at word `b_place` of the space; the
// result is made in blocks of so many rows.
struct Product {
    const bf16 *a, *b, *added;
    bf16* out;
    long rows, columns, depth, a_row, b_row, added_row, out_row, b_place, block;

    long words() const { return (depth + 1) / 2; }
    long panels() const { return (columns + LANES - 1) / LANES; }
    long blocks() const { return (rows + block - 1) / block; }
    long items() const { return panels() * blocks(); }
};

// Those of a part of an output that one thread makes at once.
struct Item {
    long row, rows, column, columns;
    Item(const Product& p, long number) {
        row = number / p.panels() * p.block, rows = std::min(p.block, p.rows - row);
        column = number % p.panels() * LANES, columns = std::min(LANES, p.columns - column);
    }
};

static bool same_right(const Product& p, const Product& q) {
    return p.b == q.b && p.b_row == q.b_row && p.depth == q.depth && p.columns == q.columns;
}

// Right matrices go where their products say. All threads call it together.
static void pack(const Product* products, long count, pair32* space, bool b_turned) {
    for (long i = 0; i < count; i++) {
        const Product& p = products[i];
        if (i && p.b_place == products[i - 1].b_place) continue;
        if (b_turned) pack_along(p.b, p.b_row, p.depth, p.columns, space + p.b_place, LANES);
        else pack_down(p.b, p.b_row, p.depth, p.columns, space + p.b_place);
    }
#pragma omp barrier
}

// sums (rows, LANES) = or += a block of left rows times a panel
static void multiply(Left left, const pair32* panel, long count, long rows, float* sums, bool add) {
    for (long k = 0; k < count; k += DEPTH, left.data += DEPTH * left.step)
        columns<4>(left, panel + k * LANES, LANES, sums, LANES, rows, std::min(DEPTH, count - k), add || k > 0);
}

// A block of a turned matrix in pairs, which the second cache holds while one thread multiplies it: 200 bytes for each of
// what is summed over, as tokens are.
struct Turned {
    pair32* own;
    const Product* of;
    long row;

    Left operator()(const Product& p, const Item& item) {
        for (long k = 0; k < p.words() && !(of == &p && row == item.row); k++)
            pair_rows<TURNED_BLOCK>(p.a + item.row, p.a_row, k, p.depth, p.rows - item.row, own + k * TURNED_BLOCK);
        of = &p, row = item.row;
        return {(const bf16*)own, 2, 2 * TURNED_BLOCK};
    }
};

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

// Words that products work in; each is told where in them its right matrix is. If left ones are turned, each thread has
// words of its own behind those.
long matmul_space(Product* products, long count, long a_turned) {
    long words = 0;
    for (long i = 0; i < count; i++) {
        Product& p = products[i];
        // Blocks of about as many rows each, and enough of them: threads have as much to do.
        long most = p.panels() * p.rows < FULL * omp_get_max_threads() ? BLOCK : TURNED_BLOCK;
        long blocks = (p.rows + most - 1) / most;
        p.block = a_turned ? ((p.rows + blocks - 1) / blocks + ROWS - 1) / ROWS * ROWS : BLOCK;
        bool again = i && same_right(p, products[i - 1]);
        p.b_place = again ? products[i - 1].b_place : words;
        if (!again) words += p.words() * p.panels() * LANES;
    }
    return words + (a_turned ? omp_get_max_threads() * products->words() * TURNED_BLOCK : 0);
}

// Products whose matrices lie alike: depths are even unless a is turned and b is not, and not both are. Either all have the
// same result, or no two; turned ones have the same depth.
void matmul(const Product* products, long count, pair32* space, long words, long a_turned, long b_turned) {
    bool summed = count > 1 && products[0].out == products[1].out;
    long items = 0;
    for (long i = 0; i < (summed ? 1 : count); i++) items += products[i].items();
#pragma omp parallel
    {
        Turned turned{space + words - (omp_get_thread_num() + 1) * products->words() * TURNED_BLOCK, nullptr, 0};
        pack(products, count, space, b_turned);
#pragma omp for schedule(guided, a_turned ? SEVERAL : 1)
        for (long number = 0; number < items; number++) {
            const Product* p = products;
            long own = number;
            while (own >= p->items()) own -= p++->items();
            Item item(*p, own);
            alignas(BYTES) float sums[TURNED_BLOCK * LANES];
            for (long i = 0; i < (summed ? count : 1); i++) {
                Left left = a_turned ? turned(p[i], item) : as_it_lies(p[i].a + item.row * p[i].a_row, p[i].a_row);
                const pair32* panel = space + p[i].b_place + item.column * p[i].words();
                multiply(left, panel, p[i].words(), item.rows, sums, i > 0);
            }
            for (long r = 0; r < item.rows; r++)
                for (long i = 0; i < item.columns; i += VECTOR) {
                    long row = item.row + r, column = item.column + i, n = item.columns - i;
                    floats made = at(sums + r * LANES + i);
                    if (p->added) made = rounded(made) + load(p->added + row * p->added_row + column, n);
                    store(p->out + row * p->out_row + column, made, n);
                }
        }
    }
}

// Words that matmul_swiglu works in.
long swiglu_space(long columns, long depth) { return (columns + FEW - 1) / FEW * LANES * ((depth + 1) / 2); }

// x (rows, depth), gate and up (columns, depth) -> y = silu(x gate') * (x up') (rows, columns). Either factor is kept
// where it has somewhere to go. Rows of x, gate and up are `.._row` elements apart, those of the others in succession.
// A panel is half of gate and half of up: what belongs together is there at once.
void matmul_swiglu(const bf16* x, const bf16* gate, const bf16* up, bf16* gated, bf16* upped, bf16* y, pair32* space,
                   long rows, long columns, long depth, long x_row, long gate_row, long up_row) {
    long count = (depth + 1) / 2, panels = (columns + FEW - 1) / FEW, blocks = (rows + BLOCK - 1) / BLOCK;
#pragma omp parallel
    {
        pack_along(gate, gate_row, depth, columns, space, FEW);
        pack_along(up, up_row, depth, columns, space + FEW, FEW);
#pragma omp barrier
#pragma omp for schedule(guided)
        for (long item = 0; item < blocks * panels; item++) {
            long first = item / panels * BLOCK, panel = item % panels;
            alignas(BYTES) float sums[BLOCK * LANES];
            multiply(as_it_lies(x + first * x_row, x_row), space + panel * count * LANES, count,
                     std::min(BLOCK, rows - first), sums, false);
            for (long r = 0; r < std::min(BLOCK, rows - first); r++)
                for (long i = 0; i < FEW; i += VECTOR) {
                    long at_column = panel * FEW + i, n = columns - at_column, to = (first + r) * columns + at_column;
                    floats factor = at(sums + r * LANES + i), other = at(sums + r * LANES + FEW + i);
                    if (n <= 0) break;
                    if (gated) store(gated + to, factor, n);
                    if (upped) store(upped + to, other, n);
                    store(y + to, swiglu(rounded(factor), rounded(other)), n);
                }
        }
    }
}
}
