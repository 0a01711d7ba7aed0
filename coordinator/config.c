/* coordinator.yaml: defaults, schema, checks (DESIGN 3; specs/security.md 9.3). The tables here are
 * also what `isofed init coordinator` documents (coordinator/init.c). */
#include "coordinator/config.h"

#include "core/yaml.h"

#include <stdio.h>
#include <string.h>

void iso_coord_config_defaults(iso_coord_config *config)
{
    *config = (iso_coord_config){.name = "isofed",
                                 .listen = "127.0.0.1:0",
                                 .release_valid_ms = 30ull * 86400000u,
                                 .head_valid_ms = 86400000u,
                                 .deadline_ms = 1800000u,
                                 .evaluate_timeout_ms = 600000u,
                                 .interval_ms = 10000u,
                                 .choose = ISO_CHOOSE_BEST,
                                 .gate_metric = ISO_GATE_ACCURACY_REFIT,
                                 .gate_margin = 0.01,
                                 .update_bytes = ISO_UPDATE_MAX_BYTES,
                                 .chunk_pool_bytes = ISO_POOL_MAX_BYTES,
                                 .credit = ISO_CREDIT_CHUNKS,
                                 .connections = 12000,
                                 .disk_floor_bytes = 1ull << 30,
                                 .disk_reserve_bytes = 64ull << 20,
                                 .requests_per_s = ISO_REQUESTS_A_SECOND,
                                 .request_burst = ISO_REQUESTS_BURST,
                                 .handshakes_per_s = 200,
                                 .handshake_burst = 1000,
                                 .upload_age_ms = 86400000u,
                                 .keep_rounds = 100};
    config->candidates[0] = (iso_coord_candidate){
        .method = "iso_cts", .alpha = 1.0, .convention = "rank", .common_fraction = 0.8};
    config->candidate_count = 1;
}

iso_coord_task iso_coord_task_defaults(void)
{
    return (iso_coord_task){.quorum = 1,
                            .rank = 8,
                            .rank_cap = 16,
                            .alpha = 16.0,
                            .steps = 300,
                            .learning_rate = 0.001,
                            .batch = 16,
                            .weight_decay = 0.01,
                            .warmup = 20,
                            .seed = 1,
                            .min_samples = 10,
                            .norm_cap = 100.0,
                            .update_bytes = 64ull << 20};
}
