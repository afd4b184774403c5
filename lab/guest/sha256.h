/*
 * sha256 - SHA-256 of a stream of bytes (FIPS 180-4), for programs without
 * libraries
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SHA256_H
#define SHA256_H

#include <stdint.h>
#include <string.h>
#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#endif

#define SHA256_LEN 32
#define SHA256_BLOCK 64

struct sha256 {
    uint32_t state[8];
    uint64_t len;                       /* bytes so far */
    uint8_t block[SHA256_BLOCK];        /* the len % SHA256_BLOCK last ones */
};

static inline void sha256_init(struct sha256 *s)
{
    static const uint32_t state[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    };

    memcpy(s->state, state, sizeof(state));
    s->len = 0;
}

static inline uint32_t sha256_rotate(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

static inline uint32_t sha256_load(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];
}

static inline void sha256_store(uint8_t *p, uint32_t x)
{
    p[0] = x >> 24;
    p[1] = x >> 16;
    p[2] = x >> 8;
    p[3] = x;
}

static const uint32_t sha256_k[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
    0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
    0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
    0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
    0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
    0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline void sha256_transform(uint32_t *state, const uint8_t *block)
{
    uint32_t w[64], v[8];

    for (int i = 0; i < 16; i++) {
        w[i] = sha256_load(block + 4 * i);
    }
    for (int i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];

        w[i] = w[i - 16] + w[i - 7] +
               (sha256_rotate(a, 7) ^ sha256_rotate(a, 18) ^ a >> 3) +
               (sha256_rotate(b, 17) ^ sha256_rotate(b, 19) ^ b >> 10);
    }
    memcpy(v, state, sizeof(v));
    for (int i = 0; i < 64; i++) {
        uint32_t a = v[0], e = v[4];
        uint32_t t = v[7] + sha256_k[i] + w[i] + ((e & v[5]) ^ (~e & v[6])) +
                     (sha256_rotate(e, 6) ^ sha256_rotate(e, 11) ^
                      sha256_rotate(e, 25));
        uint32_t u = ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2])) +
                     (sha256_rotate(a, 2) ^ sha256_rotate(a, 13) ^
                      sha256_rotate(a, 22));

        memmove(v + 1, v, 7 * sizeof(v[0]));
        v[4] += t;
        v[0] = t + u;
    }
    for (int i = 0; i < 8; i++) {
        state[i] += v[i];
    }
}

#ifdef __x86_64__
/*
 * By the SHA extensions, which -cpu max has under TCG, too: many times as fast
 * there.  @w: message words 4 * i to 4 * i + 3, of the last four i.
 */
__attribute__((target("sha,sse4.1")))
static inline void sha256_transform_ni(uint32_t *state, const uint8_t *block)
{
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b,
                                        0x0405060700010203);
    __m128i t = _mm_shuffle_epi32(_mm_loadu_si128((void *)state), 0xb1);
    __m128i h = _mm_shuffle_epi32(_mm_loadu_si128((void *)(state + 4)), 0x1b);
    __m128i abef = _mm_alignr_epi8(t, h, 8), cdgh = _mm_blend_epi16(h, t, 0xf0);
    __m128i abef_before = abef, cdgh_before = cdgh, w[4];

    for (int i = 0; i < 16; i++) {
        __m128i m;

        if (i < 4) {
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((void *)(block + 16 * i)),
                                    swap);
        } else {
            m = _mm_alignr_epi8(w[(i + 3) % 4], w[(i + 2) % 4], 4);
            w[i % 4] = _mm_sha256msg2_epu32(
                _mm_add_epi32(_mm_sha256msg1_epu32(w[i % 4], w[(i + 1) % 4]),
                              m), w[(i + 3) % 4]);
        }
        m = _mm_add_epi32(w[i % 4],
                          _mm_load_si128((void *)(sha256_k + 4 * i)));
        cdgh = _mm_sha256rnds2_epu32(cdgh, abef, m);
        abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(m, 0x0e));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
    t = _mm_shuffle_epi32(abef, 0x1b);
    h = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128((void *)state, _mm_blend_epi16(t, h, 0xf0));
    _mm_storeu_si128((void *)(state + 4), _mm_alignr_epi8(h, t, 8));
}
#endif

static inline void sha256_blocks(uint32_t *state, const uint8_t *p, size_t n)
{
#ifdef __x86_64__
    unsigned a, b, c, d;

    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA)) {
        for (; n; n--, p += SHA256_BLOCK) {
            sha256_transform_ni(state, p);
        }
    }
#endif
    for (; n; n--, p += SHA256_BLOCK) {
        sha256_transform(state, p);
    }
}

static inline void sha256_add(struct sha256 *s, const void *data, size_t len)
{
    const uint8_t *p = data;
    size_t filled = s->len % SHA256_BLOCK;

    s->len += len;
    if (filled) {
        size_t n = SHA256_BLOCK - filled;

        if (len < n) {
            memcpy(s->block + filled, p, len);
            return;
        }
        memcpy(s->block + filled, p, n);
        sha256_blocks(s->state, s->block, 1);
        p += n;
        len -= n;
    }
    sha256_blocks(s->state, p, len / SHA256_BLOCK);
    memcpy(s->block, p + len / SHA256_BLOCK * SHA256_BLOCK,
           len % SHA256_BLOCK);
}

/* @digest: SHA256_LEN bytes.  @s is of no use afterwards. */
static inline void sha256_end(struct sha256 *s, uint8_t *digest)
{
    static const uint8_t padding[SHA256_BLOCK] = { 0x80 };
    uint64_t bits = s->len * 8;
    uint8_t length[8];

    sha256_store(length, bits >> 32);
    sha256_store(length + 4, bits);
    sha256_add(s, padding, 1 + (2 * SHA256_BLOCK - 9 - s->len % SHA256_BLOCK) %
                           SHA256_BLOCK);
    sha256_add(s, length, sizeof(length));
    for (int i = 0; i < 8; i++) {
        sha256_store(digest + 4 * i, s->state[i]);
    }
}

#endif
