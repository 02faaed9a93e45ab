// Products of bfloat16 matrices, summed in float32 and rounded once.
//
//     right matrix -> packed into panels of LANES columns     left matrix: in place, or packed by blocks if transposed
//     a block of left rows times a panel -> float32 sums in the L1 cache -> bfloat16
//
// Each pack has another number of tokens. Libraries that generate code for each shape spend milliseconds on every new
// one; here one code serves all shapes. Threads take the next block when they have finished one, so that a thread that
// is interrupted does not make the others wait.
//
// Products that share a matrix are computed in one call: a shared right matrix is packed once; the sum of products with
// one result is rounded once.

#include <algorithm>
#include <omp.h>
#include "transpose.h"

// Rows of a block, and the most rows of a block of a transposed left matrix, which is packed first.
static const long BLOCK = 48, PACKED_BLOCK = 96;
// The fewest panels that a thread multiplies with a packed block before it packs the next one.
static const long PANELS_PER_PACKING = 4;
// Rows times panels per thread from which on blocks have their full size: with less work, smaller blocks occupy all
// threads.
static const long FULL_WORK = 2 * PANELS_PER_PACKING * PACKED_BLOCK;
static_assert(BLOCK % ROWS == 0 && PACKED_BLOCK % ROWS == 0, "a block consists of whole tiles");
static_assert(PACKED_BLOCK % VECTOR == 0, "a block is packed in whole vectors");
// Words of the summed dimension per pass over a block's tiles: 256 words of a panel are 64 KiB with AVX-512, which stay
// in the L2 cache while all the tiles of the block read them.
static const long DEPTH = 256;

// Words of two rows, without bounds: the fast case of column_words.
static inline words pair_words(const bf16* upper, const bf16* lower) {
    return extend(*(const halves*)upper) | extend(*(const halves*)lower) << 16;
}

// Packs rows 2 k and 2 k + 1 of x (depth, size): words of `width` columns; beyond depth or size they are 0.
template <long width>
static inline void pair_rows(const bf16* x, long row, long k, long depth, long size, word* out) {
    const bf16 *upper = x + 2 * k * row, *lower = 2 * k + 1 < depth ? upper + row : nullptr;
    bool whole = lower && width <= size;
    for (long i = 0; i < width; i += VECTOR)
        *(words*)(out + i) = whole ? pair_words(upper + i, lower + i) : column_words(upper, lower, i, size);
}

// Packs a right matrix x (depth, size), rows `row` elements apart, into panels of (words, LANES). The loop over rows is
// the outer one: each row is read once, in order. All threads must call it; each does a share and does not wait for the
// others.
static void pack_row_major(const bf16* x, long row, long depth, long size, word* out) {
    long count = (depth + 1) / 2;
#pragma omp for schedule(static) nowait
    for (long k = 0; k < count; k++)
        for (long first = 0; first < size; first += LANES)
            pair_rows<LANES>(x + first, row, k, depth, size - first, out + first * count + k * LANES);
}

// Packs the transpose of x (size, depth), rows `row` elements apart, into the same panels; fills `width` lanes of each.
// All threads must call it.
static void pack_column_major(const bf16* x, long row, long depth, long size, word* out, long width) {
    long count = (depth + 1) / 2;
#pragma omp for schedule(dynamic) nowait
    for (long first = 0; first < size; first += width)
        pack_along<Pairs>(Rows{x, row}, first, std::min(width, size - first), depth, out + first / width * count * LANES,
                   width, LANES);
}

// out (rows, columns) = a (rows, depth) b (depth, columns), rounded; plus `residual` (rows, columns), unless it is
// null. `.._row` is the distance between two stored rows; a transposed matrix is stored as the rows of its transpose.
// `b_offset` is the word of the space at which packed b begins; `block` the number of rows that are computed at once.
// The two are filled in by matmul_space. products.py writes this struct as 13 longs.
struct Product {
    const bf16 *a, *b, *residual;
    bf16* out;
    long rows, columns, depth, a_row, b_row, residual_row, out_row, b_offset, block;

