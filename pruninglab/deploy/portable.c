/* Kernels of the C file that `export_c` writes: C99, no library, no allocation. A line of `// name` begins the part that
   `export_c` writes where that name is needed.

   A value is [channel][row][column]. The surviving weights of a layer lie in the order of its matrix (outputs, weights of
   one output). Their positions are told by gaps: so many pruned weights, then one that survives; the greatest gap says
   that as many pruned weights follow, and then another gap. A last gap leads to the end of the matrix. */

// weights
typedef struct {
    int outputs;                /* channels or features */
    long inputs;                /* weights of one output, pruned ones included */
    int gap_bits, code_bits;    /* no code: `value` holds one number for each weight */
    const unsigned char *gap, *code;
    const float *value;         /* of each weight, or of each code */
    const float *scale, *shift; /* of each output; 0: nothing to do */
} weights;

typedef struct {
    const weights *w;
    long position, gap, code; /* in the matrix, and the next entries of the two streams */
} reader;

/* Number `entry` of a stream of entries of 1 to 8 bits, the highest bit first. */
static unsigned entry_of(const unsigned char *stream, long entry, int bits) {
    const unsigned long bit = (unsigned long)entry * (unsigned long)bits;
    const unsigned char *at = stream + (bit >> 3);
    return (((unsigned)at[0] << 8 | at[1]) >> (16 - (int)(bit & 7) - bits)) & ((1u << bits) - 1);
}

/* To the position of the next surviving weight. */
static void forward(reader *r) {
    const unsigned most = (1u << r->w->gap_bits) - 1;
    unsigned gap;
    do {
        gap = entry_of(r->w->gap, r->gap++, r->w->gap_bits);
        r->position += (long)gap;
    } while (gap == most);
}

static reader at_start(const weights *w) {
    reader r;
    r.w = w, r.position = 0, r.gap = 0, r.code = 0;
    forward(&r);
    return r;
}

/* The weight at the reader's position; the reader goes on to the next one. */
static float take(reader *r) {
    const weights *w = r->w;
    const long number = r->code++;
    const float value = w->code_bits ? w->value[entry_of(w->code, number, w->code_bits)] : w->value[number];
    r->position++;
    forward(r);
    return value;
}

static float shifted(const weights *w, int output, float x) {
    if (w->scale) x *= w->scale[output];
    return w->shift ? x + w->shift[output] : x;
}

// linear
static void linear(const weights *w, const float *in, const float *other, int relu, float *out) {
    reader r = at_start(w);
    long start = 0;
    for (int o = 0; o < w->outputs; o++, start += w->inputs) {
        float sum = 0;
        while (r.position < start + w->inputs) {
            const float x = in[r.position - start];
            sum += x * take(&r);
        }
        sum = shifted(w, o, sum);
        if (other) sum += other[o];
        out[o] = relu && sum < 0 ? 0 : sum;
    }
}

// convolution
typedef struct {
    weights w;
    int groups, channels, size[2]; /* of what is read */
    int kernel[2], stride[2], padding[2], dilation[2];
    int made[2], pool, relu; /* rows and columns before pooling; sides of the windows, 0 for none */
} convolution;

/* The outputs from `range[0]` up to `range[1]` find an input for the weight at `place`: return that of output 0. */
static long within(const convolution *c, int axis, int place, int range[2]) {
    const int stride = c->stride[axis], from = place * c->dilation[axis] - c->padding[axis];
    const int left = c->size[axis] - from;
    range[0] = from < 0 ? (stride - 1 - from) / stride : 0;
    range[1] = left > 0 ? (left + stride - 1) / stride : 0;
    if (range[1] > c->made[axis]) range[1] = c->made[axis];
    return from;
}

static void add_weight(const convolution *c, float value, int place, const float *in, float *sum) {
    int rows[2], columns[2];
    const long top = within(c, 0, place / c->kernel[1], rows), left = within(c, 1, place % c->kernel[1], columns);
    const long step = c->stride[1];
    for (int y = rows[0]; y < rows[1]; y++) {
        const float *from = in + (top + (long)y * c->stride[0]) * c->size[1] + left;
        float *to = sum + (long)y * c->made[1];
        if (step == 1)
            for (int x = columns[0]; x < columns[1]; x++) to[x] += value * from[x];
        else
            for (int x = columns[0]; x < columns[1]; x++) to[x] += value * from[x * step];
    }
}

