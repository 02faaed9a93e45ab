// Element-wise and row-wise operations on bfloat16 tensors: one pass over memory each, computed in float32.
//
// Rows are processed a vector at a time; their length need not be a multiple of a vector's. Every tensor is contiguous
// unless a stride is given. A NaN in the input gives a NaN in the output: the run must see it and stop.

#include <algorithm>
#include <cmath>
#include <omp.h>
#include "vector.h"

// Up to so many elements one thread is faster: it has finished before the others have woken up.
static const long PARALLEL = 1 << 14;

// 1 / sqrt(mean(x^2) + eps)
static inline float scale_of(const bf16* x, long size, float eps) {
    floats squares{};
    for (long i = 0; i < size; i += VECTOR) squares += load(x + i, size - i) * load(x + i, size - i);
    return 1.0f / std::sqrt(sum(squares) / size + eps);
}

extern "C" {

// x (rows, size) -> y = x * scale * weight; scale (rows) is saved for backward.
void rms_norm_forward(const bf16* x, const bf16* weight, bf16* y, float* scale, long rows, long size, float eps) {
#pragma omp parallel for if (rows * size > PARALLEL)
    for (long row = 0; row < rows; row++) {
        const bf16* in = x + row * size;
        bf16* out = y + row * size;
        float r = scale[row] = scale_of(in, size, eps);
        for (long i = 0; i < size; i += VECTOR)
            store(out + i, load(in + i, size - i) * r * load(weight + i, size - i), size - i);
    }
}

// With r = scale and g = grad * weight: grad_x = r g - x r^3 mean(x g), plus grad_residual unless that is null.
// grad_weight (threads, size) float32, initially 0: each thread adds to a row of its own, so that no addition needs a
// lock; the caller sums the rows. `schedule(static)` gives a thread the same rows each time: the sums are reproducible.
void rms_norm_backward(const bf16* grad, const bf16* grad_residual, const bf16* x, const bf16* weight,
                       const float* scale, bf16* grad_x, float* grad_weight, long threads, long rows, long size) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * size > PARALLEL)
    for (long row = 0; row < rows; row++) {
        const bf16 *g = grad + row * size, *in = x + row * size;
        bf16* out = grad_x + row * size;
        float *sums = grad_weight + omp_get_thread_num() * size, r = scale[row];
        floats dot{};
        for (long i = 0; i < size; i += VECTOR) {
            long n = size - i;
            floats product = load(g + i, n) * load(in + i, n);
            dot += product * load(weight + i, n);
            store(sums + i, load(sums + i, n) + product * r, n);
        }
        float back = sum(dot) * r * r * r / size;
        for (long i = 0; i < size; i += VECTOR) {
            long n = size - i;
            floats result = load(g + i, n) * load(weight + i, n) * r - load(in + i, n) * back;
            if (grad_residual) result += load(grad_residual + row * size + i, n);
            store(out + i, result, n);
        }
    }
}

// Rotary embedding: element i of a head's first half and element i of its second half are a point, rotated by the angle
// whose cosine and sine (tokens, size / 2) float32 are given. With `to_heads` x is (tokens, heads, size) and y (heads,
// tokens, size), else the other way round. `sign` -1 rotates back, which is the gradient.
void rotate(const bf16* x, const float* cosines, const float* sines, bf16* y, long tokens, long heads, long size,
            long to_heads, float sign) {
    long half = size / 2;
#pragma omp parallel for if (tokens * heads * size > PARALLEL)
    for (long token = 0; token < tokens; token++) {
        for (long head = 0; head < heads; head++) {
            long by_token = (token * heads + head) * size, by_head = (head * tokens + token) * size;
            const bf16* in = x + (to_heads ? by_token : by_head);
            bf16* out = y + (to_heads ? by_head : by_token);
            for (long i = 0; i < half; i += VECTOR) {
                long n = half - i;
                floats a = load(in + i, n), b = load(in + half + i, n);
                floats c = load(cosines + token * half + i, n), s = load(sines + token * half + i, n) * sign;
                store(out + i, a * c - b * s, n);
                store(out + half + i, b * c + a * s, n);
            }
        }
    }
}