    long words() const { return (depth + 1) / 2; }
    long panels() const { return (columns + LANES - 1) / LANES; }
    long blocks() const { return (rows + block - 1) / block; }
    long items() const { return panels() * blocks(); }
};

// The part of a result that one thread computes at once: a block of rows of one panel. Numbered block by block, so that
// successive items share a block of a transposed left matrix.
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

// Packs the right matrices, a shared one once. All threads must call it; they leave it together.
static void pack(const Product* products, long count, word* space, bool b_transposed) {
    for (long i = 0; i < count; i++) {
        const Product& p = products[i];
        if (i && p.b_offset == products[i - 1].b_offset) continue;
        if (b_transposed) pack_column_major(p.b, p.b_row, p.depth, p.columns, space + p.b_offset, LANES);
        else pack_row_major(p.b, p.b_row, p.depth, p.columns, space + p.b_offset);
    }
#pragma omp barrier
}

// sums (rows, LANES) = or += a block of left rows times a panel of `count` words.
static void multiply(Left<Pairs> left, const word* panel, long count, long rows, float* sums, bool add) {
    for (long k = 0; k < count; k += DEPTH, left.data += DEPTH * left.step)
        columns<4>(left, panel + k * LANES, LANES, sums, LANES, rows, std::min(DEPTH, count - k), add || k > 0);
}

// Packs blocks of a transposed left matrix, and keeps the last one for the items that follow: 192 bytes for each
// element of the summed dimension, so that it stays in the thread's L2 cache. One per thread.
struct BlockPacker {
    word* space;          // of this thread
    const Product* packed;  // the product and the first row of the block in it
    long row;

    Left<Pairs> operator()(const Product& p, const Item& item) {
        for (long k = 0; k < p.words() && !(packed == &p && row == item.row); k++)
            pair_rows<PACKED_BLOCK>(p.a + item.row, p.a_row, k, p.depth, p.rows - item.row, space + k * PACKED_BLOCK);
        packed = &p, row = item.row;
        return {(const bf16*)space, 2, 2 * PACKED_BLOCK};
    }
};