/* `sum` has room for one channel before pooling; without pooling it may be the place of the first output. */
static void convolve(const convolution *c, const float *in, const float *other, float *sum, float *out) {
    const long plane = (long)c->size[0] * c->size[1], made = (long)c->made[0] * c->made[1];
    const int places = c->kernel[0] * c->kernel[1], each = c->w.outputs / c->groups;
    const long high = c->pool ? c->made[0] / c->pool : c->made[0], wide = c->pool ? c->made[1] / c->pool : c->made[1];
    reader r = at_start(&c->w);
    long start = 0;
    for (int o = 0; o < c->w.outputs; o++, start += c->w.inputs, out += high * wide) {
        const float *group = in + o / each * (c->channels / c->groups) * plane;
        float *to = c->pool ? sum : out;
        for (long i = 0; i < made; i++) to[i] = 0;
        while (r.position < start + c->w.inputs) {
            const long at = r.position - start;
            add_weight(c, take(&r), (int)(at % places), group + at / places * plane, to);
        }
        for (long i = 0; i < made; i++) {
            const float x = shifted(&c->w, o, to[i]) + (other ? other[o * made + i] : 0);
            to[i] = c->relu && x < 0 ? 0 : x;
        }
        if (!c->pool) continue;
        for (long y = 0; y < high; y++)
            for (long x = 0; x < wide; x++) {
                const float *window = sum + y * c->pool * c->made[1] + x * c->pool;
                float most = window[0];
                for (long i = 0; i < c->pool; i++)
                    for (long j = 0; j < c->pool; j++)
                        if (window[i * c->made[1] + j] > most) most = window[i * c->made[1] + j];
                out[y * wide + x] = most;
            }
    }
}

// map
/* Scales and shifts by channel, adds, cuts at 0; 0 stands for what is not done. */
static void map(int channels, long plane, const float *scale, const float *shift, const float *in, const float *other,
                int relu, float *out) {
    for (int c = 0; c < channels; c++)
        for (long i = c * plane; i < (c + 1) * plane; i++) {
            float x = scale ? in[i] * scale[c] + shift[c] : in[i];
            if (other) x += other[i];
            out[i] = relu && x < 0 ? 0 : x;
        }
}

// pooling
typedef struct {
    int channels, size[2], made[2]; /* rows and columns of what is read and of what is made */
    int kernel[2], stride[2], padding[2], mean, count_padding, relu;
} pooling;

static void pool(const pooling *p, const float *in, float *out) {
    for (long c = 0; c < p->channels; c++, in += (long)p->size[0] * p->size[1])
        for (int y = 0; y < p->made[0]; y++)
            for (int x = 0; x < p->made[1]; x++) {
                int from[2], to[2], all = 1, inside = 1;
                for (int axis = 0; axis < 2; axis++) {
                    from[axis] = (axis ? x : y) * p->stride[axis] - p->padding[axis];
                    to[axis] = from[axis] + p->kernel[axis];
                    if (to[axis] > p->size[axis] + p->padding[axis]) to[axis] = p->size[axis] + p->padding[axis];
                    all *= to[axis] - from[axis];
                    if (from[axis] < 0) from[axis] = 0;
                    if (to[axis] > p->size[axis]) to[axis] = p->size[axis];
                    inside *= to[axis] - from[axis];
                }
                float value = p->mean ? 0 : in[(long)from[0] * p->size[1] + from[1]];
                for (long i = from[0]; i < to[0]; i++)
                    for (int j = from[1]; j < to[1]; j++) {
                        const float here = in[i * p->size[1] + j];
                        if (p->mean) value += here;
                        else if (here > value) value = here;
                    }
                if (p->mean) value /= (float)(p->count_padding ? all : inside);
                *out++ = p->relu && value < 0 ? 0 : value;
            }
}

// copy
/* Every so many rows and columns of some channels. */
static void copy(int channels, int high, int wide, const int *size, const int *stride, const float *in, float *out) {
    for (long c = 0; c < channels; c++)
        for (long y = 0; y < high; y++)
            for (long x = 0; x < wide; x++) *out++ = in[(c * size[0] + y * stride[0]) * size[1] + x * stride[1]];
}

// clear
static void clear(long count, float *out) {
    for (long i = 0; i < count; i++) out[i] = 0;
}

// driver
#ifdef DRIVER /* reads a file of images, each PIXELS floats of 32 bits, and prints a class a line */
#include <stdio.h>

int main(int count, char **given) {
    static float image[NAME_PIXELS];
    FILE *file = count == 2 ? fopen(given[1], "rb") : NULL;
    if (!file) {
        fprintf(stderr, "usage: %s IMAGES, a file of 32-bit floats, %ld an image\n", given[0], (long)NAME_PIXELS);
        return 2;
    }
    while (fread(image, sizeof image, 1, file) == 1) printf("%d\n", NAME_class(image));
    return fclose(file) != 0;
}
#endif
