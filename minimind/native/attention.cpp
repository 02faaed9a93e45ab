// Attention over packs of preference pairs in bfloat16, sums in float32; scores stay in the core's first cache.
//
//     scores' = k q'        p' = softmax over the keys        out' = v' p'        blocks of keys for a block of queries
//
// Everything is held the other way up (') : a row for each key, a lane for each query. The softmax then runs down the
// rows, and what one product gives is, rounded, what the next one takes. It is put together block by block: what was
// summed is scaled down whenever a block has a larger score (Milakov and Gimelshein, 2018).
//
// The backward makes the probabilities again from each query's largest score and the sum of its exponentials (Dao et
// al., 2022). Its cores share the work by pairs and key heads, since all queries of a pair add to its keys.

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>
#include "transpose.h"

// Keys of a block, whole rows and pairs: what is made of them stays near the core.
static const long KEYS = 120;

static inline long even(long n) { return (n + 1) & ~1L; }
static inline long whole_lanes(long n) { return (n + FEW - 1) / FEW * FEW; }

// Lanes of vector v from number `visible` on.
static inline ints seen(long visible, int v) {
    static const int32_t numbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return *(const ints*)numbers >= (int32_t)(visible - v * VECTOR);
}

// Begins to fetch rows that the next block of queries will read.
static void fetch(const Rows& x, long first, long last, long size) {
    for (long t = first; t < std::min(first + LANES, last); t++)
        for (long d = 0; d < size; d += 32) __builtin_prefetch(x.at(t) + d);
}

// One pair: tokens [start, fork) are shared, [fork, middle) chosen, [middle, end) rejected. In a transposed copy of its
// keys or values (size, width) each row's part starts at an even column, so that words can be read from it.
struct Pair {
    long start, fork, middle, end;
    // In proportion to the scores of both rows.
    long cost() const {
        long prefix = fork - start, chosen = middle - start, rejected = prefix + end - middle;
        return chosen * chosen + rejected * rejected - prefix * prefix;
    }
    long length() const { return end - start; }
    long rejected_place() const { return even(middle - start); }
    // An odd number of cache lines: rows that lie a power of two apart would push each other out.
    long width() const { return (rejected_place() + even(end - middle) + 31) / 64 * 64 + 32; }
};

APART static void transpose(const Rows& x, const Pair& pair, long size, bf16* out) {
    long width = pair.width();
    const long parts[][3] = {{pair.start, pair.middle, 0}, {pair.middle, pair.end, pair.rejected_place()}};
    for (auto [first, last, place] : parts) {
        long count = even(last - first) / 2;
        turn(count, size,
             [&, first = first, last = last](long i, long d) {
                 long t = first + 2 * i;
                 return t < last ? column_words(x.at(t), t + 1 < last ? x.at(t + 1) : nullptr, d, size) : words{};
             },
             [&, place = place](long d, long i, words w) {
                 if (d < size) memcpy(out + d * width + place + 2 * i, &w, std::min(VECTOR, count - i) * sizeof(pair32));
             });
    }
}

// Keys [first, last) that a block of queries sees, and their first column in the transposed copy.
struct Span {
    long first, last, place;
};

// Calls block(vectors of lanes, first query, queries, spans, number of spans) for all of a pair's queries.
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
        Span both[] = {{pair.start, pair.fork, 0}, {pair.middle, last, pair.rejected_place()}};
        call(first, last - first, both, 2);
    }
}

// Calls block(first key, keys, first column, lanes before those that see any of them) for all keys of spans, for the
// queries from number `query` on. Of a query's own block later queries see more.
template <typename Block>
static void for_keys(const Span* spans, int num_spans, long query, Block block) {
    for (const Span* span = spans; span < spans + num_spans; span++)
        for (long key = span->first, keys; key < span->last; key += keys) {
            bool own = key >= query;
            keys = std::min(own ? FEW : KEYS, (own || span->last <= query ? span->last : query) - key);
            block(key, keys, span->place + key - span->first, own ? (key - query) / FEW * FEW : 0);
        }
}

// Puts -infinity where a query does not see a key: scores (keys, lanes), each query one key more than the one before.
static void hide(float* scores, long keys, long lanes, long key, long query) {
    for (long j = std::max(0L, query - key); j < keys; j++)
        for (int v = 0; v < lanes / VECTOR; v++) {
            float* x = scores + j * lanes + v * VECTOR;
            *(floats*)x = seen(key + j - query, v) ? at(x) : all(-INFINITY);
        }
}

