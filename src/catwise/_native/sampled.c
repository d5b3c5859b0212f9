/* Products of head rows with feature rows, at known labels only (SDDMM and SpMM), in float32.

   The features z (n, d), the head rows w (c, d) and the gradient (c, d) lie row by row. The known
   entries are sparse rows (CSR): those of row r are start[r] ... start[r + 1] - 1, each with its
   category and with the place of its logit or slope in the caller's array.

   Vectors are cut into chunks, and rows into blocks. A chunk of all head rows is packed, so that it
   lies in a core's caches without conflicts while a block of rows is read along it; a row's chunk
   stays in registers for all of its entries. So an entry loads one operand from a near cache, and
   the features are read from memory once. Partial sums of the gradient belong to fixed parts of the
   rows and are added in order: no result depends on the number of threads. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef SOURCE
#define SOURCE 0 /* CRC-32 of this file, by which `sampled.py` knows a library that is not of it */
#endif
#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#define CHUNK 128 /* floats, a multiple of two vectors */
#define BLOCK 128 /* rows */
#define AHEAD 4   /* rows from the one in hand to the one that is fetched */

#define INLINE static inline __attribute__((always_inline))
#define FLOATS(n) ((size_t)(n) * sizeof(float))

/* Wider than the baseline's registers, so never an argument of a function that is not inlined. */
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef struct {
    const float *z;
    int64_t n, d, c;
    const int64_t *start;
    const int32_t *category, *place;
} entries_t;

uint32_t catwise_sampled_source(void) { return SOURCE; }

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

#if defined(__clang__) || __GNUC__ >= 12
INLINE float total(vec v) {
    typedef float four __attribute__((vector_size(16)));
#if LANES == 16
    typedef float eight __attribute__((vector_size(32)));
    eight half = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                 __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
#else
    vec half = v;
#endif
    four sum = __builtin_shufflevector(half, half, 0, 1, 2, 3) +
               __builtin_shufflevector(half, half, 4, 5, 6, 7);
    sum += __builtin_shufflevector(sum, sum, 2, 3, 0, 1);
    return sum[0] + sum[1];
}
#else /* the same sums through memory */
INLINE float total(vec v) {
    float lane[LANES];
    memcpy(lane, &v, sizeof lane);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}
#endif

static float *allocate(int64_t floats) {
    return aligned_alloc(64, (FLOATS(floats) + 64) / 64 * 64);
}

/* Floats of c packed vectors: chunk after chunk, the last one padded. */
INLINE int64_t packed_size(int64_t c, int64_t d) { return (d + CHUNK - 1) / CHUNK * CHUNK * c; }

/* A chunk of a vector; one that is short is padded with zeros in a space of its own. */
INLINE const float *chunk_of(const float *vector, int64_t from, int64_t d, float *own) {
    int64_t width = d - from;
    if (width >= CHUNK) return vector + from;
    memcpy(own, vector + from, FLOATS(width));
    memset(own + width, 0, FLOATS(CHUNK - width));
    return own;
}

/* A chunk of row r in registers, and the same of a later row on its way to the cache. */
INLINE void load_row(const entries_t *e, int64_t r, int64_t from, vec *x) {
    float own[CHUNK];
    const float *later = e->z + least(r + AHEAD, e->n - 1) * e->d + from;
    for (int64_t i = 0; i < least(CHUNK, e->d - from); i += 16) __builtin_prefetch(later + i);
    const vec *chunk = (const vec *)chunk_of(e->z + r * e->d, from, e->d, own);
    for (int q = 0; q < CHUNK / LANES; q++) x[q] = chunk[q];
}

