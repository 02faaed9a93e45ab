// How attention.cpp walks through a pack: pairs, blocks of queries, the keys that each block sees, and the causal mask.
//
// Also the layouts that it converts between: keys or values transposed, results transposed back.

#pragma once
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>
#include "transpose.h"

// Keys of a block: the float32 scores of a block (KEYS x LANES, 30 KiB with AVX-512) fit an L1 cache of 32 KiB. A
// multiple of ROWS, so that tiles are whole, and even, since keys are the summed dimension of v' p'.
static const long KEYS = 120;

// Where the processor's instruction for pairs is slow or missing, attention multiplies float32 numbers. Processors with
// matrix units (AMX) take twice as long for a pair as for a float32 number.
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
typedef Pairs Form;
#else
typedef Singles Form;
#endif
typedef Form::Element Element;
// Float32 scores can be replaced, one by one, by what is computed from them.
static const bool IN_PLACE = Form::DEPTH == 1;

// Words of n elements of the summed dimension.
static inline long depth(long n) { return (n + Form::DEPTH - 1) / Form::DEPTH; }

static inline long even(long n) { return (n + 1) & ~1L; }
static inline long whole_lanes(long n) { return (n + FEW - 1) / FEW * FEW; }

// Mask of the lanes of vector v whose number among all lanes is `visible` or larger.
static inline ints seen(long visible, int v) {
    static const int32_t numbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return *(const ints*)numbers >= (int32_t)(visible - v * VECTOR);
}

// Prefetches rows that the next block of queries will read, one request per cache line of 32 elements.
static void prefetch(const Rows& x, long first, long last, long size) {
    for (long t = first; t < std::min(first + LANES, last); t++)
        for (long d = 0; d < size; d += 32) __builtin_prefetch(x.at(t) + d);
}

// One pair of the pack: tokens [start, fork) are the shared prefix, [fork, middle) chosen, [middle, end) rejected. In
// the transposed copy of its keys or values (size, width) the rejected part starts at an even column, since columns may
// be read in words of two.
struct Pair {
    long start, fork, middle, end;
    // Proportional to the number of scores of both rows, to sort by.
    long cost() const {
        long prefix = fork - start, chosen = middle - start, rejected = prefix + end - middle;
        return chosen * chosen + rejected * rejected - prefix * prefix;
    }
    long length() const { return end - start; }
    long rejected_column() const { return even(middle - start); }
    // Rows are an odd number of cache lines apart. A power of two would map them all to the same few sets of the cache.
    long width() const { return (rejected_column() + even(end - middle) + 31) / 64 * 64 + 32; }
};

// x (tokens, size), the tokens of a pair -> out (size, width).
NO_INLINE static void transpose(const Rows& x, const Pair& pair, long size, Element* out) {
    long width = pair.width();
    const long parts[][3] = {{pair.start, pair.middle, 0}, {pair.middle, pair.end, pair.rejected_column()}};
    for (auto [first, last, column] : parts) {
        long count = depth(last - first);
        transpose_words(count, size,
                        [&, first = first, last = last](long i, long d) {
                            long t = first + Form::DEPTH * i;
                            if (t >= last) return words{};
                            if (Form::DEPTH == 1) return row_singles(x.at(t), d, size);
                            return column_words(x.at(t), t + 1 < last ? x.at(t + 1) : nullptr, d, size);
                        },
                        [&, column = column](long d, long i, words w) {
                            if (d < size)
                                memcpy(out + d * width + column + Form::DEPTH * i, &w,
                                       std::min(VECTOR, count - i) * sizeof(word));
                        });
    }
}

// Keys or values of a pair as a left matrix, addressed by token of the pack: in place, or a copy in float32.
template <typename Form>
class LeftRows {
    std::vector<typename Form::Element> copy;
    Left<Form> rows;

  public:
    LeftRows(const Rows& x, const Pair& pair, long size) {
        if constexpr (Form::DEPTH == 2) {
            rows = {x.data, x.token};
        } else {
            copy.resize(pair.length() * size);
            for (long t = 0; t < pair.length(); t++)
                for (long d = 0; d < size; d += VECTOR)
                    store(&copy[t * size + d], load(x.at(pair.start + t) + d, size - d), size - d);
            rows = {copy.data() - pair.start * size, size};
        }
    }
    Left<Form> operator()(long token) const { return {rows.data + token * rows.row, rows.row}; }
};

