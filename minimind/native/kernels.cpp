// Passes over bfloat16 tensors, computed in float32. Plain loops: the compiler makes vector instructions of them.
//
// Every tensor is contiguous unless a stride is given. A NaN that comes in comes out: the run must see it and stop.

#include <omp.h>
#include "bf16.h"

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

extern "C" {

// y = x * scale * weight with scale = 1 / sqrt(mean(x^2) + eps); scale (rows) is kept for the backward.
void rms_norm_forward(const bf16* x, const bf16* weight, bf16* y, float* scale, long rows, long size, float eps) {
#pragma omp parallel for if (rows * size > PARALLEL)
    for (long row = 0; row < rows; row++) {
        const bf16* in = x + row * size;
        bf16* out = y + row * size;
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (long i = 0; i < size; i++) squares += widen(in[i]) * widen(in[i]);
        float r = 1.0f / __builtin_sqrtf(squares / size + eps);
        scale[row] = r;
#pragma omp simd
        for (long i = 0; i < size; i++) out[i] = narrow(widen(in[i]) * r * widen(weight[i]));
    }
}

// grad_weight (threads, size) float32, zeros at first: each thread adds to a row of its own.
void rms_norm_backward(const bf16* grad, const bf16* x, const bf16* weight, const float* scale, bf16* grad_x,
                       float* grad_weight, long rows, long size) {
#pragma omp parallel for schedule(static) if (rows * size > PARALLEL)
    for (long row = 0; row < rows; row++) {
        const bf16 *g = grad + row * size, *in = x + row * size;
        bf16* out = grad_x + row * size;
        float* sums = grad_weight + omp_get_thread_num() * size;
        float r = scale[row], dot = 0;
#pragma omp simd reduction(+ : dot)
        for (long i = 0; i < size; i++) {
            float product = widen(g[i]) * widen(in[i]);
            dot += product * widen(weight[i]);
            sums[i] += product * r;
        }
        float back = dot * r * r * r / size;
#pragma omp simd
        for (long i = 0; i < size; i++) out[i] = narrow(widen(g[i]) * widen(weight[i]) * r - widen(in[i]) * back);
    }
}

// Turn x by cos and sin (tokens, size / 2) float32; halves are paired. Input (tokens, heads, size) or, with `to_heads`
// 0, (heads, tokens, size); output the other way round. `sign` -1 turns back.
void rotate(const bf16* x, const float* cosines, const float* sines, bf16* y, long tokens, long heads, long size,
            long to_heads, float sign) {
    long half = size / 2;
#pragma omp parallel for if (tokens * heads * size > PARALLEL)
    for (long token = 0; token < tokens; token++) {
        const float *c = cosines + token * half, *s = sines + token * half;
        for (long head = 0; head < heads; head++) {
            long by_token = (token * heads + head) * size, by_head = (head * tokens + token) * size;
            const bf16* in = x + (to_heads ? by_token : by_head);
            bf16* out = y + (to_heads ? by_head : by_token);
#pragma omp simd
            for (long i = 0; i < half; i++) {
                float a = widen(in[i]), b = widen(in[half + i]), turn = s[i] * sign;
                out[i] = narrow(a * c[i] - b * turn);
                out[half + i] = narrow(b * c[i] + a * turn);
            }
        }
    }
}

// y = gate * sigmoid(gate) * up
void swiglu_forward(const bf16* gate, const bf16* up, bf16* y, long count) {
#pragma omp parallel for simd if (count > PARALLEL)
    for (long i = 0; i < count; i++) {
        float x = widen(gate[i]);
        y[i] = narrow(x * sigmoid(x) * widen(up[i]));
    }
}

void swiglu_backward(const bf16* grad, const bf16* gate, const bf16* up, bf16* grad_gate, bf16* grad_up, long count) {
#pragma omp parallel for simd if (count > PARALLEL)
    for (long i = 0; i < count; i++) {
        float x = widen(gate[i]), g = widen(grad[i]), s = sigmoid(x);
        grad_up[i] = narrow(g * x * s);
        grad_gate[i] = narrow(g * widen(up[i]) * s * (1.0f + x * (1.0f - s)));
    }
}

// One block of logits (rows, width), tokens `start` and on: carries largest logit and sum of exponentials (rows) on
// over the blocks, and picks the target's logit where it lies in this one.
void log_sum_block(const bf16* logits, const int64_t* targets, float* largest, float* sum, float* at_target, long rows,
                   long width, long start) {
#pragma omp parallel for if (rows * width > PARALLEL)
    for (long row = 0; row < rows; row++) {
        const bf16* l = logits + row * width;
        float top = largest[row], total = 0;
#pragma omp simd reduction(max : top)
        for (long i = 0; i < width; i++) top = widen(l[i]) > top ? widen(l[i]) : top;
        // A bias of minus infinity rules tokens out, perhaps all so far; NaNs are no largest either, and must be summed.
        float base = top > -__builtin_inff() ? top : 0;
#pragma omp simd reduction(+ : total)
        for (long i = 0; i < width; i++) total += exponential(widen(l[i]) - base);
        sum[row] = total + sum[row] * exponential(largest[row] - base);
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
        float g = grad[row], all = log_sum[row];
        long target = targets[row] - start;
        bool here = target >= 0 && target < width;
        float own = here ? widen(l[target]) : 0;
#pragma omp simd
        for (long i = 0; i < width; i++) l[i] = narrow(-g * exponential(widen(l[i]) - all));
        if (here) l[target] = narrow(g - g * exponential(own - all));
    }
}
}