extern "C" {

// The fastest way of multiplying on this processor, by its number in processor.py. 1: this kernel, which needs vector
// instructions for bfloat16 products. 2: torch, whose library uses matrix units (AMX) and ARM's instructions. 0: neither
// exists, and torch multiplies in float32.
long bfloat16_products() {
#if defined(__AMX_BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    return 2;
#elif defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}

// The number of words that matmul needs as scratch space; fills in each product's b_offset and block. The packed right
// matrices come first, then one block per thread if left matrices are transposed.
long matmul_space(Product* products, long count, long a_transposed) {
    long words = 0;
    for (long i = 0; i < count; i++) {
        Product& p = products[i];
        // Blocks of about equal size, and enough of them, so that all threads have about as much to do.
        long most = p.panels() * p.rows < FULL_WORK * omp_get_max_threads() ? BLOCK : PACKED_BLOCK;
        long blocks = (p.rows + most - 1) / most;
        p.block = a_transposed ? ((p.rows + blocks - 1) / blocks + ROWS - 1) / ROWS * ROWS : BLOCK;
        bool shared = i && same_right(p, products[i - 1]);
        p.b_offset = shared ? products[i - 1].b_offset : words;
        if (!shared) words += p.words() * p.panels() * LANES;
    }
    return words + (a_transposed ? omp_get_max_threads() * products->words() * PACKED_BLOCK : 0);
}

// Computes products that are all transposed alike. Left and right are not both transposed; the depth is even unless
// left is transposed. Either all products have the same result, which becomes their sum, or each has its own.
// Transposed left matrices all have the same depth: their threads' blocks need equal space.
void matmul(const Product* products, long count, word* space, long words, long a_transposed, long b_transposed) {
    bool summed = count > 1 && products[0].out == products[1].out;
    long items = 0;
    for (long i = 0; i < (summed ? 1 : count); i++) items += products[i].items();
#pragma omp parallel
    {
        BlockPacker pack_block{space + words - (omp_get_thread_num() + 1) * products->words() * PACKED_BLOCK,
                               nullptr, 0};
        pack(products, count, space, b_transposed);
#pragma omp for schedule(guided, a_transposed ? PANELS_PER_PACKING : 1)
        for (long number = 0; number < items; number++) {
            // Items are numbered through all products: find the product and the number within it.
            const Product* p = products;
            long own = number;
            while (own >= p->items()) own -= p++->items();
            Item item(*p, own);
            alignas(BYTES) float sums[PACKED_BLOCK * LANES];
            for (long i = 0; i < (summed ? count : 1); i++) {
                Left<Pairs> left = a_transposed ? pack_block(p[i], item)
                                         : Left<Pairs>{p[i].a + item.row * p[i].a_row, p[i].a_row};
                const word* panel = space + p[i].b_offset + item.column * p[i].words();
                multiply(left, panel, p[i].words(), item.rows, sums, i > 0);
            }
            for (long r = 0; r < item.rows; r++)
                for (long i = 0; i < item.columns; i += VECTOR) {
                    long row = item.row + r, column = item.column + i, n = item.columns - i;
                    floats result = at(sums + r * LANES + i);
                    // Rounded before the residual is added: the same bits as in two steps, product and sum.
                    if (p->residual) result = rounded(result) + load(p->residual + row * p->residual_row + column, n);
                    store(p->out + row * p->out_row + column, result, n);
                }
        }
    }
}

// The number of words that matmul_swiglu needs as scratch space.
long matmul_swiglu_space(long columns, long depth) { return (columns + FEW - 1) / FEW * LANES * ((depth + 1) / 2); }

// x (rows, depth), gate and up (columns, depth) -> y = silu(x gate') * (x up') (rows, columns). The two products are
// written to gate_out and up_out unless these are null. Rows of x, gate and up are `.._row` elements apart; the others
// are contiguous. Each panel holds FEW columns of gate and the same ones of up: both factors of an element of y are in
// the same block of sums.
void matmul_swiglu(const bf16* x, const bf16* gate, const bf16* up, bf16* gate_out, bf16* up_out, bf16* y,
                   word* space, long rows, long columns, long depth, long x_row, long gate_row, long up_row) {
    long count = (depth + 1) / 2, panels = (columns + FEW - 1) / FEW, blocks = (rows + BLOCK - 1) / BLOCK;
#pragma omp parallel
    {
        pack_column_major(gate, gate_row, depth, columns, space, FEW);
        pack_column_major(up, up_row, depth, columns, space + FEW, FEW);
#pragma omp barrier
#pragma omp for schedule(guided)
        for (long item = 0; item < blocks * panels; item++) {
            long first = item / panels * BLOCK, panel = item % panels;
            alignas(BYTES) float sums[BLOCK * LANES];
            multiply(Left<Pairs>{x + first * x_row, x_row}, space + panel * count * LANES, count,
                     std::min(BLOCK, rows - first), sums, false);
            for (long r = 0; r < std::min(BLOCK, rows - first); r++)
                for (long i = 0; i < FEW; i += VECTOR) {
                    long at_column = panel * FEW + i, n = columns - at_column, to = (first + r) * columns + at_column;
                    floats factor = at(sums + r * LANES + i), other = at(sums + r * LANES + FEW + i);
                    if (n <= 0) break;
                    if (gate_out) store(gate_out + to, factor, n);
                    if (up_out) store(up_out + to, other, n);
                    store(y + to, swiglu(rounded(factor), rounded(other)), n);
                }
        }
    }
}
}
