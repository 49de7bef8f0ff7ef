/* Kernels of the sparse engine. `build.py` compiles this file for the processor at hand, `plan.py` fills the structs.

   A buffer holds the channels of one image, or of LANES images side by side: [channel][row][column][lane]. Zeros for
   the padding of convolutions lie between its rows, so that a convolution is a sum of shifted, contiguous loads:
   out[i] += weight * in[i + offset], for surviving weights alone. What is computed for the columns between the rows is
   never stored. Vectors are those of the compiler: 16 floats with AVX-512, 8 with AVX, 4 elsewhere (SSE, NEON). */

#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(__AVX512F__)
#define WIDTH 16
#define TILE 4 /* vectors of one row in the dense kernel: 4 rows of 4 are half of the registers */
#elif defined(__AVX__)
#define WIDTH 8
#define TILE 2
#else
#define WIDTH 4
#define TILE 2
#endif
#define ROWS 4 /* of the dense kernel */
#define MOST_THREADS 256
#define ALWAYS static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef float unaligned __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

typedef float four __attribute__((vector_size(16)));
typedef float four_unaligned __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t places __attribute__((vector_size(16)));
#ifdef __clang__
#define EVERY_SECOND(a, b, first) __builtin_shufflevector(a, b, first, first + 2, first + 4, first + 6)
#else
#define EVERY_SECOND(a, b, first) __builtin_shuffle(a, b, (places){first, first + 2, first + 4, first + 6})
#endif

/* Where the value at (channel, row, column) lies, in floats: base + channel * plane + row * pitch + column * lanes. */
typedef struct {
    int64_t base, plane, pitch;
} view;

enum { CONVOLUTION, MAP, MAX_POOL, MEAN_POOL };

typedef struct {
    int32_t kind, relu, channels, height, width; /* of what is given, before pooling inside of a convolution */
    int32_t positions;                           /* floats that a convolution computes of each channel */
    int32_t pool, block, gather;                 /* pooling inside; rows at a time; one position alone */
    int32_t kernel[2], stride[2], padding[2], size[2], count_padding; /* of pooling and maps; size of what is read */
    view in, other, out;                         /* other.base < 0: nothing is added */
    int64_t row;                                 /* the pitch of what is computed */
    const int32_t *start, *offset;               /* of each block of rows; of each weight */
    const float *value, *scale, *shift;
} operation;

typedef struct {
    int64_t channels, height, width;
    view at;
} port;

typedef struct {
    int64_t lanes, floats, scratch, operations, inputs, outputs;
    const operation *todo;
    const port *in, *out;
} plan;

int width_of_vectors(void) { return WIDTH; }

/* One row: `vectors` registers at `chains` independent sums, so that short rows do not wait for each addition. */
ALWAYS void sparse_tile(const float *in, const int32_t *offset, const float *value, int n, float bias, float *out,
                        const int vectors, const int chains) {
    vec sum[8];
#pragma GCC unroll 8
    for (int j = 0; j < vectors * chains; j++) sum[j] = (vec){} + (j < vectors ? bias : 0.0f);
    int k = 0;
    for (; k + chains <= n; k += chains)
#pragma GCC unroll 8
        for (int c = 0; c < chains; c++) {
            const float *from = in + offset[k + c], w = value[k + c];
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) sum[c * vectors + v] += w * *(const unaligned *)(from + v * WIDTH);
        }
    for (; k < n; k++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) sum[v] += value[k] * *(const unaligned *)(in + offset[k] + v * WIDTH);
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) {
        vec all = sum[v];
#pragma GCC unroll 8
        for (int c = 1; c < chains; c++) all += sum[c * vectors + v];
        *(unaligned *)(out + v * WIDTH) = all;
    }
}

