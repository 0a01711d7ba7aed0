#include "crypto/init.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

iso_err iso_crypto_init(iso_error *e)
{
    if (sodium_init() < 0) /* 0 the first time, 1 when it has been called before */
        return iso_fail(e, ISO_ERR_INTERNAL, "libsodium cannot start");
    return ISO_OK;
}

iso_err iso_crypto_no_dumps(iso_error *e)
{
    struct rlimit none = {0, 0};
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
        return iso_fail_errno(e, ISO_ERR_INTERNAL, errno, "cannot switch core dumps off");
    if (setrlimit(RLIMIT_CORE, &none) != 0)
        return iso_fail_errno(e, ISO_ERR_INTERNAL, errno, "cannot set the core size limit to 0");
    return ISO_OK;
}

bool iso_crypto_swap_is_on(void)
{
    /* The first line is a heading; any further one is a swap area. */
    char text[512];
    int fd = open("/proc/swaps", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return false;
    text[n] = 0;
    const char *line_end = strchr(text, '\n');
    return line_end && line_end[1] != 0;
}

void iso_random(void *out, size_t bytes)
{
    randombytes_buf(out, bytes);
}

static void fill(void *ctx, void *out, size_t bytes)
{
    (void)ctx;
    randombytes_buf(out, bytes);
}

iso_entropy iso_entropy_real(void)
{
    return (iso_entropy){.ctx = NULL, .fill = fill};
}

void iso_wipe(void *p, size_t bytes)
{
    sodium_memzero(p, bytes);
}

void *iso_secret_alloc(size_t bytes)
{
    void *p = sodium_malloc(bytes); /* guarded, and locked as far as RLIMIT_MEMLOCK allows */
    if (p)
        sodium_memzero(p, bytes);
    return p;
}

void iso_secret_free(void *p)
{
    sodium_free(p);
}

bool iso_secret_equal(const void *a, const void *b, size_t bytes)
{
    return sodium_memcmp(a, b, bytes) == 0;
}
