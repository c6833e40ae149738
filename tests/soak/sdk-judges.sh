#!/usr/bin/env bash
# Lets the providers' own clients judge the fakes again and again: tests/soak/sdk-judges.sh [times] [filter]
#
# 20 times unless told otherwise; stops at the first failure. The filter is one of cargo test's, `judges` unless given.
set -euo pipefail
cd "$(dirname "$0")/../.."

times=${1:-20}
filter=${2:-judges}
export PAPERCLIP_BRIDGE_TESTS_MUST_RUN=1
cargo test -p paperclip-bridge-tests --locked --test providers --no-run
for ((time = 1; time <= times; time++)); do
    echo "run $time of $times"
    cargo test -p paperclip-bridge-tests --locked --test providers "$filter"
done