static void sparse_row(const float *in, const int32_t *offset, const float *value, int n, float bias, float *out,
                       int64_t positions) {
    int64_t i = 0, left = (positions + WIDTH - 1) / WIDTH;
    for (; left >= 8; left -= 8, i += 8 * WIDTH) sparse_tile(in + i, offset, value, n, bias, out + i, 8, 1);
    if (left >= 4) sparse_tile(in + i, offset, value, n, bias, out + i, 4, 2), left -= 4, i += 4 * WIDTH;
    if (left >= 3) {
        sparse_tile(in + i, offset, value, n, bias, out + i, 3, 2);
    } else if (left == 2) {
        sparse_tile(in + i, offset, value, n, bias, out + i, 2, 4);
    } else if (left == 1) {
        sparse_tile(in + i, offset, value, n, bias, out + i, 1, 8);
    }
}

/* ROWS rows that share their loads: value[k][row]. */
ALWAYS void dense_tile(const float *in, const int32_t *offset, const float *value, int n, const float *bias, float *out,
                       int64_t apart, const int vectors) {
    vec sum[ROWS][TILE];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) sum[r][v] = (vec){} + bias[r];
    for (int k = 0; k < n; k++) {
        const float *from = in + offset[k], *w = value + (int64_t)k * ROWS;
        vec x[TILE];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) x[v] = *(const unaligned *)(from + v * WIDTH);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) sum[r][v] += w[r] * x[v];
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) *(unaligned *)(out + r * apart + v * WIDTH) = sum[r][v];
}

static void dense_rows(const float *in, const int32_t *offset, const float *value, int n, const float *bias, float *out,
                       int64_t apart, int64_t positions) {
    int64_t i = 0, left = (positions + WIDTH - 1) / WIDTH;
    for (; left >= TILE; left -= TILE, i += TILE * WIDTH)
        dense_tile(in + i, offset, value, n, bias, out + i, apart, TILE);
    for (; left > 0; left--, i += WIDTH) dense_tile(in + i, offset, value, n, bias, out + i, apart, 1);
}

/* One position of one image, row by row. */
ALWAYS float dot(const float *in, const int32_t *offset, const float *value, int n, float bias) {
    float a = bias, b = 0, c = 0, d = 0;
    int k = 0;
    for (; k + 4 <= n; k += 4) {
        a += value[k] * in[offset[k]];
        b += value[k + 1] * in[offset[k + 1]];
        c += value[k + 2] * in[offset[k + 2]];
        d += value[k + 3] * in[offset[k + 3]];
    }
    for (; k < n; k++) a += value[k] * in[offset[k]];
    return (a + b) + (c + d);
}

/* One position of one image, WIDTH rows at a time: value[k][row]. */
static void dot_rows(const float *in, const int32_t *offset, const float *value, int n, const float *bias, float *out) {
    vec a = *(const unaligned *)bias, b = {}, c = {}, d = {};
    int k = 0;
    for (; k + 4 <= n; k += 4, value += 4 * WIDTH) {
        a += in[offset[k]] * *(const unaligned *)value;
        b += in[offset[k + 1]] * *(const unaligned *)(value + WIDTH);
        c += in[offset[k + 2]] * *(const unaligned *)(value + 2 * WIDTH);
        d += in[offset[k + 3]] * *(const unaligned *)(value + 3 * WIDTH);
    }
    for (; k < n; k++, value += WIDTH) a += in[offset[k]] * *(const unaligned *)value;
    *(unaligned *)out = (a + b) + (c + d);
}

/* NaN stays NaN, as in PyTorch. */
ALWAYS float positive(float x) { return x < 0 ? 0 : x; }
ALWAYS float larger(float x, float y) { return x > y || x != x ? x : y; }

/* The larger of both in each place. */
ALWAYS four larger4(four x, four y) {
    const places first = (x > y) | (x != x);
    return (four)(((places)x & first) | ((places)y & ~first));
}

