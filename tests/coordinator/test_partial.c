/* Uploads on disk: chunks, cut files, and many that become durable together (S53, S84, S88). */
#include "coordinator/partial.h"
#include "core/fsio.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { CHUNK = 64, BODY = 150, FILES = 8 };

typedef struct {
    char dir[64];
    iso_partials partials;
    iso_blob_dir blobs;
} folder;

static void open_folder(folder *f)
{
    snprintf(f->dir, sizeof f->dir, "/tmp/isofed-partial-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    assert_int_equal(iso_partials_open(&f->partials, f->dir, NULL), ISO_OK);
    assert_int_equal(iso_blob_dir_open(&f->blobs, f->dir, NULL), ISO_OK);
}

static void close_folder(folder *f)
{
    iso_partials_close(&f->partials);
    iso_blob_dir_close(&f->blobs);
    assert_int_equal(iso_remove_tree(f->dir, NULL), ISO_OK);
}

static void body_of(int i, uint8_t body[BODY])
{
    for (int k = 0; k < BODY; k++)
        body[k] = (uint8_t)(i * 31 + k);
}

static iso_partial_file upload(folder *f, int i)
{
    iso_partial_file x = {.id = {(uint8_t)i, 1}, .bytes = BODY};
    uint8_t body[BODY];
    uint32_t chunks = 9;
    body_of(i, body);
    x.digest = iso_digest_of(body, BODY);
    assert_int_equal(iso_partial_open(&f->partials, x.id, CHUNK, BODY, &chunks, NULL), ISO_OK);
    assert_int_equal(chunks, 0);
    for (size_t at = 0; at < BODY; at += CHUNK)
        assert_int_equal(iso_partial_write(&f->partials, x.id, body + at,
                                           BODY - at < CHUNK ? BODY - at : CHUNK, NULL),
                         ISO_OK);
    return x;
}

/* One alone and many together end alike: what is whole is a blob, what is not is named. */
static void S88_many_uploads_become_durable_together(void **state)
{
    (void)state;
    for (size_t count = 1; count <= FILES; count++) {
        folder f;
        iso_partial_file files[FILES];
        iso_error e = {0};
        open_folder(&f);
        for (size_t i = 0; i < count; i++)
            files[i] = upload(&f, (int)i);
        files[0].digest.b[0] ^= count > 1; /* another body than its header says */
        if (count > 3)
            iso_partial_drop(&f.partials, files[3].id); /* its site was revoked meanwhile */
        if (count > 5)
            files[5] = files[4]; /* asked for twice */
        iso_partials_store(&f.partials, files, count, &f.blobs, &e);
        for (size_t i = 0; i < count; i++) {
            uint8_t body[BODY], have[BODY];
            size_t got = 0;
            bool is_bad = (i == 0 && count > 1) || i == 3 || i == 5;
            assert_int_equal(files[i].err, is_bad ? ISO_ERR_DATA : ISO_OK);
            if (is_bad)
                continue;
            body_of((int)i, body);
            assert_int_equal(iso_blob_dir_read(&f.blobs, &files[i].digest, 0, have, BODY, &got, &e),
                             ISO_OK);
            assert_int_equal(got, BODY);
            assert_memory_equal(have, body, BODY);
        }
        close_folder(&f);
    }
}

/* A blob of that name that a power cut tore is replaced, not trusted (S84). */
static void S84_a_torn_blob_is_replaced(void **state)
{
    (void)state;
    folder f;
    iso_partial_file files[3];
    char path[4096];
    open_folder(&f);
    for (int i = 0; i < 3; i++)
        files[i] = upload(&f, i);
    iso_blob_dir_path(&f.blobs, &files[1].digest, path, sizeof path);
    char *slash = strrchr(path, '/');
    *slash = 0;
    assert_int_equal(iso_make_dirs(path, 0700, NULL), ISO_OK);
    *slash = '/';
    assert_int_equal(iso_write_file(path, "torn", 4, 0600, NULL), ISO_OK);
    iso_partials_store(&f.partials, files, 3, &f.blobs, NULL);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(files[i].err, ISO_OK);
        assert_int_equal(iso_blob_dir_verify(&f.blobs, &files[i].digest, NULL), ISO_OK);
    }
    close_folder(&f);
}

/* What a crash leaves is cut back to whole chunks and hashed again. */
static void S53_a_cut_file_goes_on_at_its_last_whole_chunk(void **state)
{
    (void)state;
    for (long size = 0; size <= BODY; size++) {
        folder f;
        uint8_t body[BODY];
        uint32_t chunks = 9;
        open_folder(&f);
        iso_partial_file x = upload(&f, 1);
        iso_partials_close(&f.partials);
        assert_int_equal(iso_partials_open(&f.partials, f.dir, NULL), ISO_OK);
        char path[160], hex[33];
        iso_hex(hex, x.id, 16);
        snprintf(path, sizeof path, "%s/uploads/%s", f.dir, hex);
        assert_int_equal(truncate(path, size), 0);
        assert_int_equal(iso_partial_open(&f.partials, x.id, CHUNK, BODY, &chunks, NULL), ISO_OK);
        assert_int_equal(chunks, size == BODY ? 3 : size / CHUNK);
        body_of(1, body);
        for (size_t at = chunks * (size_t)CHUNK; at < BODY; at += CHUNK)
            assert_int_equal(iso_partial_write(&f.partials, x.id, body + at,
                                               BODY - at < CHUNK ? BODY - at : CHUNK, NULL),
                             ISO_OK);
        iso_partials_store(&f.partials, &x, 1, &f.blobs, NULL);
        assert_int_equal(x.err, ISO_OK);
        close_folder(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(S88_many_uploads_become_durable_together),
        cmocka_unit_test(S84_a_torn_blob_is_replaced),
        cmocka_unit_test(S53_a_cut_file_goes_on_at_its_last_whole_chunk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
