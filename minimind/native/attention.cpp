// Attention over packs of preference pairs in bfloat16, sums in float32; scores stay in the caches, for rows of some
// thousand tokens in the core's own.
//
//     scores' = k q'        p' = softmax over the keys        out' = v' p'        a block of queries at a time
//
// Everything is held the other way up (') : a row for each key, a lane for each query. The softmax then runs down the
// rows, and what one product gives is, rounded, what the next one takes.
//
// The backward makes the probabilities again from each query's largest score and the sum of its exponentials (Dao et
// al., 2022). Its cores share the work by pairs and key heads, since all queries of a pair add to its keys.

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>
#include "product.h"

// Keys of a block in the backward, whole rows: what is made of them stays near the core.
static const long KEYS = 120;

static inline long even(long n) { return (n + 1) & ~1L; }
static inline long whole_lanes(long n) { return (n + FEW - 1) / FEW * FEW; }

// Lanes of vector v from number `visible` on.
static inline ints seen(long visible, int v) {
    static const int32_t numbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return *(const ints*)numbers >= (int32_t)(visible - v * VECTOR);
}

// Tokens of one head: (tokens, size), rows `token` elements apart.
struct Rows {
    const bf16* data;
    long token;
    const bf16* at(long t) const { return data + t * token; }
};

// x (n, size) -> words (size / 2, width): pairs along a row; lanes from n on are 0.
static void pair_along(const Rows& x, long first, long n, long size, pair32* out, long width) {
    for (long i = 0; i < n; i++) {
        const bf16* row = x.at(first + i);
        for (long d = 0; d < size / 2; d++) memcpy(out + d * width + i, row + 2 * d, 4);
    }
    for (long d = 0; d < size / 2; d++)
        for (long i = n; i < width; i++) out[d * width + i] = 0;
}

// x (n, size) -> words (width / 2, size): pairs of successive rows; what is beyond n or size is 0.
static void pair_down(const Rows& x, long first, long n, long size, pair32* out, long width, long padded) {
    memset(out, 0, width / 2 * padded * sizeof(pair32));
    for (long i = 0; i < n; i += 2, out += padded) {
        const bf16 *upper = x.at(first + i), *lower = x.at(first + i + 1);
        if (i + 1 < n)
            for (long d = 0; d < size; d++) out[d] = upper[d] | (pair32)lower[d] << 16;
        else
            for (long d = 0; d < size; d++) out[d] = upper[d];
    }
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
    long rejected_place() const { return even(middle - start); }
    // An odd number of cache lines: rows that lie a power of two apart would push each other out.
    long width() const { return (rejected_place() + even(end - middle) + 31) / 64 * 64 + 32; }
};

// Keys [first, last) that a block of queries sees, and their first column in the transposed copy.
struct Span {
    long first, last, place;
};

static void transpose(const Rows& x, const Pair& pair, long size, bf16* out) {
    long width = pair.width();
    const long parts[][3] = {{pair.start, pair.middle, 0}, {pair.middle, pair.end, pair.rejected_place()}};
    for (auto [first, last, place] : parts)
        for (long t = first; t < last; t += 2) {
            const bf16 *upper = x.at(t), *lower = x.at(t + 1);
            bf16* to = out + place + t - first;
            for (long d = 0; d < size; d++) {
                pair32 word = upper[d] | (t + 1 < last ? (pair32)lower[d] << 16 : 0);
                memcpy(to + d * width, &word, 4);
            }
        }
}