/* Windows of two by two, of one image: two rows give one, cut at 0. */
ALWAYS void pool_pairs(const float *top, const float *next, float *to, int64_t wide, const int relu) {
    int64_t x = 0;
    for (; x + 4 <= wide; x += 4) {
        const four a = larger4(*(const four_unaligned *)(next + 2 * x), *(const four_unaligned *)(top + 2 * x));
        const four b = larger4(*(const four_unaligned *)(next + 2 * x + 4), *(const four_unaligned *)(top + 2 * x + 4));
        const four most = larger4(EVERY_SECOND(a, b, 1), EVERY_SECOND(a, b, 0));
        *(four_unaligned *)(to + x) = relu ? larger4(most, (four){}) : most;
    }
    for (; x < wide; x++) {
        const float most = larger(larger(next[2 * x + 1], next[2 * x]), larger(top[2 * x + 1], top[2 * x]));
        to[x] = relu ? positive(most) : most;
    }
}

static void pool_rows(float *top, int64_t pool, int64_t row, float *to, int64_t wide, const int64_t lanes) {
    for (int64_t j = 1; j < pool; j++) {
        const float *next = top + j * row;
        for (int64_t i = 0; i < wide * pool * lanes; i++) top[i] = larger(next[i], top[i]);
    }
    for (int64_t x = 0; x < wide; x++) {
        float *first = top + x * pool * lanes, *at = to + x * lanes;
        memcpy(at, first, lanes * sizeof(float));
        for (int64_t j = 1; j < pool; j++)
            for (int64_t l = 0; l < lanes; l++) at[l] = larger(first[j * lanes + l], at[l]);
    }
}

ALWAYS void add_row(const float *at, const float *other, int relu, float *to, int64_t count) {
    if (other && relu)
        for (int64_t i = 0; i < count; i++) to[i] = positive(at[i] + other[i]);
    else if (other)
        for (int64_t i = 0; i < count; i++) to[i] = at[i] + other[i];
    else if (relu)
        for (int64_t i = 0; i < count; i++) to[i] = positive(at[i]);
    else
        memcpy(to, at, count * sizeof(float));
}

/* What was computed of one channel: add, pool, cut at 0, store. Maxima and the cut may change places. */
static void finish(const operation *o, float *arena, float *row, int channel, const int64_t lanes) {
    float *out = arena + o->out.base + channel * o->out.plane;
    const float *other = o->other.base >= 0 ? arena + o->other.base + channel * o->other.plane : 0;
    if (!o->pool) {
        for (int y = 0; y < o->height; y++)
            add_row(row + y * o->row, other ? other + y * o->other.pitch : 0, o->relu, out + y * o->out.pitch,
                    o->width * lanes);
        return;
    }
    if (other)
        for (int y = 0; y < o->height; y++)
            add_row(row + y * o->row, other + y * o->other.pitch, 0, row + y * o->row, o->width * lanes);
    const int64_t pool = o->pool, high = o->height / pool, wide = o->width / pool;
    for (int64_t y = 0; y < high; y++) {
        float *top = row + y * pool * o->row, *to = out + y * o->out.pitch;
        if (pool == 2 && lanes == 1) {
            o->relu ? pool_pairs(top, top + o->row, to, wide, 1) : pool_pairs(top, top + o->row, to, wide, 0);
            continue;
        }
        pool_rows(top, pool, o->row, to, wide, lanes);
        if (o->relu)
            for (int64_t i = 0; i < wide * lanes; i++) to[i] = positive(to[i]);
    }
}

