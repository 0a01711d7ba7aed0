/* Runs the isofed binary that lies beside the test and keeps what it printed. */
#ifndef ISO_TESTS_RUN_ISOFED_H
#define ISO_TESTS_RUN_ISOFED_H

#include "core/fsio.h"

#include <fcntl.h>
#include <setjmp.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

extern char **environ;

typedef struct {
    int rc;
    char out[1 << 16], err[1 << 13]; /* cut to this */
} run_result;

/* New temporary folder; remove with iso_remove_tree. */
static inline char *make_temp_dir(void)
{
    const char *root = getenv("TMPDIR");
    char *path = iso_strf("%s/isofed-test-XXXXXX", root ? root : "/tmp");
    assert_non_null(path);
    assert_non_null(mkdtemp(path));
    return path;
}

static inline void read_all(const char *path, char *out, size_t bytes)
{
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    size_t n = fread(out, 1, bytes - 1, f);
    out[n] = 0;
    fclose(f);
}

/* args: NULL-terminated, without the program's name; folder: for the captured output. */
static inline void run_isofed(const char *folder, const char *const *args, run_result *r)
{
    char program[4096];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 16);
    assert_true(n > 0);
    program[n] = 0;
    strcpy(strrchr(program, '/'), "/isofed");
    if (!iso_path_exists(program))
        fail_msg("%s is not built", program);
    char *out = iso_path_join(folder, "stdout"), *err = iso_path_join(folder, "stderr"),
         *argv[300] = {program};
    size_t count = 1;
    for (; args[count - 1]; count++) {
        assert_true(count < 299);
        argv[count] = (char *)(uintptr_t)args[count - 1];
    }
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, out, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, err, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    pid_t pid;
    int status;
    assert_int_equal(posix_spawn(&pid, program, &actions, NULL, argv, environ), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    posix_spawn_file_actions_destroy(&actions);
    r->rc = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    read_all(out, r->out, sizeof r->out);
    read_all(err, r->err, sizeof r->err);
    free(out);
    free(err);
}

#endif
