#include "crypto/passphrase.h"
#include "core/mem.h"
#include "crypto/init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

/* Reads one byte at a time so that nothing behind the line is taken from a shared descriptor. */
static iso_err read_line(int fd, char *line, size_t *chars, iso_error *e)
{
    size_t n = 0;
    for (;;) {
        char c;
        ssize_t got = read(fd, &c, 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return iso_fail_errno(e, ISO_ERR_USAGE, errno, "cannot read the passphrase");
        if (got == 0 || c == '\n')
            break;
        if (n == ISO_PASSPHRASE_MAX)
            return iso_fail(e, ISO_ERR_USAGE, "the passphrase is longer than %d bytes",
                            ISO_PASSPHRASE_MAX);
        if (c == 0)
            return iso_fail(e, ISO_ERR_USAGE, "the passphrase holds a NUL");
        line[n++] = c;
    }
    line[n] = 0;
    *chars = n;
    return ISO_OK;
}

iso_err iso_passphrase_from_fd(int fd, char **out, iso_error *e)
{
    size_t n = 0;
    *out = NULL;
    char *line = iso_secret_alloc(ISO_PASSPHRASE_MAX + 1);
    if (!line)
        return iso_nomem(e, ISO_PASSPHRASE_MAX + 1);
    iso_err err = read_line(fd, line, &n, e);
    if (!err && n == 0)
        err = iso_fail(e, ISO_ERR_USAGE, "the passphrase is empty");
    if (err) {
        iso_secret_free(line);
        return err;
    }
    *out = line;
    return ISO_OK;
}

static iso_err ask(int tty, const char *question, char **out, iso_error *e)
{
    struct termios shown, hidden;
    if (tcgetattr(tty, &shown) != 0)
        return iso_fail_errno(e, ISO_ERR_USAGE, errno, "/dev/tty");
    hidden = shown;
    hidden.c_lflag &= ~(tcflag_t)ECHO;
    if (tcsetattr(tty, TCSAFLUSH, &hidden) != 0)
        return iso_fail_errno(e, ISO_ERR_USAGE, errno, "/dev/tty");
    dprintf(tty, "%s: ", question);
    iso_err err = iso_passphrase_from_fd(tty, out, e);
    dprintf(tty, "\n");
    tcsetattr(tty, TCSAFLUSH, &shown);
    return err;
}

iso_err iso_passphrase_prompt(const char *question, bool twice, char **out, iso_error *e)
{
    char *again = NULL;
    *out = NULL;
    int tty = open("/dev/tty", O_RDWR | O_CLOEXEC);
    if (tty < 0)
        return iso_fail(
            e, ISO_ERR_USAGE,
            "no terminal to ask for the passphrase: use --passphrase-fd or --no-passphrase");
    iso_err err = ask(tty, question, out, e);
    if (!err && twice)
        err = ask(tty, "the same again", &again, e);
    if (!err && twice && strcmp(*out, again) != 0)
        err = iso_fail(e, ISO_ERR_USAGE, "the two passphrases differ");
    close(tty);
    iso_secret_free(again);
    if (err) {
        iso_secret_free(*out);
        *out = NULL;
    }
    return err;
}

iso_err iso_passphrase_from_credential(const char *name, char **out, iso_error *e)
{
    *out = NULL;
    /* The folder's name comes from the environment (systemd), the passphrase does not (S12). */
    const char *folder = getenv("CREDENTIALS_DIRECTORY");
    if (!folder)
        return ISO_OK;
    char *path = iso_strf("%s/%s", folder, name);
    if (!path)
        return iso_nomem(e, strlen(folder));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    iso_err err = ISO_OK;
    if (fd >= 0) {
        err = iso_passphrase_from_fd(fd, out, e);
        close(fd);
    } else if (errno != ENOENT) {
        err = iso_fail_errno(e, ISO_ERR_TRUST, errno, "%s", path);
    }
    free(path);
    return err;
}