// x (size, lanes) times factor (lanes) -> out (n, size), rows `token` elements apart.
template <int V>
APART static void write_turned(const float* x, const floats* factor, long n, long size, bf16* out, long token) {
    constexpr long lanes = V * VECTOR;
    turn(size / 2, n,
         [&](long d, long i) {
             words w{};
             const float* upper = x + 2 * d * lanes + i;
             if (d < size / 2)
                 store_pairs((pair32*)&w, at(upper) * factor[i / VECTOR], at(upper + lanes) * factor[i / VECTOR]);
             return w;
         },
         [&](long i, long d, words w) {
             if (i < n) memcpy(out + i * token + 2 * d, &w, std::min(VECTOR, size / 2 - d) * sizeof(pair32));
         });
}

// Pairs by falling cost: what takes longest starts first.
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

template <typename Measure>
static long most(const std::vector<Pair>& pairs, Measure measure) {
    long out = 0;
    for (const Pair& pair : pairs) out = std::max(out, measure(pair));
    return out;
}

extern "C" {

// q (heads, T, size), k and v (kv heads, T, size), wherever heads and tokens lie: `strides` (3, 2) has how far apart each
// one's are. segments (count, 3). -> out (T, heads, size) contiguous; sums (heads, T, 2): each query's largest score and
// the logarithm of the sum of exponentials above it.
void packed_attention(const bf16* q, const bf16* k, const bf16* v, const int64_t* strides, const int64_t* segments,
                      long count, long heads, long kv_heads, long tokens, long size, float scaling, bf16* out,
                      float* sums) {
    const float base_two = scaling * 1.442695041f;
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
                fetch(query, first + n, pair.end, size);
                bool begun = false;
                for_keys(spans, num_spans, first, [&](long j, long keys, long place, long skip) {
                    product(key.at(j), key.token, queries.data() + skip, lanes, scores.data() + skip, lanes, keys,
                            lanes - skip, size / 2, false);
                    hide(scores.data(), keys, lanes, j, first);
                    for (int v = skip / VECTOR; v < V; v++) {
                        const float* x = scores.data() + v * VECTOR;
                        floats before = largest[v], sum{};
                        floats top = at(x);
                        for (long r = 1; r < keys; r++) top = larger(at(x + r * lanes), top);
                        largest[v] = larger(top, largest[v]);
                        // Subtracted before they are scaled: the largest is its own equal however large it is.
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
                    product(values.data() + place, width, p.data() + skip, lanes, result.data() + skip, lanes, size,
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
                write_turned<V>(result.data(), total, n, size, out + (first * heads + head) * size, heads * size);
            });
        }
    }
}

// What the forward had and gave, and grad (T, heads, size) contiguous -> grad_q, grad_k, grad_v in the shapes of q, k, v;
// their strides follow those of the three.
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
        std::vector<bf16> keys_turned(size * widest), p(KEYS * LANES), grad_s(KEYS * LANES);
        std::vector<float> to_keys(longest * padded), to_values(longest * padded), to_queries(size * LANES);
        std::vector<float> scores(KEYS * LANES), grad_p(KEYS * LANES);
        std::vector<pair32> queries(size / 2 * LANES), grads(size / 2 * LANES), grad_s_pairs(KEYS / 2 * LANES);
        std::vector<pair32> queries_down(LANES / 2 * padded), grads_down(LANES / 2 * padded);
#pragma omp for schedule(dynamic)
        for (long item = 0; item < count * kv_heads; item++) {
            const Pair& pair = pairs[item / kv_heads];
            long kv_head = item % kv_heads, width = pair.width(), length = pair.length();
            Rows key{k + kv_head * strides[2], strides[3]}, value{v + kv_head * strides[4], strides[5]};
            transpose(key, pair, size, keys_turned.data());
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
                    for (const Rows* rows : {&query, &own_grad, &own_out}) fetch(*rows, first + n, pair.end, size);
                    std::fill_n(to_queries.data(), size * lanes, 0.0f);
                    for_keys(spans, num_spans, first, [&](long j, long keys, long place, long skip) {
                        product(key.at(j), key.token, queries.data() + skip, lanes, scores.data() + skip, lanes, keys,
                                lanes - skip, size / 2, false);
                        product(value.at(j), value.token, grads.data() + skip, lanes, grad_p.data() + skip, lanes, keys,
                                lanes - skip, size / 2, false);
                        hide(scores.data(), keys, lanes, j, first);
                        for (long r = 0; r < keys; r += 2)
                            for (int v = skip / VECTOR; v < V; v++) {
                                floats ds[2]{};
                                for (long row = r; row < std::min(r + 2, keys); row++) {
                                    long i = row * lanes + v * VECTOR;
                                    // One after the other: their sum would lose the small one where scores are large.
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
                        product(&keys_turned[place], width, &grad_s_pairs[skip], lanes, &to_queries[skip], lanes, size,
                                lanes - skip, even(keys) / 2, true);
                    });
                    write_turned<V>(to_queries.data(), factor, n, size,
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