// Keys [first, last) that queries of a block see, and the column of the first one in the transposed copy.
struct Span {
    long first, last, column;
};

// Calls block(number of vectors, first query, number of queries, spans, number of spans) for blocks of LANES queries of
// a pair. The number of vectors is a type, so that each block's loops are compiled for it: few queries use the narrow
// tile.
template <typename Block>
static void for_queries(const Pair& pair, Block block) {
    auto call = [&](long first, long n, const Span* spans, int num_spans) {
        if (n > FEW) block(std::integral_constant<int, 4>(), first, n, spans, num_spans);
        else block(std::integral_constant<int, 2>(), first, n, spans, num_spans);
    };
    for (long first = pair.start; first < pair.middle; first += LANES) {
        long last = std::min(first + LANES, pair.middle);
        Span own[] = {{pair.start, last, 0}};
        call(first, last - first, own, 1);
    }
    for (long first = pair.middle; first < pair.end; first += LANES) {
        long last = std::min(first + LANES, pair.end);
        Span both[] = {{pair.start, pair.fork, 0}, {pair.middle, last, pair.rejected_column()}};
        call(first, last - first, both, 2);
    }
}

// Calls block(first key, number of keys, first column, lanes to skip) for blocks of the spans' keys and a block of
// queries that begins at token `query`. Keys before that are seen by all its queries. The others are the queries' own
// tokens: they come in blocks of FEW, and the queries before them, which do not see them, are skipped.
template <typename Block>
static void for_keys(const Span* spans, int num_spans, long query, Block block) {
    for (const Span* span = spans; span < spans + num_spans; span++)
        for (long key = span->first, keys; key < span->last; key += keys) {
            bool own = key >= query;
            keys = std::min(own ? FEW : KEYS, (own || span->last <= query ? span->last : query) - key);
            block(key, keys, span->column + key - span->first, own ? (key - query) / FEW * FEW : 0);
        }
}

// Causal mask on scores (keys, lanes): -infinity where the key comes after the query. `key` and `query` are the first
// tokens.
static void mask_later_keys(float* scores, long keys, long lanes, long key, long query) {
    for (long j = std::max(0L, query - key); j < keys; j++)
        for (int v = 0; v < lanes / VECTOR; v++) {
            float* x = scores + j * lanes + v * VECTOR;
            *(floats*)x = seen(key + j - query, v) ? at(x) : all(-INFINITY);
        }
}

// Writes rows r and r + 1 of a right matrix whose rows are `row` words apart.
static inline void put_rows(word* out, long r, long row, floats upper, floats lower) {
    if constexpr (Form::DEPTH == 2) {
        *(words*)(out + r / 2 * row) = round_pair(upper, lower);
    } else {
        *(floats*)(out + r * row) = upper;
        *(floats*)(out + (r + 1) * row) = lower;
    }
}

// x (size, lanes) times factor (lanes), transposed and rounded -> out (n, size), rows `token` elements apart.
template <int V>
NO_INLINE static void write_transposed(const float* x, const floats* factor, long n, long size, bf16* out, long token) {
    constexpr long lanes = V * VECTOR;
    transpose_words(size / 2, n,
                    [&](long d, long i) {
                        words w{};
                        const float* upper = x + 2 * d * lanes + i;
                        if (d < size / 2)
                            w = round_pair(at(upper) * factor[i / VECTOR], at(upper + lanes) * factor[i / VECTOR]);
                        return w;
                    },
                    [&](long i, long d, words w) {
                        if (i < n) memcpy(out + i * token + 2 * d, &w, std::min(VECTOR, size / 2 - d) * sizeof(word));
                    });
}

// The pairs of a pack, the most expensive ones first: a long one that starts last would leave the other threads idle.
static std::vector<Pair> read_pairs(const int64_t* segments, long count) {
    std::vector<Pair> out;
    long start = 0;
    for (long i = 0; i < count; i++) {
        long fork = start + segments[3 * i], middle = fork + segments[3 * i + 1], end = middle + segments[3 * i + 2];
        out.push_back({start, fork, middle, end});
        start = end;
    }
    std::stable_sort(out.begin(), out.end(), [](const Pair& a, const Pair& b) { return a.cost() > b.cost(); });
    return out;
}

// The largest measure(pair).
template <typename Measure>
static long most(const std::vector<Pair>& pairs, Measure measure) {
    long out = 0;
    for (const Pair& pair : pairs) out = std::max(out, measure(pair));
    return out;
}
