// Passes over bfloat16 tensors, computed in float32, a vector at a time; rows need not be whole vectors.
//
// Every tensor is contiguous unless a stride is given. A NaN that comes in comes out: the run must see it and stop.

#include <algorithm>
#include <cmath>
#include <omp.h>
#include "vector.h"

// Fewer elements than this are done before other threads have woken up.
static const long PARALLEL = 1 << 14;

// 1 / sqrt(mean(x^2) + eps)
static inline float scale_of(const bf16* x, long size, float eps) {
    floats squares{};
    for (long i = 0; i < size; i += VECTOR) squares += load(x + i, size - i) * load(x + i, size - i);
    return 1.0f / std::sqrt(sum(squares) / size + eps);
}

extern "C" {

// y = x * scale * weight; scale (rows) is kept for the backward.
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

// grad_weight (threads, size) float32, zeros at first: each thread adds to a row of its own. `beside`, where it is something,
// is the gradient of what else x went into, and is part of grad_x.
void rms_norm_backward(const bf16* grad, const bf16* beside, const bf16* x, const bf16* weight, const float* scale,
                       bf16* grad_x, float* grad_weight, long threads, long rows, long size) {
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
            floats made = load(g + i, n) * load(weight + i, n) * r - load(in + i, n) * back;
            if (beside) made += load(beside + row * size + i, n);
            store(out + i, made, n);
        }
    }
}

// Turn x by cos and sin (tokens, size / 2) float32; halves are paired. Input (tokens, heads, size) or, with `to_heads`
// 0, (heads, tokens, size); output the other way round. `sign` -1 turns back.
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

// Heads normalised as by rms_norm_forward and turned as by rotate: x (tokens, heads, size) -> y (heads, tokens, size). What
// lies between is not rounded.
void norm_rotate_forward(const bf16* x, const bf16* weight, const float* cosines, const float* sines, bf16* y, float* scale,
                         long tokens, long heads, long size, float eps) {
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

// grad (heads, tokens, size) -> grad_x (tokens, heads, size); grad_weight as in rms_norm_backward.
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
            // The gradient of one half of what was normalised.
            auto turned_back = [&](long i, long own, long other, float sign) {
                long n = half - i;
                floats c = load(cosines + token * half + i, n), s = load(sines + token * half + i, n) * sign;
                return load(g + own + i, n) * c + load(g + other + i, n) * s;
            };
            auto each = [&](auto visit) {
                for (long i = 0; i < half; i += VECTOR) {
                    visit(i, turned_back(i, 0, half, 1.0f), half - i);
                    visit(half + i, turned_back(i, half, 0, -1.0f), half - i);
                }
            };
            floats dot{};
            each([&](long i, floats turned, long n) {
                floats product = turned * load(in + i, n);
                dot += product * load(weight + i, n);
                store(sums + i, load(sums + i, n) + product * r, n);
            });
            float back = sum(dot) * r * r * r / size;
            each([&](long i, floats turned, long n) {
                store(out + i, turned * load(weight + i, n) * r - load(in + i, n) * back, n);
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

// Gradients of gate and up; y, which need not have been kept, is made again where it has somewhere to go.
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

// x in float32. Returns the sum of its squares, summed in float64.
double widen_all(const bf16* x, float* out, long count) {
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

// One block of logits (rows, width), tokens `start` and on: carries largest logit and sum of exponentials (rows) on
// over the blocks, and picks the target's logit where it lies in this one.
void log_sum_block(const bf16* logits, const int64_t* targets, float* largest, float* sums, float* at_target, long rows,
                   long width, long start) {
#pragma omp parallel for if (rows * width > PARALLEL)
    for (long row = 0; row < rows; row++) {
        const bf16* l = logits + row * width;
        long whole = width / VECTOR * VECTOR;
        floats tops = all(largest[row]), totals{};
        for (long i = 0; i < whole; i += VECTOR) tops = larger(load(l + i), tops);
        float top = largest[row];
        for (long i = 0; i < VECTOR; i++) top = tops[i] > top ? tops[i] : top;
        for (long i = whole; i < width; i++) top = widen(l[i]) > top ? widen(l[i]) : top;
        // A bias of minus infinity rules tokens out, perhaps all so far; NaNs are no largest either, and must be summed.
        float base = top > -INFINITY ? top : 0;
        for (long i = 0; i < whole; i += VECTOR) totals += exponential(load(l + i) - base);
        float total = sum(totals);
        for (long i = whole; i < width; i++) total += std::exp(widen(l[i]) - base);
        sums[row] = total + sums[row] * std::exp(largest[row] - base);
        largest[row] = top;
        long target = targets[row] - start;
        if (target >= 0 && target < width) at_target[row] = widen(l[target]);
    }
}

// In place: the block's logits -> their gradient, grad * (onehot(target) - softmax).
void log_sum_block_backward(bf16* logits, const int64_t* targets, const float* log_sum, const float* grad, long rows,
                            long width, long start) {
#pragma omp parallel for if (rows * width > PARALLEL)
    for (long row = 0; row < rows; row++) {
        bf16* l = logits + row * width;
        float g = grad[row], all_of_it = log_sum[row];
        long target = targets[row] - start;
        bool here = target >= 0 && target < width;
        float own = here ? widen(l[target]) : 0;
        for (long i = 0; i < width; i += VECTOR)
            store(l + i, -g * exponential(load(l + i, width - i) - all_of_it), width - i);
        if (here) store(l + target, all(g - g * std::exp(own - all_of_it)), 1);
    }
}
}
