/* Seam: long work on images. Daemons plug in the engine (client/trainer.c), the simulation the
 * engine for all sites together or a planted problem with known optimum (sim/trainer_synthetic.c).
 *
 * A job is asynchronous: start() returns at once, progress and the one result come back from poll()
 * and are handed to the core as events. A job is a pure function of its fields and of the site's
 * images: started again under the same id after a crash it goes on from its checkpoint and ends
 * with the same bits (U32). Blobs are named by digest and lie in the site's store; the container of
 * an update is put there by the trainer before the result is reported. */
#ifndef ISO_CORE_TRAINER_H
#define ISO_CORE_TRAINER_H

#include "core/digest.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum {
    ISO_TRAINER_HEAD =
        1, /* fit the task's probe on frozen features; container with head.safetensors */
    ISO_TRAINER_TRAIN,    /* train an adapter; container of the update (S32) */
    ISO_TRAINER_EVALUATE, /* score a candidate (or the frozen backbone): all metrics at once */
    ISO_TRAINER_INSPECT, /* a release's files: rules of safetensors, shapes, finite (S93); no scores
                          */
    ISO_TRAINER_TRIAL, /* as EVALUATE for a release, with the scores of what serves now beside it */
    ISO_TRAINER_CHECK  /* one known input through adapter and head: `output` only (S95) */
} iso_trainer_job_kind;

/* What an invitation asks for: TaskSpec of the wire, borrowed strings. */
typedef struct {
    uint32_t adapter_kind; /* 1 LoRA 2 DATA 3 TOAST 4 factorised */
    uint32_t rank;
    float alpha;
    bool is_rslora;
    const char *const *targets; /* module names; none: all linears of the blocks */
    uint32_t target_count;
    uint32_t steps;
    float learning_rate;
    uint64_t seed;
    uint32_t head_mode; /* 0 fixed, 1 joint */
    float norm_cap;
    uint32_t min_samples;
    const char *const *classes; /* names in the order of the head's rows */
    uint32_t class_count;
    const char
        *kind_parameters; /* canonical JSON: batch, weight_decay, warmup, early_stop; or "" */
} iso_train_spec;

typedef struct {
    uint8_t id[16]; /* names the job and its checkpoint */
    iso_trainer_job_kind kind;
    uint8_t task_id[16];
    const char *task; /* name, as in the site's configuration; borrowed */
    uint64_t round;   /* HEAD, TRAIN */
    uint64_t number;  /* INSPECT, TRIAL, CHECK: of the release */
    const iso_train_spec *spec;
    iso_digest generation; /* TRAIN: digest of the backbone that is meant; zero: not checked */
    iso_digest head;       /* blob: the task's head (safetensors); zero: none */
    iso_digest base; /* TRAIN: blob, container of the task adapter to start from; zero: fresh */
    /* EVALUATE, INSPECT, TRIAL, CHECK: blobs, the two files of the adapter; zero: frozen backbone.
     */
    iso_digest adapter_config, adapter_model;
    /* TRIAL: what serves now, for `before`; adapter zero: frozen backbone; head zero: as `head`. */
    iso_digest before_config, before_model, before_head;
} iso_trainer_job;

/* A share of right answers, or nothing. */
typedef struct {
    bool is_known;
    float value;      /* 0..1 */
    uint64_t samples; /* that it was measured on */
} iso_score;

/* One row of the seam's results: as asked for, and the same with the head refitted on the site's
 * own training images in the features in question (DESIGN 2). */
typedef struct {
    iso_score delivered, refitted;
} iso_score_pair;

typedef enum { ISO_TRAINER_PROGRESS = 1, ISO_TRAINER_DONE, ISO_TRAINER_FAILED } iso_trainer_report;

typedef struct {
    iso_trainer_report kind;
    uint8_t id[16];
    /* PROGRESS */
    uint64_t step, steps;
    float loss;
    uint64_t checkpoint_step; /* what a crash now would go back to */
    /* DONE */
    iso_digest container; /* HEAD, TRAIN: blob of the unsealed container */
    uint64_t container_bytes;
    uint64_t samples;     /* training images used */
    uint64_t data_images; /* images of the task at this site, all splits */
    uint64_t data_bytes;  /* their files' bytes: what did not travel */
    iso_score_pair val,
        test; /* HEAD: probe; TRAIN: own; EVALUATE, TRIAL: the adapter in question */
    iso_score_pair val_before; /* TRIAL: what serves now, same images */
    iso_digest output;         /* TRIAL, CHECK: of the logits of one known input (S95) */
    /* FAILED */
    iso_err code;
    bool
        is_final; /* the same job would fail again (bad data, wrong backbone); else worth a retry */
    char sentence[ISO_ERROR_BYTES];
} iso_trainer_event;

typedef struct {
    void *ctx;
    /* The job's borrowed fields are copied before it returns. One job at a time: a second start
     * while one runs is ISO_ERR_INTERNAL. */
    iso_err (*start)(void *ctx, const iso_trainer_job *job, iso_error *e);
    /* Stops at the next step, keeps the checkpoint, reports nothing more of the job. A start may
     * follow at once: it begins when the stopped one has ended. */
    void (*cancel)(void *ctx, const uint8_t id[16]);
    /* The next event, or false. */
    bool (*poll)(void *ctx, iso_trainer_event *out);
    /* The job's outcome is recorded: its checkpoint may go. */
    void (*forget)(void *ctx, const uint8_t id[16]);
} iso_trainer;

#endif
