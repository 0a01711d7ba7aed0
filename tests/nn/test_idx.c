/* IDX files: good, gzipped, and lying about their sizes. */
#include "nn/data/idx.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include <cmocka.h>

static const uint8_t images[] = {0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2,  0,  0,
                                 0, 3, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};

static size_t pack(const void *in, size_t n, uint8_t *out, size_t room)
{
    z_stream z = {0};
    assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (Bytef *)(uintptr_t)in;
    z.avail_in = (uInt)n;
    z.next_out = out;
    z.avail_out = (uInt)room;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    size_t size = room - z.avail_out;
    deflateEnd(&z);
    return size;
}

/* Parses an exact copy. */
static iso_err parse(iso_idx *x, const void *data, size_t size, iso_error *e)
{
    uint8_t *copy = malloc(size ? size : 1);
    assert_non_null(copy);
    memcpy(copy, data, size);
    iso_err err = iso_idx_parse(x, copy, size, "file", e);
    free(copy);
    return err;
}

static void plain_and_gzipped(void **state)
{
    (void)state;
    uint8_t packed[256];
    size_t n = pack(images, sizeof images, packed, sizeof packed);
    for (int k = 0; k < 2; k++) {
        iso_idx x;
        iso_error e;
        assert_int_equal(parse(&x, k ? packed : images, k ? n : sizeof images, &e), ISO_OK);
        assert_int_equal(x.ndim, 3);
        assert_int_equal(x.shape[0], 2);
        assert_int_equal(x.shape[2], 3);
        assert_memory_equal(x.data, images + 16, 12);
        iso_idx_free(&x);
    }
}

static void bad_files(void **state)
{
    (void)state;
    uint8_t packed[256], copy[sizeof images];
    iso_idx x;
    iso_error e;
    size_t n = pack(images, sizeof images, packed, sizeof packed);
    for (size_t k = 0; k < sizeof images; k++)
        assert_int_equal(parse(&x, images, k, &e), ISO_ERR_DATA);
    for (size_t k = 0; k < n; k++)
        assert_int_equal(parse(&x, packed, k, &e), ISO_ERR_DATA);
    for (size_t k = 0; k < 16; k++) { /* every byte of the head */
        memcpy(copy, images, sizeof images);
        copy[k] ^= 0x81;
        assert_int_equal(parse(&x, copy, sizeof copy, &e), ISO_ERR_DATA);
        assert_null(x.data);
    }
    packed[n - 6] ^= 1; /* the checksum */
    assert_int_equal(parse(&x, packed, n, &e), ISO_ERR_DATA);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_and_gzipped),
        cmocka_unit_test(bad_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
