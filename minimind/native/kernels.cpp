// Passes over bfloat16 tensors, computed in float32. Plain loops: the compiler makes vector instructions of them.
//
// Every tensor is contiguous unless a stride is given. A NaN that comes in comes out: the run must see it and stop.

#include <cstdint>
#include <cstring>
#include <omp.h>

typedef uint16_t bf16;

// Fewer elements than this are done before other threads have woken up.
static const long PARALLEL = 1 << 14;

static inline float widen(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

// Round to nearest, ties to even. Adding to the bits of a NaN could make an infinity or zero of it: it stays as it is.
static inline bf16 narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (bf16)rounded;
}

// e^x to 2 units in the last place (polynomial of Cephes' expf); finite for every x that is not NaN.
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's last bits are the rounded integer
    float whole = shifted - 12582912.0f;
    float f = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * f + 1.3981999507e-3f;
    y = y * f + 8.3334519073e-3f;
    y = y * f + 4.1665795894e-2f;
    y = y * f + 1.6666665459e-1f;
    y = y * f + 5.0000001201e-1f;
    y = y * f * f + f + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits << 23) + 0x3f800000;
    float power;
    memcpy(&power, &bits, 4);
    return y * power;
}

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

// In place: scores (matrices, rows, keys) -> softmax(scores * scaling) over the keys that a row may see. The rows'
// own positions are the last `rows` keys; what comes later than a row is 0.
void causal_softmax(bf16* scores, long matrices, long rows, long keys, float scaling) {
#pragma omp parallel if (matrices * rows * keys > PARALLEL)
    {
        float* wide = new float[keys];
#pragma omp for
        for (long row = 0; row < matrices * rows; row++) {
            bf16* s = scores + row * keys;
            long seen = keys - rows + row % rows + 1;
            float largest = -__builtin_inff(), sum = 0;
#pragma omp simd reduction(max : largest)
            for (long i = 0; i < seen; i++) {
                wide[i] = widen(s[i]) * scaling;
                largest = wide[i] > largest ? wide[i] : largest;
            }
#pragma omp simd reduction(+ : sum)
            for (long i = 0; i < seen; i++) {
                wide[i] = exponential(wide[i] - largest);
                sum += wide[i];
            }
            float inverse = 1.0f / sum;
#pragma omp simd
            for (long i = 0; i < seen; i++) s[i] = narrow(wide[i] * inverse);
            memset(s + seen, 0, (keys - seen) * sizeof(bf16));
        }
        delete[] wide;
    }
}

// In place: gradient of the probabilities -> gradient of the scores before scaling.
void causal_softmax_backward(const bf16* probabilities, bf16* grad, long matrices, long rows, long keys,
                             float scaling) {
#pragma omp parallel for if (matrices * rows * keys > PARALLEL)
    for (long row = 0; row < matrices * rows; row++) {
        const bf16* p = probabilities + row * keys;
        bf16* g = grad + row * keys;
        long seen = keys - rows + row % rows + 1;
        float dot = 0;
#pragma omp simd reduction(+ : dot)
        for (long i = 0; i < seen; i++) dot += widen(p[i]) * widen(g[i]);
#pragma omp simd
        for (long i = 0; i < seen; i++) g[i] = narrow(widen(p[i]) * (widen(g[i]) - dot) * scaling);
        memset(g + seen, 0, (keys - seen) * sizeof(bf16));
    }
}

// sums (heads, ...) float32 += x (heads, ...): `count` elements of each head, heads lie the strides apart.
void add_to(float* sums, long sums_stride, const bf16* x, long x_stride, long heads, long count) {
#pragma omp parallel for if (heads * count > PARALLEL)
    for (long head = 0; head < heads; head++) {
        float* out = sums + head * sums_stride;
        const bf16* in = x + head * x_stride;
#pragma omp simd
        for (long i = 0; i < count; i++) out[i] += widen(in[i]);
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
