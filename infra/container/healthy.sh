#!/bin/bash
# Whether the role in this container answers `/healthz` with 200: its image has no curl. Ends with 0 or 1, as HEALTHCHECK
# wants it. The argument is another path to ask for, as in `tidegate-healthy /readyz`.
set -u
port="${TIDEGATE_HEALTH##*:}"
exec 3<>"/dev/tcp/127.0.0.1/${port}" || exit 1
printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "${1:-/healthz}" >&3
read -r -t 4 _ status _ <&3 || exit 1
[ "${status}" = 200 ]
