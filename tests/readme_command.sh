#!/usr/bin/env bash
# readme_command.sh README NAME: prints the shell block behind the line <!-- command: NAME -->.
set -euo pipefail
awk -v marker="<!-- command: $2 -->" '
  $0 == marker { found = 1; next }
  found && /^```/ { if (inside) exit; inside = 1; next }
  inside { print; lines++ }
  END { if (!lines) { print "no block behind " marker > "/dev/stderr"; exit 1 } }' "$1"
