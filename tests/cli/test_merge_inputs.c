/* isofed merge: bad input, each with its place; memory limits; recipes; states. What people see. */
#include "tests/cli/run_isofed.h"

#include "cli/merge_tensors.h"
#include "core/peft.h"
#include "core/rng.h"

#include <math.h>
#include <sys/resource.h>
#include <sys/stat.h>

static char *temp;
static run_result r;

/* temp/NAME: one weight (out, in) and a bias, type as given; `bad`: a NaN in the weight. */
static void write_tensors(const char *name, const char *weight, size_t out, size_t in,
                          iso_dtype type, uint64_t stream, bool bad)
{
    static double x[4096];
    static char bytes[8 * 4096];
    iso_rng g = iso_rng_make(31, ISO_RNG_TEST, stream);
    for (size_t i = 0; i < out * in; i++)
        x[i] = iso_rng_normal(&g);
    if (bad)
        x[5] = (double)NAN;
    assert_int_equal(iso_f64_to(type, x, out * in, bytes, NULL), ISO_OK);
    float bias[3] = {1, 2, (float)stream};
    iso_named_tensor t[] = {{weight, {type, 2, {out, in}, bytes}},
                            {"l.bias", {ISO_F32, 1, {3}, bias}}};
    char *path = iso_path_join(temp, name);
    assert_int_equal(iso_safetensors_write(path, t, 2, NULL, 0, NULL), ISO_OK);
    free(path);
}

static void write_adapter(const char *name, size_t rank, uint64_t stream)
{
    iso_lora_layer l[2];
    for (size_t k = 0; k < 2; k++) {
        l[k] =
            (iso_lora_layer){k ? "blk.1.v" : "blk.0.q", 12, 10, rank, 1.0, iso_calloc(rank * 10, 4),
                             iso_calloc(12 * rank, 4)};
        iso_rng g = iso_rng_make(33, ISO_RNG_TEST, 2 * stream + k);
        for (size_t i = 0; i < rank * 10; i++)
            l[k].A[i] = (float)iso_rng_normal(&g);
        for (size_t i = 0; i < 12 * rank; i++)
            l[k].B[i] = (float)iso_rng_normal(&g);
    }
    char *path = iso_path_join(temp, name);
    iso_peft_output o = {.layers = l, .count = 2, .base_model = "vit"};
    assert_int_equal(iso_peft_write(path, &o, NULL), ISO_OK);
    for (size_t k = 0; k < 2; k++)
        free(l[k].A), free(l[k].B);
    free(path);
}

static void write_text(const char *name, const char *text)
{
    char *path = iso_path_join(temp, name);
    assert_int_equal(iso_write_file(path, text, strlen(text), 0644, NULL), ISO_OK);
    free(path);
}

static int set_up(void **state)
{
    (void)state;
    temp = make_temp_dir();
    write_tensors("a.safetensors", "l.weight", 20, 30, ISO_F32, 1, false);
    write_tensors("b.safetensors", "l.weight", 20, 30, ISO_F32, 2, false);
    write_tensors("bf16.safetensors", "l.weight", 20, 30, ISO_BF16, 3, false);
    write_tensors("f16.safetensors", "l.weight", 20, 30, ISO_F16, 4, false);
    write_tensors("wide.safetensors", "l.weight", 20, 31, ISO_F32, 5, false);
    write_tensors("named.safetensors", "m.weight", 20, 30, ISO_F32, 6, false);
    write_tensors("nan.safetensors", "l.weight", 20, 30, ISO_F32, 7, true);
    for (size_t rows = 3; rows < 5; rows++) { /* six tensors, all of another shape */
        static float x[8];
        static const char *const names[] = {"t0", "t1", "t2", "t3", "t4", "t5"};
        iso_named_tensor t[6];
        for (size_t i = 0; i < 6; i++)
            t[i] = (iso_named_tensor){names[i], {ISO_F32, 2, {rows, 2}, x}};
        char *path = iso_strf("%s/many%zu.safetensors", temp, rows);
        assert_int_equal(iso_safetensors_write(path, t, 6, NULL, 0, NULL), ISO_OK);
        free(path);
    }
    for (size_t t = 0; t < 3; t++) {
        static const char *const names[] = {"weld", "paint", "press"};
        write_adapter(names[t], 2 + t, t);
    }
    char *folder = iso_path_join(temp, "shards");
    assert_int_equal(iso_make_dirs(folder, 0755, NULL), ISO_OK);
    free(folder);
    write_tensors("shards/one.safetensors", "l.weight", 20, 30, ISO_F32, 8, false);
    write_text("shards/missing.index.json",
               "{\"weight_map\":{\"l.weight\":\"one.safetensors\",\"l.bias\":\"one.safetensors\","
               "\"m.weight\":\"two.safetensors\"}}");
    write_text("shards/twice.index.json",
               "{\"weight_map\":{\"l.weight\":\"one.safetensors\",\"l.weight\":\"one.safetensors\","
               "\"l.bias\":\"one.safetensors\"}}");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    iso_err err = iso_remove_tree(temp, NULL);
    free(temp);
    return (int)err;
}

