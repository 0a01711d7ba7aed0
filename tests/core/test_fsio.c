/* Files: bounds, kinds of file, atomic writes (S80), the lock (S81), folders. */
#include "core/fsio.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char *folder;

static int set_up(void **state)
{
    (void)state;
    folder = iso_strdup("/tmp/isofed-test-fsio-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    iso_error e;
    iso_err err = iso_remove_tree(folder, &e);
    free(folder);
    return err ? -1 : 0;
}

static size_t entries(void)
{
    iso_names names;
    assert_int_equal(iso_list_dir(folder, &names, NULL), ISO_OK);
    size_t n = names.count;
    iso_names_free(&names);
    return n;
}

static void reads_are_bounded(void **state)
{
    (void)state;
    char *path = iso_path_join(folder, "file");
    iso_buf b;
    iso_error e;
    assert_int_equal(iso_write_file(path, "hello", 5, 0644, &e), ISO_OK);
    static const struct {
        size_t max;
        iso_err code;
    } rows[] = {{4, ISO_ERR_DATA}, {5, ISO_OK}, {1 << 20, ISO_OK}, {SIZE_MAX, ISO_OK}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_equal(iso_read_file(path, rows[i].max, &b, &e), rows[i].code);
        if (!rows[i].code) {
            assert_int_equal(b.size, 5);
            assert_string_equal((char *)b.data, "hello");
        } else {
            assert_null(b.data);
            assert_non_null(strstr(e.text, "larger than the 4 bytes"));
        }
        iso_buf_free(&b);
    }
    /* A file whose size is not known before it is read. */
    assert_int_equal(iso_read_file("/proc/self/status", 1 << 20, &b, &e), ISO_OK);
    assert_true(b.size > 100 && strlen((char *)b.data) == b.size);
    iso_buf_free(&b);
    assert_int_equal(iso_read_file("/proc/self/status", 100, &b, &e), ISO_ERR_DATA);
    free(path);
}

static void S9_1_only_regular_files(void **state)
{
    (void)state;
    char *fifo = iso_path_join(folder, "fifo"), *loop = iso_path_join(folder, "loop");
    char *locked = iso_path_join(folder, "locked");
    iso_error e;
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(symlink("loop", loop), 0);
    assert_int_equal(iso_write_file(locked, "x", 1, 0000, &e), ISO_OK);
    const struct {
        const char *path;
        iso_err code;
    } rows[] = {{"/dev/zero", ISO_ERR_DATA},
                {fifo, ISO_ERR_DATA},
                {loop, ISO_ERR_DATA},
                {folder, ISO_ERR_DATA},
                {"/nowhere/x", ISO_ERR_DATA}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_buf b;
        iso_map m;
        assert_int_equal(iso_read_file(rows[i].path, 100, &b, &e), rows[i].code);
        assert_non_null(strstr(e.text, rows[i].path));
        assert_int_equal(iso_map_open(&m, rows[i].path, &e), rows[i].code);
    }
    if (geteuid() != 0) { /* root reads everything */
        iso_buf b;
        assert_int_equal(iso_read_file(locked, 100, &b, &e), ISO_ERR_TRUST);
    }
    free(fifo);
    free(loop);
    free(locked);
}

static void maps(void **state)
{
    (void)state;
    char *path = iso_path_join(folder, "file"), *link = iso_path_join(folder, "link");
    iso_error e;
    iso_map m;
    assert_int_equal(iso_write_file(path, "hello", 5, 0644, &e), ISO_OK);
    assert_int_equal(symlink("file", link), 0);
    assert_int_equal(iso_map_open(&m, link, &e), ISO_OK); /* the user named it */
    assert_int_equal(m.size, 5);
    assert_memory_equal(m.data, "hello", 5);
    iso_map_close(&m);
    int fd = open(folder, O_RDONLY | O_DIRECTORY);
    static const struct {
        const char *name;
        iso_err code;
    } rows[] = {{"file", ISO_OK},      {"link", ISO_ERR_DATA}, {"../x", ISO_ERR_DATA},
                {"..", ISO_ERR_DATA},  {".", ISO_ERR_DATA},    {"", ISO_ERR_DATA},
                {"/etc", ISO_ERR_DATA}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_equal(iso_map_open_at(&m, fd, rows[i].name, &e), rows[i].code);
        iso_map_close(&m);
    }
    close(fd);
    assert_int_equal(iso_write_file(path, "", 0, 0644, &e), ISO_OK);
    assert_int_equal(iso_map_open(&m, path, &e), ISO_OK);
    assert_null(m.data);
    assert_int_equal(m.size, 0);
    iso_map_close(&m);
    free(path);
    free(link);
}

static void S80_a_write_is_whole_or_not_at_all(void **state)
{
    (void)state;
    char *path = iso_path_join(folder, "file");
    iso_error e;
    iso_out_file f;
    iso_buf b;
    struct stat info;
    assert_int_equal(iso_write_file(path, "old", 3, 0600, &e), ISO_OK);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    assert_int_equal(iso_out_begin(&f, path, 0600, &e), ISO_OK);
    assert_int_equal(iso_out_write(&f, "ne", 2, &e), ISO_OK);
    assert_int_equal(iso_out_write(&f, "w!", 2, &e), ISO_OK);
    assert_int_equal(f.size, 4);
    assert_int_equal(iso_read_file(path, 10, &b, &e), ISO_OK);
    assert_string_equal((char *)b.data, "old");
    iso_buf_free(&b);
    iso_out_abort(&f);
    iso_out_abort(&f); /* fine again */
    assert_int_equal(entries(), 1);
    iso_out_file g; /* two writers of one file */
    assert_int_equal(iso_out_begin(&f, path, 0644, &e), ISO_OK);
    assert_int_equal(iso_out_begin(&g, path, 0644, &e), ISO_OK);
    assert_int_equal(iso_out_write(&f, "first", 5, &e), ISO_OK);
    assert_int_equal(iso_out_write(&g, "second", 6, &e), ISO_OK);
    assert_int_equal(iso_out_commit(&f, &e), ISO_OK);
    iso_out_abort(&f);
    assert_int_equal(iso_out_commit(&g, &e), ISO_OK);
    assert_int_equal(iso_read_file(path, 10, &b, &e), ISO_OK);
    assert_string_equal((char *)b.data, "second");
    iso_buf_free(&b);
    assert_int_equal(entries(), 1);
    assert_int_equal(iso_write_file("/nowhere/file", "x", 1, 0644, &e), ISO_ERR_DATA);
    /* A name as long as the file system allows. */
    char name[256];
    memset(name, 'n', 255);
    name[255] = 0;
    char *longest = iso_path_join(folder, name);
    assert_int_equal(iso_write_file(longest, "x", 1, 0644, &e), ISO_OK);
    free(longest);
    free(path);
}

/* A full disk, as a limit on the size of a file: the old content stays, nothing is left behind. */
static void S87_a_full_disk_leaves_the_old_file(void **state)
{
    (void)state;
    char *path = iso_path_join(folder, "file");
    static char large[1 << 16];
    iso_error e;
    iso_buf b;
    assert_int_equal(iso_write_file(path, "old", 3, 0644, &e), ISO_OK);
    struct rlimit before, small = {4096, 4096};
    getrlimit(RLIMIT_FSIZE, &before);
    small.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    iso_err got = iso_write_file(path, large, sizeof large, 0644, &e);
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(got, ISO_ERR_RESOURCE);
    assert_non_null(strstr(e.text, "cannot write"));
    assert_int_equal(iso_read_file(path, 10, &b, &e), ISO_OK);
    assert_string_equal((char *)b.data, "old");
    iso_buf_free(&b);
    assert_int_equal(entries(), 1);
    free(path);
}

static void paths_are_joined_and_taken_apart(void **state)
{
    (void)state;
    static const struct {
        const char *a, *b, *joined;
    } rows[] = {{"a", "b", "a/b"},
                {"a/", "b", "a/b"},
                {"a", "/b", "a/b"},
                {"", "b", "b"},
                {"/", "b", "/b"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *joined = iso_path_join(rows[i].a, rows[i].b);
        assert_string_equal(joined, rows[i].joined);
        assert_string_equal(iso_path_base(joined), "b");
        free(joined);
    }
    static const char *const dirs[][2] = {{"a/b", "a"}, {"b", "."}, {"/b", "/"}, {"a/b/", "a/b"}};
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        char *dir = iso_path_dir(dirs[i][0]);
        assert_string_equal(dir, dirs[i][1]);
        free(dir);
    }
}

static void folders_are_made_listed_and_removed(void **state)
{
    (void)state;
    char *deep = iso_path_join(folder, "x/y//z/"), *file = iso_path_join(folder, "x/file");
    char *x = iso_path_join(folder, "x"), *outside = iso_path_join(folder, "outside");
    char *link = iso_path_join(folder, "x/y/link"), *below = iso_path_join(folder, "x/file/sub");
    iso_error e;
    iso_names names;
    assert_int_equal(iso_make_dirs(deep, 0755, &e), ISO_OK);
    assert_int_equal(iso_make_dirs(deep, 0755, &e), ISO_OK);
    assert_true(iso_is_dir(deep));
    assert_int_equal(iso_write_file(file, "x", 1, 0644, &e), ISO_OK);
    assert_false(iso_is_dir(file));
    assert_true(iso_path_exists(file));
    assert_int_equal(iso_make_dirs(file, 0755, &e), ISO_ERR_DATA);
    assert_int_equal(iso_make_dirs(below, 0755, &e), ISO_ERR_DATA);
    /* A link is removed, what it names is not. */
    assert_int_equal(iso_make_dirs(outside, 0755, &e), ISO_OK);
    assert_int_equal(symlink("../../outside", link), 0);
    assert_int_equal(iso_list_dir(x, &names, &e), ISO_OK);
    assert_int_equal(names.count, 2);
    assert_string_equal(names.names[0], "file");
    assert_string_equal(names.names[1], "y");
    iso_names_free(&names);
    assert_int_equal(iso_remove_tree(x, &e), ISO_OK);
    assert_false(iso_path_exists(x));
    assert_true(iso_is_dir(outside));
    assert_int_equal(iso_remove_tree(x, &e), ISO_OK);
    assert_int_equal(iso_list_dir(x, &names, &e), ISO_ERR_DATA);
    free(deep);
    free(file);
    free(x);
    free(outside);
    free(link);
    free(below);
}

static void S81_a_second_lock_names_the_holder(void **state)
{
    (void)state;
    char *path = iso_path_join(folder, "state.lock");
    iso_error e;
    int fd, second;
    iso_buf b;
    assert_int_equal(iso_lock_file(path, &fd, &e), ISO_OK);
    assert_int_equal(iso_read_file(path, 200, &b, &e), ISO_OK);
    char want[32];
    int n = snprintf(want, sizeof want, "pid %ld\nstarted 20", (long)getpid());
    assert_memory_equal(b.data, want, (size_t)n);
    iso_buf_free(&b);
    /* Within the process (the lock is of the open file) and from another one. */
    assert_int_equal(iso_lock_file(path, &second, &e), ISO_ERR_RESOURCE);
    snprintf(want, sizeof want, "process %ld", (long)getpid());
    assert_non_null(strstr(e.text, want));
    assert_int_equal(second, -1);
    pid_t child = fork();
    if (child == 0) {
        close(fd);
        _exit(iso_lock_file(path, &second, NULL) == ISO_ERR_RESOURCE ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    /* Opening and closing the file elsewhere drops nothing. */
    close(open(path, O_RDONLY));
    assert_int_equal(iso_lock_file(path, &second, &e), ISO_ERR_RESOURCE);
    iso_unlock_file(fd);
    assert_int_equal(iso_lock_file(path, &second, &e), ISO_OK);
    iso_unlock_file(second);
    free(path);
}

static void S81_a_killed_holder_frees_the_lock(void **state)
{
    (void)state;
    char *path = iso_path_join(folder, "state.lock");
    int ready[2], fd;
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        char c = iso_lock_file(path, &fd, NULL) ? 'n' : 'y';
        if (write(ready[1], &c, 1) == 1)
            pause();
        _exit(1);
    }
    char c = 0;
    assert_int_equal(read(ready[0], &c, 1), 1);
    assert_int_equal(c, 'y');
    assert_int_equal(iso_lock_file(path, &fd, NULL), ISO_ERR_RESOURCE);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    assert_int_equal(iso_lock_file(path, &fd, NULL), ISO_OK);
    iso_unlock_file(fd);
    close(ready[0]);
    close(ready[1]);
    free(path);
}

static void free_space_is_known(void **state)
{
    (void)state;
    uint64_t bytes = 0;
    assert_int_equal(iso_disk_free(folder, &bytes, NULL), ISO_OK);
    assert_true(bytes > 0);
    assert_int_equal(iso_disk_free("/nowhere/x", &bytes, NULL), ISO_ERR_DATA);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(reads_are_bounded, set_up, tear_down),
        cmocka_unit_test_setup_teardown(S9_1_only_regular_files, set_up, tear_down),
        cmocka_unit_test_setup_teardown(maps, set_up, tear_down),
        cmocka_unit_test_setup_teardown(S80_a_write_is_whole_or_not_at_all, set_up, tear_down),
        cmocka_unit_test_setup_teardown(S87_a_full_disk_leaves_the_old_file, set_up, tear_down),
        cmocka_unit_test(paths_are_joined_and_taken_apart),
        cmocka_unit_test_setup_teardown(folders_are_made_listed_and_removed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(S81_a_second_lock_names_the_holder, set_up, tear_down),
        cmocka_unit_test_setup_teardown(S81_a_killed_holder_frees_the_lock, set_up, tear_down),
        cmocka_unit_test_setup_teardown(free_space_is_known, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