// Calls block(vectors of lanes, first query, queries, spans, number of spans) for all of a pair's queries.
template <typename Block>
static void for_blocks(const Pair& pair, Block block) {
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

// x (size, lanes) times factor (lanes) -> out (n, size), rows `token` elements apart.
template <int V>
static void write_transposed(const float* x, const floats* factor, long n, long size, pair32* turned, bf16* out,
                             long token) {
    constexpr long lanes = V * VECTOR;
    for (long d = 0; d < size; d += 2)
        for (int v = 0; v < V; v++) {
            const float* upper = x + d * lanes + v * VECTOR;
            store_pairs(turned + d / 2 * lanes + v * VECTOR, at(upper) * factor[v], at(upper + lanes) * factor[v]);
        }
    for (long i = 0; i < n; i++, out += token)
        for (long d = 0; d < size / 2; d++) memcpy(out + 2 * d, turned + d * lanes + i, 4);
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

// e^(score * scaling - largest - log_total) in the lanes of vector v from number `visible` on, 0 before. Subtracted one
// after the other: the sum of both would lose the small one where scores are large.
static inline floats probabilities(const float* scores, float scaling, floats largest, floats log_total, long visible,
                                   int v) {
    return seen(visible, v) ? exponential(at(scores) * scaling - largest - log_total) : floats{};
}

extern "C" {

// q (heads, T, size), k and v (kv heads, T, size), wherever heads and tokens lie: `strides` (3, 2) has how far apart each
// one's are. segments (count, 3). -> out (T, heads, size) contiguous; sums (heads, T, 2): each query's largest score and
// the logarithm of the sum of exponentials above it.
void packed_attention(const bf16* q, const bf16* k, const bf16* v, const int64_t* strides, const int64_t* segments,
                      long count, long heads, long kv_heads, long tokens, long size, float scaling, bf16* out,
                      float* sums) {
    std::vector<Pair> sorted = read_pairs(segments, count);
#pragma omp parallel for schedule(dynamic)
    for (long item = 0; item < count * heads; item++) {
        const Pair& pair = sorted[item / heads];
        long head = item % heads, kv_head = head / (heads / kv_heads), width = pair.width();
        Rows query{q + head * strides[0], strides[1]};
        Rows key{k + kv_head * strides[2], strides[3]}, value{v + kv_head * strides[4], strides[5]};
        std::vector<bf16> values(size * width);
        transpose(value, pair, size, values.data());
        std::vector<float> scores(width * LANES), result(size * LANES);
        std::vector<pair32> queries(size / 2 * LANES), p(width / 2 * LANES);
        for_blocks(pair, [&](auto vectors, long first, long n, const Span* spans, int num_spans) {
            constexpr int V = vectors;
            constexpr long lanes = V * VECTOR;
            floats largest[V], total[V];
            for (int v = 0; v < V; v++) largest[v] = all(-INFINITY), total[v] = floats{};
            pair_along(query, first, n, size, queries.data(), lanes);
            float* row = scores.data();
            for (const Span* span = spans; span < spans + num_spans; span++) {
                long keys = span->last - span->first;
                product(key.at(span->first), key.token, queries.data(), lanes, row, lanes, keys, lanes, size / 2,
                        false);
                for (long j = 0; j < keys; j++, row += lanes)
                    for (int v = 0; v < V; v++) {
                        floats s = at(row + v * VECTOR) * scaling;
                        s = seen(span->first + j - first, v) ? s : largest[v];
                        largest[v] = s > largest[v] ? s : largest[v];
                    }
            }
            row = scores.data();
            for (const Span* span = spans; span < spans + num_spans; span++) {
                long keys = span->last - span->first;
                for (long j = 0; j < keys; j += 2, row += 2 * lanes)
                    for (int v = 0; v < V; v++) {
                        long visible = span->first + j - first;
                        const float* x = row + v * VECTOR;
                        floats upper = probabilities(x, scaling, largest[v], floats{}, visible, v), lower{};
                        if (j + 1 < keys)
                            lower = probabilities(x + lanes, scaling, largest[v], floats{}, visible + 1, v);
                        total[v] += upper + lower;
                        store_pairs(p.data() + j / 2 * lanes + v * VECTOR, upper, lower);
                    }
                row -= keys % 2 * lanes;
                product(values.data() + span->place, width, p.data(), lanes, result.data(), lanes, size, lanes,
                        even(keys) / 2, span > spans);
            }
            for (int v = 0; v < V; v++) {
                for (long i = 0; i < VECTOR && v * VECTOR + i < n; i++) {
                    float* sum = sums + 2 * (head * tokens + first + v * VECTOR + i);
                    sum[0] = largest[v][i], sum[1] = std::log(total[v][i]);
                }
                total[v] = 1.0f / total[v];
            }
            write_transposed<V>(result.data(), total, n, size, queries.data(), out + (first * heads + head) * size,
                                heads * size);
        });
    }
}

// What the forward had and gave, and grad (T, heads, size) contiguous -> grad_q, grad_k, grad_v in the shapes of q, k, v;
// their strides follow those of the three.
void packed_attention_backward(const bf16* q, const bf16* k, const bf16* v, const int64_t* strides,
                               const int64_t* segments, long count, long heads, long kv_heads, long tokens, long size,
                               float scaling, const bf16* out, const float* sums, const bf16* grad, bf16* grad_q,
                               bf16* grad_k, bf16* grad_v) {
    std::vector<Pair> sorted = read_pairs(segments, count);
    long group = heads / kv_heads, padded = whole_lanes(size);
#pragma omp parallel for schedule(dynamic)
    for (long item = 0; item < count * kv_heads; item++) {
        const Pair& pair = sorted[item / kv_heads];
        long kv_head = item % kv_heads, width = pair.width(), length = pair.end - pair.start;
        Rows key{k + kv_head * strides[2], strides[3]}, value{v + kv_head * strides[4], strides[5]};
        std::vector<bf16> keys(size * width);
        transpose(key, pair, size, keys.data());
        std::vector<float> to_keys(length * padded), to_values(length * padded), to_queries(size * LANES);
        std::vector<float> scores(KEYS * LANES), grad_p(KEYS * LANES);
        std::vector<bf16> p(KEYS * LANES), grad_s(KEYS * LANES);
        std::vector<pair32> queries(size / 2 * LANES), grads(size / 2 * LANES), grad_s_pairs(KEYS / 2 * LANES);
        std::vector<pair32> queries_down(LANES / 2 * padded), grads_down(LANES / 2 * padded);
        for (long head = kv_head * group; head < (kv_head + 1) * group; head++) {
            Rows query{q + head * strides[0], strides[1]}, own_grad{grad + head * size, heads * size};
            for_blocks(pair, [&](auto vectors, long first, long n, const Span* spans, int num_spans) {
                constexpr int V = vectors;
                constexpr long lanes = V * VECTOR;
                floats delta[V], largest[V], log_total[V], one[V];
                for (int v = 0; v < V; v++)
                    delta[v] = largest[v] = floats{}, log_total[v] = all(INFINITY), one[v] = all(1);
                for (long i = 0; i < n; i++) {
                    const bf16 *g = own_grad.at(first + i), *o = out + ((first + i) * heads + head) * size;
                    float dot = 0;
#pragma omp simd reduction(+ : dot)
                    for (long d = 0; d < size; d++) dot += widen(g[d]) * widen(o[d]);
                    delta[i / VECTOR][i % VECTOR] = dot;
                    const float* sum = sums + 2 * (head * tokens + first + i);
                    largest[i / VECTOR][i % VECTOR] = sum[0];
                    log_total[i / VECTOR][i % VECTOR] = sum[1];
                }
                pair_along(query, first, n, size, queries.data(), lanes);
                pair_along(own_grad, first, n, size, grads.data(), lanes);
                pair_down(query, first, n, size, queries_down.data(), lanes, padded);
                pair_down(own_grad, first, n, size, grads_down.data(), lanes, padded);
                std::fill_n(to_queries.data(), size * lanes, 0.0f);
                for (const Span* span = spans; span < spans + num_spans; span++)
                    for (long j = span->first; j < span->last; j += KEYS) {
                        long block = std::min(KEYS, span->last - j), place = span->place + j - span->first;
                        product(key.at(j), key.token, queries.data(), lanes, scores.data(), lanes, block, lanes,
                                size / 2, false);
                        product(value.at(j), value.token, grads.data(), lanes, grad_p.data(), lanes, block, lanes,
                                size / 2, false);
                        for (long r = 0; r < block; r += 2)
                            for (int v = 0; v < V; v++) {
                                floats ds[2]{};
                                for (long own = r; own < std::min(r + 2, block); own++) {
                                    long i = own * lanes + v * VECTOR;
                                    floats one_p = probabilities(&scores[i], scaling, largest[v], log_total[v],
                                                                 j + own - first, v);
                                    ds[own - r] = one_p * (at(&grad_p[i]) - delta[v]) * scaling;
                                    store(&p[i], one_p);
                                    store(&grad_s[i], ds[own - r]);
                                }
                                store_pairs(&grad_s_pairs[r / 2 * lanes + v * VECTOR], ds[0], ds[1]);
                            }
                        long to = (j - pair.start) * padded;
                        product(p.data(), lanes, grads_down.data(), padded, &to_values[to], padded, block, padded,
                                lanes / 2, true);
                        product(grad_s.data(), lanes, queries_down.data(), padded, &to_keys[to], padded, block, padded,
                                lanes / 2, true);
                        product(keys.data() + place, width, grad_s_pairs.data(), lanes, to_queries.data(), lanes, size,
                                lanes, even(block) / 2, true);
                    }
                write_transposed<V>(to_queries.data(), one, n, size, queries.data(),
                                    grad_q + head * strides[6] + first * strides[7], strides[7]);
            });
        }
        for (long t = 0; t < length; t++) {
            bf16* to_key = grad_k + kv_head * strides[8] + (pair.start + t) * strides[9];
            bf16* to_value = grad_v + kv_head * strides[10] + (pair.start + t) * strides[11];
            for (long d = 0; d < size; d += VECTOR) {
                store(to_key + d, at(&to_keys[t * padded + d]), size - d);
                store(to_value + d, at(&to_values[t * padded + d]), size - d);
            }
        }
    }
}
}