// rms_norm_forward of each head and rotate in one pass: x (tokens, heads, size) -> y (heads, tokens, size). The
// normalised head is not rounded in between. scale (tokens, heads) is saved for backward.
void norm_rotate_forward(const bf16* x, const bf16* weight, const float* cosines, const float* sines, bf16* y,
                         float* scale, long tokens, long heads, long size, float eps) {
    long half = size / 2;
#pragma omp parallel for if (tokens * heads * size > PARALLEL)
    for (long token = 0; token < tokens; token++) {
        for (long head = 0; head < heads; head++) {
            const bf16* in = x + (token * heads + head) * size;
            bf16* out = y + (head * tokens + token) * size;
            float r = scale[token * heads + head] = scale_of(in, size, eps);
            for (long i = 0; i < half; i += VECTOR) {
                long n = half - i;
                floats a = load(in + i, n) * r * load(weight + i, n);
                floats b = load(in + half + i, n) * r * load(weight + half + i, n);
                floats c = load(cosines + token * half + i, n), s = load(sines + token * half + i, n);
                store(out + i, a * c - b * s, n);
                store(out + half + i, b * c + a * s, n);
            }
        }
    }
}

// grad (heads, tokens, size) -> grad_x (tokens, heads, size): the gradient is rotated back, then as in
// rms_norm_backward.
void norm_rotate_backward(const bf16* grad, const bf16* x, const bf16* weight, const float* cosines, const float* sines,
                          const float* scale, bf16* grad_x, float* grad_weight, long threads, long tokens, long heads,
                          long size) {
    long half = size / 2;
#pragma omp parallel for schedule(static) num_threads(threads) if (tokens * heads * size > PARALLEL)
    for (long token = 0; token < tokens; token++) {
        float* sums = grad_weight + omp_get_thread_num() * size;
        for (long head = 0; head < heads; head++) {
            const bf16 *in = x + (token * heads + head) * size, *g = grad + (head * tokens + token) * size;
            bf16* out = grad_x + (token * heads + head) * size;
            float r = scale[token * heads + head];
            // The gradient of the normalised head, VECTOR elements from own + i on: `own` and `other` are where its
            // half and the paired half begin.
            auto rotated_back = [&](long i, long own, long other, float sign) {
                long n = half - i;
                floats c = load(cosines + token * half + i, n), s = load(sines + token * half + i, n) * sign;
                return load(g + own + i, n) * c + load(g + other + i, n) * s;
            };
            // Both halves, in steps of a vector: visit(first element, gradient there, elements left).
            auto each = [&](auto visit) {
                for (long i = 0; i < half; i += VECTOR) {
                    visit(i, rotated_back(i, 0, half, 1.0f), half - i);
                    visit(half + i, rotated_back(i, half, 0, -1.0f), half - i);
                }
            };
            floats dot{};
            each([&](long i, floats g_norm, long n) {
                floats product = g_norm * load(in + i, n);
                dot += product * load(weight + i, n);
                store(sums + i, load(sums + i, n) + product * r, n);
            });
            float back = sum(dot) * r * r * r / size;
            each([&](long i, floats g_norm, long n) {
                store(out + i, g_norm * load(weight + i, n) * r - load(in + i, n) * back, n);
            });
        }
    }
}

// y = silu(gate) * up
void swiglu_forward(const bf16* gate, const bf16* up, bf16* y, long count) {
#pragma omp parallel for if (count > PARALLEL)
    for (long i = 0; i < count; i += VECTOR) {
        store(y + i, swiglu(load(gate + i, count - i), load(up + i, count - i)), count - i);
    }
}

// Gradients of gate and up. y is recomputed, which forward then need not save, unless its pointer is null.
void swiglu_backward(const bf16* grad, const bf16* gate, const bf16* up, bf16* grad_gate, bf16* grad_up, bf16* y,
                     long count) {
#pragma omp parallel for if (count > PARALLEL)
    for (long i = 0; i < count; i += VECTOR) {
        long n = count - i;
        floats x = load(gate + i, n), u = load(up + i, n), g = load(grad + i, n), s = sigmoid(x);
        store(grad_up + i, g * x * s, n);
        store(grad_gate + i, g * u * s * (1.0f + x * (1.0f - s)), n);
        if (y) store(y + i, x * s * u, n);
    }
}

