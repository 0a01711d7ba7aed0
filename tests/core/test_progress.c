/* Progress: nothing when stderr is no terminal or quiet is asked; one line that is drawn over on a
 * terminal, rate and time at its end. */
#include "core/progress.h"

#include <pty.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

/* What a run of 100 steps writes to stderr when that is `fd`; `from` reads it. */
static char *written(int fd, int from, bool quiet)
{
    static char text[16384];
    int saved = dup(STDERR_FILENO);
    dup2(fd, STDERR_FILENO);
    iso_progress p;
    iso_progress_start(&p, "training", "images", 100, quiet);
    for (int i = 1; i <= 100; i++) {
        iso_progress_update(&p, i, "loss 0.412");
        nanosleep(&(struct timespec){.tv_nsec = 8000000}, NULL);
    }
    iso_progress_end(&p, 100);
    iso_progress_end(&p, 100); /* says nothing twice */
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(fd);
    size_t used = 0;
    ssize_t n;
    while (used < sizeof text - 1 && (n = read(from, text + used, sizeof text - 1 - used)) > 0)
        used += (size_t)n;
    text[used] = 0;
    close(from);
    return text;
}

static void silent_when_piped_or_quiet(void **state)
{
    (void)state;
    int ends[2], terminal, other;
    assert_int_equal(pipe(ends), 0);
    assert_string_equal(written(ends[1], ends[0], false), "");
    assert_int_equal(openpty(&terminal, &other, NULL, NULL, NULL), 0);
    assert_string_equal(written(other, terminal, true), "");
}

static void one_line_on_a_terminal(void **state)
{
    (void)state;
    int terminal, other;
    assert_int_equal(openpty(&terminal, &other, NULL, NULL, NULL), 0);
    const char *text = written(other, terminal, false);
    static const char *const parts[] = {"training [", "%  ", " images/s, ", " left  loss 0.412",
                                        "training: 100 images in "};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (!strstr(text, parts[i]))
            fail_msg("no \"%s\" in \"%s\"", parts[i], text);
    size_t draws = 0, lines = 0;
    for (const char *p = text; *p; p++) {
        draws += *p == '\r' && p[1] != '\n';
        lines += *p == '\n';
    }
    assert_int_equal(lines, 1);
    assert_true(draws >= 3);
    assert_true(draws <= 200); /* ten a second at most, on however slow a machine */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(silent_when_piped_or_quiet),
        cmocka_unit_test(one_line_on_a_terminal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