static void convolution(const operation *o, float *arena, float *scratch, const int64_t lanes) {
    const float *in = arena + o->in.base;
    const int32_t *start = o->start;
    if (o->gather) {
        const float *other = o->other.base >= 0 ? arena + o->other.base : 0;
        float *out = arena + o->out.base;
        for (int r = 0, b = 0; r < o->channels; r += o->block, b++) {
            const int n = start[b + 1] - start[b], rows = o->channels - r < o->block ? o->channels - r : o->block;
            const float *value = o->value + (int64_t)start[b] * o->block;
            if (o->block == 1)
                scratch[0] = dot(in, o->offset + start[b], value, n, o->shift[r]);
            else
                dot_rows(in, o->offset + start[b], value, n, o->shift + r, scratch);
            for (int j = 0; j < rows; j++) {
                const float x = other ? scratch[j] + other[(r + j) * o->other.plane] : scratch[j];
                out[(r + j) * o->out.plane] = o->relu ? positive(x) : x;
            }
        }
        return;
    }
    const int64_t apart = (o->positions + WIDTH - 1) / WIDTH * WIDTH;
    for (int r = 0, b = 0; r < o->channels; r += o->block, b++) {
        const int n = start[b + 1] - start[b];
        const float *value = o->value + (int64_t)start[b] * o->block;
        if (o->block == 1)
            sparse_row(in, o->offset + start[b], value, n, o->shift[r], scratch, o->positions);
        else
            dense_rows(in, o->offset + start[b], value, n, o->shift + r, scratch, apart, o->positions);
        for (int j = 0; j < o->block && r + j < o->channels; j++) finish(o, arena, scratch + j * apart, r + j, lanes);
    }
}

/* Copies, every so many rows and columns; scales, shifts, sums. */
static void map(const operation *o, float *arena, const int64_t lanes) {
    for (int c = 0; c < o->channels; c++)
        for (int y = 0; y < o->height; y++) {
            const float *in = arena + o->in.base + c * o->in.plane + y * o->stride[0] * o->in.pitch;
            const float *other = arena + o->other.base + c * o->other.plane + y * o->other.pitch;
            float *out = arena + o->out.base + c * o->out.plane + y * o->out.pitch;
            const float scale = o->scale ? o->scale[c] : 1, shift = o->shift ? o->shift[c] : 0;
            const int64_t step = o->stride[1];
            const int add = o->other.base >= 0;
            for (int64_t x = 0; x < o->width; x++)
                for (int64_t l = 0; l < lanes; l++) {
                    float value = in[x * step * lanes + l];
                    if (o->scale) value = value * scale + shift;
                    if (add) value += other[x * lanes + l];
                    out[x * lanes + l] = o->relu ? positive(value) : value;
                }
        }
}

static void pool(const operation *o, float *arena, const int64_t lanes) {
    for (int c = 0; c < o->channels; c++)
        for (int y = 0; y < o->height; y++)
            for (int x = 0; x < o->width; x++) {
                const int top = y * o->stride[0] - o->padding[0], left = x * o->stride[1] - o->padding[1];
                const int low = top < 0 ? 0 : top, first = left < 0 ? 0 : left;
                int high = top + o->kernel[0], last = left + o->kernel[1];
                if (high > o->size[0] + o->padding[0]) high = o->size[0] + o->padding[0];
                if (last > o->size[1] + o->padding[1]) last = o->size[1] + o->padding[1];
                const int all = (high - top) * (last - left);
                if (high > o->size[0]) high = o->size[0];
                if (last > o->size[1]) last = o->size[1];
                const int count = o->count_padding ? all : (high - low) * (last - first);
                const float *in = arena + o->in.base + c * o->in.plane;
                float *out = arena + o->out.base + c * o->out.plane + y * o->out.pitch + x * lanes;
                for (int64_t l = 0; l < lanes; l++) {
                    float value = o->kind == MAX_POOL ? in[low * o->in.pitch + first * lanes + l] : 0;
                    for (int i = low; i < high; i++)
                        for (int j = first; j < last; j++) {
                            const float here = in[i * o->in.pitch + j * lanes + l];
                            value = o->kind == MAX_POOL ? larger(here, value) : value + here;
                        }
                    if (o->kind == MEAN_POOL) value /= count;
                    out[l] = o->relu ? positive(value) : value;
                }
            }
}

/* With the number of lanes known to the compiler. */
ALWAYS void perform(const operation *o, float *arena, float *scratch, int64_t lanes) {
    if (o->kind == CONVOLUTION) {
        convolution(o, arena, scratch, lanes);
    } else if (o->kind == MAP) {
        lanes == 1 ? map(o, arena, 1) : map(o, arena, WIDTH);
    } else {
        lanes == 1 ? pool(o, arena, 1) : pool(o, arena, WIDTH);
    }
}

