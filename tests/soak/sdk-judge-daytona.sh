#!/bin/sh
# Lets Daytona's own client judge our fake 20 times in a row; ends at the first failure.
# Use: tests/soak/sdk-judge-daytona.sh [TIMES]
set -eu
times=${1:-20}
cd "$(dirname "$0")/../.."
export PAPERCLIP_BRIDGE_TESTS_MUST_RUN=1
round=1
while [ "$round" -le "$times" ]; do
    echo "round $round of $times"
    cargo test --quiet -p paperclip-bridge-tests --test providers --locked -- --exact daytona_sdk::the_official_client_passes_on_the_fake
    round=$((round + 1))
done
echo "$times of $times passed"
