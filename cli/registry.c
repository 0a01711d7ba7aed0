#include "cli/registry.h"

#include <stddef.h>

extern const iso_command iso_cmd_train, iso_cmd_eval, iso_cmd_predict, iso_cmd_embed, iso_cmd_data,
    iso_cmd_merge, iso_cmd_centralize, iso_cmd_inspect, iso_cmd_init, iso_cmd_keygen, iso_cmd_token,
    iso_cmd_enroll, iso_cmd_sites, iso_cmd_tasks, iso_cmd_rounds, iso_cmd_releases, iso_cmd_audit,
    iso_cmd_status, iso_cmd_report, iso_cmd_simulate, iso_cmd_bench;

/* In the order of the help: one machine, then a federation, then studies. */
const iso_command *const iso_commands[] = {
    &iso_cmd_train,      &iso_cmd_eval,
    &iso_cmd_predict,    &iso_cmd_embed,
    &iso_cmd_data,       &iso_cmd_merge,
    &iso_cmd_centralize, &iso_cmd_inspect,
    &iso_cmd_init,       &iso_cmd_keygen,
    &iso_cmd_token,      &iso_cmd_enroll,
    &iso_cmd_sites,      &iso_cmd_tasks,
    &iso_cmd_rounds,     &iso_cmd_releases,
    &iso_cmd_audit,      &iso_cmd_status,
    &iso_cmd_report,     &iso_cmd_simulate,
    &iso_cmd_bench,      NULL,
};