static void move(const port *p, float *arena, float *images, int64_t n, int64_t lanes, int load) {
    const int64_t pixels = p->channels * p->height * p->width;
    for (int64_t c = 0; c < p->channels; c++)
        for (int64_t y = 0; y < p->height; y++) {
            float *row = arena + p->at.base + c * p->at.plane + y * p->at.pitch;
            float *outside = images + (c * p->height + y) * p->width;
            if (lanes == 1 && load) {
                memcpy(row, outside, p->width * sizeof(float));
            } else if (lanes == 1) {
                memcpy(outside, row, p->width * sizeof(float));
            } else if (load) {
                for (int64_t l = 0; l < n; l++)
                    for (int64_t x = 0; x < p->width; x++) row[x * lanes + l] = outside[l * pixels + x];
            } else {
                for (int64_t l = 0; l < n; l++)
                    for (int64_t x = 0; x < p->width; x++) outside[l * pixels + x] = row[x * lanes + l];
            }
        }
}

typedef struct {
    const plan *p;
    float *const *in, *const *out, *arena;
    int64_t first, last;
} part;

static void *work(void *given) {
    const part *w = given;
    const plan *p = w->p;
    for (int64_t at = w->first; at < w->last; at += p->lanes) {
        const int64_t n = w->last - at < p->lanes ? w->last - at : p->lanes;
        for (int64_t i = 0; i < p->inputs; i++) {
            const port *q = p->in + i;
            move(q, w->arena, w->in[i] + at * q->channels * q->height * q->width, n, p->lanes, 1);
        }
        for (int64_t i = 0; i < p->operations; i++) perform(p->todo + i, w->arena, w->arena + p->scratch, p->lanes);
        for (int64_t i = 0; i < p->outputs; i++) {
            const port *q = p->out + i;
            move(q, w->arena, w->out[i] + at * q->channels * q->height * q->width, n, p->lanes, 0);
        }
    }
    return 0;
}

/* Images `first` to `last`, in groups of lanes; `arena` has room for each thread. */
void run(const plan *p, float *const *in, float *const *out, int64_t first, int64_t last, float *arena, int threads) {
    const int64_t groups = (last - first + p->lanes - 1) / p->lanes;
    if (threads > groups) threads = groups;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (threads <= 1) {
        part all = {p, in, out, arena, first, last};
        work(&all);
        return;
    }
    pthread_t started[MOST_THREADS];
    part parts[MOST_THREADS];
    int going[MOST_THREADS];
    for (int t = 0; t < threads; t++) {
        const int64_t from = first + groups * t / threads * p->lanes, to = first + groups * (t + 1) / threads * p->lanes;
        parts[t] = (part){p, in, out, arena + t * p->floats, from, to < last ? to : last};
    }
    for (int t = 1; t < threads; t++) going[t] = !pthread_create(started + t, 0, work, parts + t);
    work(parts);
    for (int t = 1; t < threads; t++)
        if (going[t])
            pthread_join(started[t], 0);
        else
            work(parts + t);
}

/* One image, one tensor in, one out. */
void run_one(const plan *p, float *in, float *out, float *arena) {
    move(p->in, arena, in, 1, 1, 1);
    for (int64_t i = 0; i < p->operations; i++) perform(p->todo + i, arena, arena + p->scratch, 1);
    move(p->out, arena, out, 1, 1, 0);
}

/* Seconds that one operation takes, the least of some rounds. */
double seconds(const plan *p, int64_t number, float *arena, int rounds) {
    double best = 1e9;
    for (int r = 0; r < rounds; r++) {
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        perform(p->todo + number, arena, arena + p->scratch, p->lanes);
        clock_gettime(CLOCK_MONOTONIC, &to);
        const double took = (to.tv_sec - from.tv_sec) + 1e-9 * (to.tv_nsec - from.tv_nsec);
        if (took < best) best = took;
    }
    return best;
}
