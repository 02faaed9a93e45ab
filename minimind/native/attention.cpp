// Attention over packs of preference pairs in bfloat16, with sums in float32; scores never leave the L1 cache.
//
//     scores' = k q'        p' = softmax over the keys        out' = v' p'        a block of queries, by blocks of keys
//
// All three matrices are computed transposed ('): one row per key, one lane per query. The softmax then runs over rows,
// lane by lane, and p', rounded and packed, is the right matrix of the next product. Blocks of keys are combined by the
// online softmax: when a block has a larger score, the sums so far are scaled down (Milakov and Gimelshein, 2018).
//
// The backward recomputes the probabilities from each query's largest score and the logarithm of its sum of
// exponentials (Dao et al., 2022). Threads share the work by pair and key head, because all queries of a pair that use
// a key head add to the gradients of its keys: no two threads write to the same gradient.

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>
#include "transpose.h"

// Keys of a block: the float32 scores of a block (KEYS x LANES, 30 KiB with AVX-512) fit an L1 cache of 32 KiB. A
// multiple of ROWS, so that tiles are whole, and even, since keys are the summed dimension of v' p'.
static const long KEYS = 120;

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
// the transposed copy of its keys or values (size, width) the rejected part starts at an even column, since columns are
// read in words of two.
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
NO_INLINE static void transpose(const Rows& x, const Pair& pair, long size, bf16* out) {
    long width = pair.width();
    const long parts[][3] = {{pair.start, pair.middle, 0}, {pair.middle, pair.end, pair.rejected_column()}};
    for (auto [first, last, column] : parts) {
        long count = even(last - first) / 2;
        transpose_words(count, size,
                        [&, first = first, last = last](long i, long d) {
                            long t = first + 2 * i;
                            return t < last ? column_words(x.at(t), t + 1 < last ? x.at(t + 1) : nullptr, d, size)
                                            : words{};
                        },
                        [&, column = column](long d, long i, words w) {
                            if (d < size)
                                memcpy(out + d * width + column + 2 * i, &w,
                                       std::min(VECTOR, count - i) * sizeof(pair32));
                        });
    }
}

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