// Casts x to float32. Returns the sum of its squares in float64, in which the square of no bfloat16 number overflows.
double cast_and_sum_squares(const bf16* x, float* out, long count) {
    double squares = 0;
#pragma omp parallel for reduction(+ : squares) if (count > PARALLEL)
    for (long first = 0; first < count; first += PARALLEL) {
        doubles some{};
        for (long i = first; i < std::min(count, first + PARALLEL); i += VECTOR) {
            floats wide = load(x + i, count - i);
            doubles wider = __builtin_convertvector(wide, doubles);
            store(out + i, wide, count - i);
            some += wider * wider;
        }
        for (long i = 0; i < VECTOR; i++) squares += some[i];
    }
    return squares;
}

// Adds one block of logits (rows, width), of tokens from `start` on, to what is known of each row's logits so far: the
// largest, the sum of exponentials relative to the largest, and the target's logit if the target is in the block. Unless
// `products` is null, also the sum of each exponential times its logit relative to the largest, for the entropy.
void log_sum_block(const bf16* logits, const int64_t* targets, float* largest, float* sums, float* at_target,
                   float* products, long rows, long width, long start) {
#pragma omp parallel for if (rows * width > PARALLEL)
    for (long row = 0; row < rows; row++) {
        const bf16* l = logits + row * width;
        long whole = width / VECTOR * VECTOR;
        floats tops = all(largest[row]), totals{};
        for (long i = 0; i < whole; i += VECTOR) tops = larger(load(l + i), tops);
        float top = largest[row];
        for (long i = 0; i < VECTOR; i++) top = tops[i] > top ? tops[i] : top;
        for (long i = whole; i < width; i++) top = to_float(l[i]) > top ? to_float(l[i]) : top;
        // The largest is minus infinity if every logit so far is (a bias can exclude tokens), or if they are NaN. Minus
        // infinity minus itself would be NaN; relative to 0 excluded tokens add nothing, and NaNs still give a NaN.
        float base = top > -INFINITY ? top : 0;
        if (products) {
            floats weighted{};
            for (long i = 0; i < whole; i += VECTOR) {
                floats x = load(l + i) - base, power = exponential(x);
                totals += power;
                // Bounded, because 0 times the minus infinity of an excluded token would be NaN.
                weighted += power * larger(all(-200.0f), x);
            }
            float product = sum(weighted);
            for (long i = whole; i < width; i++) {
                float x = to_float(l[i]) - base;
                product += std::exp(x) * std::max(x, -200.0f);
            }
            // What is known is relative to the earlier largest; nothing is known before the first block.
            float earlier = largest[row] - base;
            if (sums[row] > 0) product += std::exp(earlier) * (products[row] + sums[row] * earlier);
            products[row] = product;
        } else {
            for (long i = 0; i < whole; i += VECTOR) totals += exponential(load(l + i) - base);
        }
        float total = sum(totals);
        for (long i = whole; i < width; i++) total += std::exp(to_float(l[i]) - base);
        sums[row] = total + sums[row] * std::exp(largest[row] - base);
        largest[row] = top;
        long target = targets[row] - start;
        if (target >= 0 && target < width) at_target[row] = to_float(l[target]);
    }
}

// In place: a block's logits become their gradient, grad * (onehot(target) - softmax).
void log_sum_block_backward(bf16* logits, const int64_t* targets, const float* log_sum, const float* grad, long rows,
                            long width, long start) {
#pragma omp parallel for if (rows * width > PARALLEL)
    for (long row = 0; row < rows; row++) {
        bf16* l = logits + row * width;
        float g = grad[row], log_total = log_sum[row];
        long target = targets[row] - start;
        bool inside = target >= 0 && target < width;
        // Read before it is overwritten: the target's probability is subtracted before the sum is rounded.
        float own = inside ? to_float(l[target]) : 0;
        for (long i = 0; i < width; i += VECTOR)
            store(l + i, -g * exponential(load(l + i, width - i) - log_total), width - i);
        if (inside) store(l + target, all(g - g * std::exp(own - log_total)), 1);
    }
}
}
