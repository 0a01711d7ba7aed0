/* The CLI's end of a daemon's Unix socket: one JSON object a line each way. */
#ifndef ISO_CLI_ADMIN_CLIENT_H
#define ISO_CLI_ADMIN_CLIENT_H

#include "core/json.h"

/* Sends {"cmd": cmd, "args": args} to DIR/admin.sock (a coordinator) or DIR/control.sock (a
 * client). args    taken over; may be NULL result  the reply's "result", owned by the caller
 * (iso_json_free on *reply, its root) No daemon there: ISO_ERR_RESOURCE naming the folder. A
 * refusal of the daemon comes back as its own line: ISO_ERR_TRUST for not_permitted, ISO_ERR_USAGE
 * for unknown names, else ISO_ERR_NO. */
iso_err iso_admin_call(const char *dir, const char *cmd, iso_json *args, iso_json **reply,
                       const iso_json **result, iso_error *e) ISO_MUST_CHECK;

#endif