/* Words that name files of `temp` start with '@'; also behind '='. */
static void isofed(const char *line)
{
    char copy[1024], *words[64], *save = NULL;
    const char *args[64];
    size_t n = 0;
    snprintf(copy, sizeof copy, "%s", line);
    for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
        char *mark = strchr(w, '@');
        words[n] = mark ? iso_strf("%.*s%s/%s", (int)(mark - w), w, temp, mark + 1) : iso_strdup(w);
        args[n] = words[n];
        n++;
    }
    args[n] = NULL;
    run_isofed(temp, args, &r);
    for (size_t i = 0; i < n; i++)
        free(words[i]);
}

static void expect(const char *line, int rc, const char *in_out, const char *in_err)
{
    isofed(line);
    if (r.rc != rc || (in_out && !strstr(r.out, in_out)) || (in_err && !strstr(r.err, in_err)))
        fail_msg("isofed %s: exit %d (wanted %d), wanted \"%s\" and \"%s\" in\n%s\n%s", line, r.rc,
                 rc, in_out ? in_out : "", in_err ? in_err : "", r.out, r.err);
    if (rc != 0) { /* errors are one line */
        char *newline = strchr(r.err, '\n');
        assert_true(newline && newline[1] == 0);
    }
}

static iso_dtype type_of(const char *name)
{
    char *path = iso_path_join(temp, name);
    iso_safetensors st = {0};
    assert_int_equal(iso_safetensors_open(&st, path, NULL), ISO_OK);
    assert_int_equal(st.count, 2);
    iso_dtype type = iso_safetensors_find(&st, "l.weight")->view.dtype;
    iso_safetensors_close(&st);
    free(path);
    return type;
}

static void bad_input_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *line;
        int rc;
        const char *text;
    } rows[] = {
        {"merge @a.safetensors @wide.safetensors -o @x.safetensors", 3, "is 20x31"},
        {"merge @a.safetensors @wide.safetensors -o @x.safetensors", 3, "wide.safetensors"},
        {"merge @many3.safetensors @many4.safetensors -o @x.safetensors", 3,
         "6 of 6 tensors differ in shape: t0 is 3x2 in many3.safetensors, 4x2 in"},
        {"merge @a.safetensors @named.safetensors -o @x.safetensors", 1, "unmatched: l.weight"},
        {"merge @a.safetensors @nan.safetensors -o @x.safetensors", 3, "l.weight"},
        {"merge @a.safetensors @nan.safetensors -o @x.safetensors --method average", 3, "input 2"},
        {"merge @a.safetensors @b.safetensors -o @x.safetensors --weights 1,-1", 2, "not negative"},
        {"merge @a.safetensors @b.safetensors -o @x.safetensors --weights 0,0", 2, "are zero"},
        {"merge @a.safetensors @b.safetensors -o @x.safetensors --common-fraction 1.5", 2,
         "from 0 to 1"},
        {"merge @a.safetensors @b.safetensors -o @a.safetensors", 2, "is the input"},
        {"merge @a.safetensors @b.safetensors --base @bf16.safetensors -o @bf16.safetensors", 2,
         "is the input"},
        {"merge @shards/missing.index.json @a.safetensors -o @x", 3, "two.safetensors"},
        {"merge @shards/twice.index.json @a.safetensors -o @x", 3, "l.weight"},
        {"merge @a.safetensors @nowhere -o @x", 3, "no such file"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        expect(rows[i].line, rows[i].rc, NULL, rows[i].text);
        char *path = iso_path_join(temp, "x.safetensors");
        assert_false(iso_path_exists(path));
        free(path);
    }
    /* the input that was also the output is unharmed */
    assert_int_equal(type_of("a.safetensors"), ISO_F32);
}

static void U95_types_mix_and_the_result_has_the_type_asked_for(void **state)
{
    (void)state;
    expect("merge @a.safetensors @bf16.safetensors @f16.safetensors --method average --dtype BF16 "
           "-o @mixed.safetensors",
           0, "2 by the method, 0 averaged", NULL);
    assert_int_equal(type_of("mixed.safetensors"), ISO_BF16);
    expect("merge @a.safetensors @bf16.safetensors --dtype I8 -o @x", 2, NULL,
           "F64, F32, F16 or BF16");
}

static void a_tensor_of_one_input_only_counts_as_zero_when_allowed(void **state)
{
    (void)state;
    expect("merge @a.safetensors @named.safetensors --allow-missing --method iso_c -o "
           "@partial.safetensors",
           0, "2 by the method, 1 averaged", NULL);
}

