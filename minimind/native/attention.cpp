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

#include "attention_blocks.h"

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
        std::vector<Element> values(size * widest);
        std::vector<float> scores(KEYS * LANES), result(size * LANES);
        std::vector<word> queries(depth(size) * LANES);
        word* p = (word*)scores.data();  // in place: a row is written after the scores in it were read
#pragma omp for schedule(dynamic)
        for (long item = 0; item < count * heads; item++) {
            const Pair& pair = pairs[item / heads];
            long head = item % heads, kv_head = head / (heads / kv_heads), width = pair.width();
            Rows query{q + head * strides[0], strides[1]};
            Rows key{k + kv_head * strides[2], strides[3]}, value{v + kv_head * strides[4], strides[5]};
            transpose(value, pair, size, values.data());
            LeftRows<Form> left_keys(key, pair, size);
            for_queries(pair, [&](auto vectors, long first, long n, const Span* spans, int num_spans) {
                constexpr int V = vectors;
                constexpr long lanes = V * VECTOR;
                floats largest[V], total[V];
                for (int v = 0; v < V; v++) largest[v] = all(-INFINITY), total[v] = floats{};
                pack_along<Form>(query, first, n, size, queries.data(), lanes, lanes);
                prefetch(query, first + n, pair.end, size);
                bool begun = false;
                for_keys(spans, num_spans, first, [&](long j, long keys, long column, long skip) {
                    product(left_keys(j), queries.data() + skip, lanes, scores.data() + skip, lanes, keys, lanes - skip,
                            depth(size), false);
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
                            put_rows(p + v * VECTOR, r, lanes, upper, lower);
                        }
                        floats factor = begun ? power_of_two((before - largest[v]) * base_two) : floats{};
                        total[v] = total[v] * factor + sum;
                        if (begun)
                            for (long d = 0; d < size; d++) {
                                float* y = result.data() + d * lanes + v * VECTOR;
                                *(floats*)y = at(y) * factor;
                            }
                    }
                    product<Form>({values.data() + column, width}, p + skip, lanes, result.data() + skip, lanes, size,
                                  lanes - skip, depth(keys), begun);
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
        std::vector<Element> keys_transposed(size * widest), kept(IN_PLACE ? 0 : 2 * KEYS * LANES);
        std::vector<float> to_keys(longest * padded), to_values(longest * padded), to_queries(size * LANES);
        std::vector<float> scores(KEYS * LANES), grad_p(KEYS * LANES);
        std::vector<word> queries(depth(size) * LANES), grads(depth(size) * LANES);
        std::vector<word> queries_down(depth(LANES) * padded), grads_down(depth(LANES) * padded);
        std::vector<word> packed(IN_PLACE ? 0 : depth(KEYS) * LANES);
        // p and grad_s are left matrices, grad_s is a right one as well.
        Element* p = IN_PLACE ? (Element*)scores.data() : kept.data();
        Element* grad_s = IN_PLACE ? (Element*)grad_p.data() : kept.data() + KEYS * LANES;
        word* grad_s_right = IN_PLACE ? (word*)grad_p.data() : packed.data();
#pragma omp for schedule(dynamic)
        for (long item = 0; item < count * kv_heads; item++) {
            const Pair& pair = pairs[item / kv_heads];
            long kv_head = item % kv_heads, width = pair.width(), length = pair.length();
            Rows key{k + kv_head * strides[2], strides[3]}, value{v + kv_head * strides[4], strides[5]};
            transpose(key, pair, size, keys_transposed.data());
            LeftRows<Form> left_keys(key, pair, size), left_values(value, pair, size);
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
                    pack_along<Form>(query, first, n, size, queries.data(), lanes, lanes);
                    pack_along<Form>(own_grad, first, n, size, grads.data(), lanes, lanes);
                    pack_down<Form>(query, first, n, size, queries_down.data(), lanes, padded);
                    pack_down<Form>(own_grad, first, n, size, grads_down.data(), lanes, padded);
                    for (const Rows* rows : {&query, &own_grad, &own_out}) prefetch(*rows, first + n, pair.end, size);
                    std::fill_n(to_queries.data(), size * lanes, 0.0f);
                    for_keys(spans, num_spans, first, [&](long j, long keys, long column, long skip) {
                        product(left_keys(j), queries.data() + skip, lanes, scores.data() + skip, lanes, keys,
                                lanes - skip, depth(size), false);
                        product(left_values(j), grads.data() + skip, lanes, grad_p.data() + skip, lanes, keys,
                                lanes - skip, depth(size), false);
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
                                if (!IN_PLACE) put_rows(&grad_s_right[v * VECTOR], r, lanes, ds[0], ds[1]);
                            }
                        long to = (j - pair.start) * padded, from = depth(skip) * padded;
                        product<Form>({&p[skip], lanes}, &grads_down[from], padded, &to_values[to], padded, keys, padded,
                                      depth(lanes - skip), true);
                        product<Form>({&grad_s[skip], lanes}, &queries_down[from], padded, &to_keys[to], padded, keys,
                                      padded, depth(lanes - skip), true);
                        product<Form>({&keys_transposed[column], width}, &grad_s_right[skip], lanes, &to_queries[skip],
                                      lanes, size, lanes - skip, depth(keys), true);
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