static void forward_block(const entries_t *e, int64_t first, int64_t stop, const float *packed, float *sum) {
    memset(sum + e->start[first], 0, FLOATS(e->start[stop] - e->start[first]));
    for (int64_t from = 0; from < e->d; from += CHUNK) {
        const float *head = packed + from * e->c;
        for (int64_t r = first; r < stop; r++) {
            vec x[CHUNK / LANES];
            load_row(e, r, from, x);
            for (int64_t i = e->start[r]; i < e->start[r + 1]; i++) {
                const vec *w = (const vec *)(head + (int64_t)e->category[i] * CHUNK);
                vec even = x[0] * w[0], odd = x[1] * w[1];
                for (int q = 2; q < CHUNK / LANES; q += 2) {
                    even += x[q] * w[q];
                    odd += x[q + 1] * w[q + 1];
                }
                sum[i] += total(even + odd);
            }
        }
    }
}

/* logits[place] = z[row] . w[category] for every entry; 1 if memory is short. */
int32_t catwise_sampled_forward(
    const float *z, const float *w, int64_t n, int64_t d, int64_t c, const int64_t *start,
    const int32_t *category, const int32_t *place, float *logits, int32_t threads) {
    entries_t e = {z, n, d, c, start, category, place};
    float *packed = allocate(packed_size(c, d)), *sum = allocate(start[n]);
    if (packed && sum) {
        for (int64_t from = 0; from < d; from += CHUNK)
            for (int64_t j = 0; j < c; j++) {
                float *to = packed + from * c + j * CHUNK;
                const float *chunk = chunk_of(w + j * d, from, d, to);
                if (chunk != to) memcpy(to, chunk, FLOATS(CHUNK));
            }
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t first = 0; first < n; first += BLOCK) {
            int64_t stop = least(first + BLOCK, n);
            forward_block(&e, first, stop, packed, sum);
            for (int64_t i = start[first]; i < start[stop]; i++) logits[place[i]] = sum[i];
        }
    }
    int32_t short_of_memory = !packed || !sum;
    free(packed);
    free(sum);
    return short_of_memory;
}

static void backward_block(const entries_t *e, int64_t first, int64_t stop, const float *slope, float *packed) {
    for (int64_t from = 0; from < e->d; from += CHUNK) {
        float *head = packed + from * e->c;
        for (int64_t r = first; r < stop; r++) {
            vec x[CHUNK / LANES];
            load_row(e, r, from, x);
            for (int64_t i = e->start[r]; i < e->start[r + 1]; i++) {
                vec *g = (vec *)(head + (int64_t)e->category[i] * CHUNK);
                for (int q = 0; q < CHUNK / LANES; q++) g[q] += slope[i] * x[q];
            }
        }
    }
}

/* gradient[category] = sum of slopes[place] z[row] over the category's entries; 1 if memory is
   short. The rows are cut into `parts`, each with sums of its own, for any number of threads. */
int32_t catwise_sampled_backward(
    const float *z, const float *slopes, int64_t n, int64_t d, int64_t c, const int64_t *start,
    const int32_t *category, const int32_t *place, float *gradient, int32_t parts, int32_t threads) {
    entries_t e = {z, n, d, c, start, category, place};
    int64_t size = packed_size(c, d);
    float *packed = allocate(size * parts), *slope = allocate(start[n]);
    if (packed && slope) {
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int32_t part = 0; part < parts; part++) {
            int64_t stop = n * (part + 1) / parts;
            memset(packed + size * part, 0, FLOATS(size));
            for (int64_t first = n * part / parts; first < stop; first += BLOCK) {
                int64_t last = least(first + BLOCK, stop);
                for (int64_t i = start[first]; i < start[last]; i++) slope[i] = slopes[place[i]];
                backward_block(&e, first, last, slope, packed + size * part);
            }
        }
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t j = 0; j < c; j++)
            for (int64_t from = 0; from < d; from += CHUNK) {
                const float *chunk = packed + from * c + j * CHUNK;
                for (int64_t i = 0; i < least(CHUNK, d - from); i++) {
                    float sum = chunk[i];
                    for (int32_t part = 1; part < parts; part++) sum += chunk[size * part + i];
                    gradient[j * d + from + i] = sum;
                }
            }
    }
    int32_t short_of_memory = !packed || !slope;
    free(packed);
    free(slope);
    return short_of_memory;
}