static void U57_what_does_not_fit_is_not_started(void **state)
{
    (void)state;
    expect("merge @a.safetensors @b.safetensors --memory-limit 8MiB -o @x.safetensors", 5, NULL,
           "not started");
    expect("merge @weld @paint --memory-limit 1MiB -o @x", 5, NULL, "not started");
    expect("merge @a.safetensors @b.safetensors --memory-limit 1GiB -o @fits.safetensors", 0, NULL,
           NULL);
    expect("merge @a.safetensors @b.safetensors --dry-run", 0, "nothing was written", NULL);
    expect("merge @a.safetensors @b.safetensors --dry-run --json", 0, "\"needs_bytes\"", NULL);
}

/* A full disk, as far as a process can tell. */
static void no_space_left_leaves_nothing(void **state)
{
    (void)state;
    struct rlimit old, small = {1024, 1024};
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small.rlim_max = old.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    isofed("merge @a.safetensors @b.safetensors -o @full.safetensors -q");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(r.rc, 5);
    assert_non_null(strstr(r.err, "cannot write"));
    iso_names names;
    assert_int_equal(iso_list_dir(temp, &names, NULL), ISO_OK);
    for (size_t i = 0; i < names.count; i++)
        if (strstr(names.names[i], "full"))
            fail_msg("%s was left", names.names[i]);
    iso_names_free(&names);
}

/* The file is cut short between the check of its header and the merge: one line, exit 3. */
static void a_file_that_is_truncated_while_mapped_ends_in_one_line(void **state)
{
    (void)state;
    char *big = iso_path_join(temp, "big.safetensors"), *a = iso_path_join(temp, "a.safetensors");
    char *out = iso_path_join(temp, "cut.safetensors"), text[512] = "";
    enum { SIDE = 400 };
    float *x = iso_calloc(SIDE * SIDE, 4);
    iso_named_tensor t = {"l.weight", {ISO_F32, 2, {SIDE, SIDE}, x}};
    assert_int_equal(iso_safetensors_write(big, &t, 1, NULL, 0, NULL), ISO_OK);
    int fds[2], status = 0;
    assert_int_equal(pipe(fds), 0);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        static iso_merge_inputs in;
        iso_arg_list paths = {{big, big}, 2};
        iso_merge_options o = iso_merge_defaults(iso_method_find("average"));
        iso_merged_dense m = {0};
        iso_json *recipe = iso_json_object(), *result = iso_json_object();
        iso_error e;
        dup2(fds[1], STDERR_FILENO);
        if (iso_merge_inputs_open(&in, &paths, NULL, false, false, &e))
            _exit(90);
        iso_merge_catch_truncation(&in);
        if (truncate(big, 8192))
            _exit(91);
        _exit(iso_merge_tensors_write(&in, &o, ISO_DTYPE_COUNT, out, false, false, recipe, &m,
                                      result, &e)
                  ? 92
                  : 93);
    }
    close(fds[1]);
    size_t n = 0;
    for (ssize_t got = 1; got > 0 && n<sizeof text - 1; n += got> 0 ? (size_t)got : 0)
        got = read(fds[0], text + n, sizeof text - 1 - n);
    close(fds[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 3 || n == 0)
        fail_msg("status %x: %s", (unsigned)status, text);
    assert_non_null(strstr(text, "big.safetensors: cannot be read: the file became shorter"));
    assert_false(iso_path_exists(out));
    free(big), free(a), free(out), free(x);
}

/* ---- recipes ---- */
static void U98_a_recipe_does_what_its_options_do(void **state)
{
    (void)state;
    char *text = iso_strf("inputs:\n  - %s/weld\n  - path: %s/paint\n    weight: 2\n"
                          "method: iso_c\nparameters:\n  alpha: 1.5\nrank: 3\n"
                          "layers:\n  - match: \"*.v\"\n    alpha: 0.5\n",
                          temp, temp);
    write_text("recipe.yaml", text);
    free(text);
    expect("merge --recipe @recipe.yaml -o @by-recipe --json", 0, "\"digest\"", NULL);
    char *digest = iso_strdup(strstr(r.out, "\"digest\": \""));
    expect("merge @weld @paint --weights 1,2 --method iso_c --alpha 1.5 --rank 3 --layer-alpha "
           "*.v=0.5 -o @by-options --json",
           0, "\"digest\"", NULL);
    char *other = strstr(r.out, "\"digest\": \"");
    assert_memory_equal(digest, other, 70);
    free(digest);
    /* options beside the recipe win */
    expect("merge --recipe @recipe.yaml --method average --set --dry-run -o @x", 2, NULL, NULL);
}

