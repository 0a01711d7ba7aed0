/* Running the programs as people do: by fork and exec, with what they print and how they end. */
#ifndef TESTS_CLI_PROGRAM_H
#define TESTS_CLI_PROGRAM_H

#include "core/fsio.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

typedef struct {
    int exit_code;    /* or 128 + signal */
    iso_buf out, err; /* end with a NUL that is not counted */
} program_result;

static inline void program_free(program_result *r)
{
    iso_buf_free(&r->out);
    iso_buf_free(&r->err);
}

/* The program lies beside the test's own binary. */
static inline pid_t program_start(const char *const *argv, const char *folder)
{
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    assert_true(n > 0);
    self[n] = 0;
    *strrchr(self, '/') = 0;
    char *program = iso_path_join(self, argv[0]);
    char *out = iso_path_join(folder, "stdout.txt"), *err = iso_path_join(folder, "stderr.txt");
    /* Opened here, so that they are there however early the child is killed. */
    int fd_out = open(out, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    int fd_err = open(err, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd_out >= 0 && fd_err >= 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (!pid) {
        if (dup2(fd_out, STDOUT_FILENO) < 0 || dup2(fd_err, STDERR_FILENO) < 0)
            _exit(126);
        execv(program, (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    close(fd_out);
    close(fd_err);
    free(program);
    free(out);
    free(err);
    return pid;
}

static inline program_result program_end(pid_t pid, const char *folder)
{
    program_result r = {0};
    int status;
    iso_error e;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    r.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    char *out = iso_path_join(folder, "stdout.txt"), *err = iso_path_join(folder, "stderr.txt");
    assert_int_equal(iso_read_file(out, 1 << 26, &r.out, &e), ISO_OK);
    assert_int_equal(iso_read_file(err, 1 << 26, &r.err, &e), ISO_OK);
    assert_true(unlink(out) == 0 && unlink(err) == 0);
    free(out);
    free(err);
    if (r.exit_code == 127)
        fail_msg("the program is not beside the test: build it first");
    return r;
}

static inline program_result program_run(const char *const *argv, const char *folder)
{
    return program_end(program_start(argv, folder), folder);
}

/* Fails with all that was said unless the program ends with `code` and stderr (or, if it is empty
 * there, stdout) holds `wanted`. */
static inline void program_check(const program_result *r, int code, const char *wanted)
{
    const char *out = (const char *)r->out.data, *err = (const char *)r->err.data;
    if (r->exit_code != code || (wanted && !strstr(err, wanted) && !strstr(out, wanted)))
        fail_msg("exit code %d instead of %d, or \"%s\" not said; stdout:\n%s\nstderr:\n%s",
                 r->exit_code, code, wanted ? wanted : "", out, err);
}

#endif