// x (size, lanes) times factor (lanes), transposed and rounded -> out (n, size), rows `token` elements apart.
template <int V>
NO_INLINE static void write_transposed(const float* x, const floats* factor, long n, long size, bf16* out, long token) {
    constexpr long lanes = V * VECTOR;
    transpose_words(size / 2, n,
                    [&](long d, long i) {
                        words w{};
                        const float* upper = x + 2 * d * lanes + i;
                        if (d < size / 2)
                            store_pairs((pair32*)&w, at(upper) * factor[i / VECTOR],
                                        at(upper + lanes) * factor[i / VECTOR]);
                        return w;
                    },
                    [&](long i, long d, words w) {
                        if (i < n) memcpy(out + i * token + 2 * d, &w, std::min(VECTOR, size / 2 - d) * sizeof(pair32));
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

extern "C" {

// q (heads, T, size), k and v (kv heads, T, size); `strides` (3, 2) are the distances, in elements, between their heads
// and between their tokens. segments (count, 3): the lengths of each pair's parts. -> out (T, heads, size), contiguous;
// sums (heads, T, 2) float32, saved for backward: each query's largest score and the base-2 logarithm of its sum of
// exponentials relative to that.
void packed_attention(const bf16* q, const bf16* k, const bf16* v, const int64_t* strides, const int64_t* segments,
                      long count, long heads, long kv_heads, long tokens, long size, float scaling, bf16* out,
                      float* sums) {
    const float base_two = scaling * 1.442695041f;  // e^(scaling x) = 2^(base_two x)
    std::vector<Pair> pairs = read_pairs(segments, count);
    long widest = most(pairs, [](const Pair& pair) { return pair.width(); });
#pragma omp parallel
    {
        std::vector<bf16> values(size * widest);
        std::vector<float> scores(KEYS * LANES), result(size * LANES);
        std::vector<pair32> queries(size / 2 * LANES), p(KEYS / 2 * LANES);
#pragma omp for schedule(dynamic)
        for (long item = 0; item < count * heads; item++) {
            const Pair& pair = pairs[item / heads];
            long head = item % heads, kv_head = head / (heads / kv_heads), width = pair.width();
            Rows query{q + head * strides[0], strides[1]};
            Rows key{k + kv_head * strides[2], strides[3]}, value{v + kv_head * strides[4], strides[5]};
            transpose(value, pair, size, values.data());
            for_queries(pair, [&](auto vectors, long first, long n, const Span* spans, int num_spans) {
                constexpr int V = vectors;
                constexpr long lanes = V * VECTOR;
                floats largest[V], total[V];
                for (int v = 0; v < V; v++) largest[v] = all(-INFINITY), total[v] = floats{};
                pair_along(query, first, n, size, queries.data(), lanes, lanes);
                prefetch(query, first + n, pair.end, size);
                bool begun = false;
                for_keys(spans, num_spans, first, [&](long j, long keys, long column, long skip) {
                    product(key.at(j), key.token, queries.data() + skip, lanes, scores.data() + skip, lanes, keys,
                            lanes - skip, size / 2, false);
                    mask_later_keys(scores.data(), keys, lanes, j, first);
                    for (int v = skip / VECTOR; v < V; v++) {
                        const float* x = scores.data() + v * VECTOR;
                        floats before = largest[v], sum{};
                        floats top = at(x);
                        for (long r = 1; r < keys; r++) top = larger(at(x + r * lanes), top);
                        largest[v] = larger(top, largest[v]);
                        // The difference first, then the scale: the largest score then gives exactly 2^0, of any size.
                        for (long r = 0; r < keys; r += 2) {
                            floats upper = power_of_two((at(x + r * lanes) - largest[v]) * base_two), lower{};
                            if (r + 1 < keys) lower = power_of_two((at(x + (r + 1) * lanes) - largest[v]) * base_two);
                            sum += upper + lower;
                            store_pairs(p.data() + r / 2 * lanes + v * VECTOR, upper, lower);
                        }
                        floats factor = begun ? power_of_two((before - largest[v]) * base_two) : floats{};
                        total[v] = total[v] * factor + sum;
                        if (begun)
                            for (long d = 0; d < size; d++) {
                                float* y = result.data() + d * lanes + v * VECTOR;
                                *(floats*)y = at(y) * factor;
                            }
                    }
                    product(values.data() + column, width, p.data() + skip, lanes, result.data() + skip, lanes, size,
                            lanes - skip, even(keys) / 2, begun);
                    begun = true;
                });
                for (int v = 0; v < V; v++) {
                    for (long i = 0; i < VECTOR && v * VECTOR + i < n; i++) {
                        float* sum = sums + 2 * (head * tokens + first + v * VECTOR + i);
                        sum[0] = largest[v][i], sum[1] = std::log2(total[v][i]);
                    }
                    total[v] = 1.0f / total[v];
                }
                write_transposed<V>(result.data(), total, n, size, out + (first * heads + head) * size, heads * size);
            });
        }
    }
}

// The forward's inputs and outputs, and grad (T, heads, size), contiguous -> grad_q, grad_k, grad_v in the shapes of q,
// k, v. `strides` (6, 2) are those of q, k, v and of the three gradients.
//
//     grad_v = p' grad      grad_s = p (grad v' - delta)      grad_k = scaling grad_s' q      grad_q = scaling grad_s k
//
// where delta, the sum over channels of grad * out, is the mean of grad v' under p: the softmax's own gradient.
void packed_attention_backward(const bf16* q, const bf16* k, const bf16* v, const int64_t* strides,
                               const int64_t* segments, long count, long heads, long kv_heads, long tokens, long size,
                               float scaling, const bf16* out, const float* sums, const bf16* grad, bf16* grad_q,
                               bf16* grad_k, bf16* grad_v) {
    const float base_two = scaling * 1.442695041f;
    std::vector<Pair> pairs = read_pairs(segments, count);
    long widest = most(pairs, [](const Pair& pair) { return pair.width(); });
    long longest = most(pairs, [](const Pair& pair) { return pair.length(); });
    long group = heads / kv_heads, padded = whole_lanes(size);
#pragma omp parallel
    {
        std::vector<bf16> keys_transposed(size * widest), p(KEYS * LANES), grad_s(KEYS * LANES);
        std::vector<float> to_keys(longest * padded), to_values(longest * padded), to_queries(size * LANES);
        std::vector<float> scores(KEYS * LANES), grad_p(KEYS * LANES);
        std::vector<pair32> queries(size / 2 * LANES), grads(size / 2 * LANES), grad_s_pairs(KEYS / 2 * LANES);
        std::vector<pair32> queries_down(LANES / 2 * padded), grads_down(LANES / 2 * padded);
#pragma omp for schedule(dynamic)
        for (long item = 0; item < count * kv_heads; item++) {
            const Pair& pair = pairs[item / kv_heads];
            long kv_head = item % kv_heads, width = pair.width(), length = pair.length();
            Rows key{k + kv_head * strides[2], strides[3]}, value{v + kv_head * strides[4], strides[5]};
            transpose(key, pair, size, keys_transposed.data());
            std::fill_n(to_keys.data(), length * padded, 0.0f);
            std::fill_n(to_values.data(), length * padded, 0.0f);
            for (long head = kv_head * group; head < (kv_head + 1) * group; head++) {
                Rows query{q + head * strides[0], strides[1]}, own_grad{grad + head * size, heads * size};
                Rows own_out{out + head * size, heads * size};
                for_queries(pair, [&](auto vectors, long first, long n, const Span* spans, int num_spans) {
                    constexpr int V = vectors;
                    constexpr long lanes = V * VECTOR;
                    floats factor[V];
                    float delta[lanes]{}, largest[lanes]{}, log_total[lanes];
                    std::fill_n(log_total, lanes, INFINITY);
                    std::fill_n(factor, V, all(scaling));
                    for (long i = 0; i < n; i++) {
                        const bf16 *g = own_grad.at(first + i), *o = own_out.at(first + i);
                        floats dot{};
                        for (long d = 0; d < size; d += VECTOR) dot += load(g + d, size - d) * load(o + d, size - d);
                        delta[i] = sum(dot);
                        const float* kept = sums + 2 * (head * tokens + first + i);
                        largest[i] = kept[0], log_total[i] = kept[1];
                    }
                    pair_along(query, first, n, size, queries.data(), lanes, lanes);
                    pair_along(own_grad, first, n, size, grads.data(), lanes, lanes);
                    pair_down(query, first, n, size, queries_down.data(), lanes, padded);
                    pair_down(own_grad, first, n, size, grads_down.data(), lanes, padded);
                    for (const Rows* rows : {&query, &own_grad, &own_out}) prefetch(*rows, first + n, pair.end, size);
                    std::fill_n(to_queries.data(), size * lanes, 0.0f);
                    for_keys(spans, num_spans, first, [&](long j, long keys, long column, long skip) {
                        product(key.at(j), key.token, queries.data() + skip, lanes, scores.data() + skip, lanes, keys,
                                lanes - skip, size / 2, false);
                        product(value.at(j), value.token, grads.data() + skip, lanes, grad_p.data() + skip, lanes, keys,
                                lanes - skip, size / 2, false);
                        mask_later_keys(scores.data(), keys, lanes, j, first);
                        for (long r = 0; r < keys; r += 2)
                            for (int v = skip / VECTOR; v < V; v++) {
                                floats ds[2]{};
                                for (long row = r; row < std::min(r + 2, keys); row++) {
                                    long i = row * lanes + v * VECTOR;
                                    // Two subtractions: the sum of a large score and a small logarithm would lose the
                                    // latter.
                                    floats above = (at(&scores[i]) - at(&largest[v * VECTOR])) * base_two;
                                    floats own = power_of_two(above - at(&log_total[v * VECTOR]));
                                    ds[row - r] = own * (at(&grad_p[i]) - at(&delta[v * VECTOR]));
                                    store(&p[i], own);
                                    store(&grad_s[i], ds[row - r]);
                                }
                                store_pairs(&grad_s_pairs[r / 2 * lanes + v * VECTOR], ds[0], ds[1]);
                            }
                        long to = (j - pair.start) * padded, from = skip / 2 * padded;
                        product(&p[skip], lanes, &grads_down[from], padded, &to_values[to], padded, keys, padded,
                                (lanes - skip) / 2, true);
                        product(&grad_s[skip], lanes, &queries_down[from], padded, &to_keys[to], padded, keys, padded,
                                (lanes - skip) / 2, true);
                        product(&keys_transposed[column], width, &grad_s_pairs[skip], lanes, &to_queries[skip], lanes,
                                size, lanes - skip, even(keys) / 2, true);
                    });
                    write_transposed<V>(to_queries.data(), factor, n, size,
                                    grad_q + head * strides[6] + first * strides[7], strides[7]);
                });
            }
            for (long t = 0; t < length; t++) {
                bf16* to_key = grad_k + kv_head * strides[8] + (pair.start + t) * strides[9];
                bf16* to_value = grad_v + kv_head * strides[10] + (pair.start + t) * strides[11];
                for (long d = 0; d < size; d += VECTOR) {
                    store(to_key + d, at(&to_keys[t * padded + d]) * scaling, size - d);
                    store(to_value + d, at(&to_values[t * padded + d]), size - d);
                }
            }
        }
    }
}
}