static void U98_bad_recipes_are_refused_before_any_work(void **state)
{
    (void)state;
    static const struct {
        const char *text, *in_error;
        int rc;
    } rows[] = {
        {"method: iso_c\n", "inputs", 2},
        {"inputs: x\n", "takes a list", 2},
        {"inputs: [a, b]\nmethode: iso_c\n", "did you mean \"method\"", 2},
        {"inputs: [a, b]\nmethod: iso_d\n", "iso_d", 2},
        {"inputs: [a, b]\nparameters: [1]\n", "name: value", 2},
        {"inputs: [{path: a, wieght: 2}]\n", "did you mean \"weight\"", 2},
        {"inputs: [a, b]\nenergy: 1.5\n", "energy", 2},
        {"inputs: [a, b]\nlayers: [{match: x}]\n", "alpha", 2},
        {"inputs: [a, b]\nguards: {floor: 2}\n", "floor", 2},
        {"inputs: [a, b]\ninputs: [c]\n", "inputs", 2},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        write_text("bad.yaml", rows[i].text);
        isofed("merge --recipe @bad.yaml -o @x");
        if ((r.rc != rows[i].rc && r.rc != 3) || !strstr(r.err, rows[i].in_error))
            fail_msg("%s: exit %d: %s", rows[i].text, r.rc, r.err);
    }
}

/* ---- state ---- */
static void U102_a_state_gives_the_joint_merge(void **state)
{
    (void)state;
    expect("merge --state @m.state --add weld=@weld", 0, "weld", NULL);
    expect("merge --state @m.state --add @paint --add press=@press -o @stream --method iso_cts "
           "--json",
           0, "\"digest\"", NULL);
    char *digest = iso_strdup(strstr(r.out, "\"digest\": \""));
    /* in the state's order: by name */
    expect("merge @paint @press @weld -o @joint --method iso_cts --json", 0, "\"digest\"", NULL);
    assert_memory_equal(digest, strstr(r.out, "\"digest\": \""), 70);
    free(digest);
    expect("merge --state @m.state --remove press --weight weld=2 -o @two --method average", 0,
           "weight 2", NULL);
    expect("merge --state @m.state --replace weld=@press -o @three", 0, "paint", NULL);
    expect("merge --state @m.state --compress 1 -o @four", 0, NULL, "directions dropped");
    expect("merge --state @m.state --remove nobody", 2, NULL, "no task \"nobody\"");
    expect("merge --state @m.state --add weld=@weld", 2, NULL, "already");
    expect("merge --state @m.state @weld -o @x", 2, NULL, "--add TASK=ADAPTER");
    expect("merge --state @nowhere.state -o @x", 3, NULL, "nowhere.state");
    expect("merge --state @m.state --weight weld=x", 2, NULL, "TASK=NUMBER");
}

/* ---- page ---- */
static void U100_the_report_shows_how_tasks_lie_to_each_other(void **state)
{
    (void)state;
    static char html[1 << 17];
    char *path = iso_path_join(temp, "page.html");
    expect("merge @weld @weld @paint --method average -o @reported --report @page.html", 0, NULL,
           NULL);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    html[fread(html, 1, sizeof html - 1, f)] = 0;
    fclose(f);
    static const char *const parts[] = {"Alignment between tasks", "Spectra of the layer",
                                        "alignment ratio", "blk.1.v", "Per layer"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (!strstr(html, parts[i]))
            fail_msg("no \"%s\" on the page", parts[i]);
    /* an adapter and its copy: cosine one, five times in a 3 x 3 map with its diagonal */
    size_t ones = 0;
    for (const char *at = strstr(html, "Alignment between tasks"), *end = strstr(at, "</svg>");
         (at = strstr(at, ">1.00<")) && at < end; at++)
        ones++;
    assert_int_equal(ones, 5);
    expect("merge @a.safetensors @b.safetensors --report @page.html -o @x", 2, NULL,
           "for adapters");
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_input_is_named),
        cmocka_unit_test(U95_types_mix_and_the_result_has_the_type_asked_for),
        cmocka_unit_test(a_tensor_of_one_input_only_counts_as_zero_when_allowed),
        cmocka_unit_test(U57_what_does_not_fit_is_not_started),
        cmocka_unit_test(no_space_left_leaves_nothing),
        cmocka_unit_test(a_file_that_is_truncated_while_mapped_ends_in_one_line),
        cmocka_unit_test(U98_a_recipe_does_what_its_options_do),
        cmocka_unit_test(U98_bad_recipes_are_refused_before_any_work),
        cmocka_unit_test(U102_a_state_gives_the_joint_merge),
        cmocka_unit_test(U100_the_report_shows_how_tasks_lie_to_each_other),
    };
    return cmocka_run_group_tests_name("merge inputs", tests, set_up, tear_down);
}
