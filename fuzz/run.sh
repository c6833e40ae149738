#!/usr/bin/env bash
# Runs the fuzz targets: fuzz/run.sh [minutes] [target]
#
# Without a target the minutes (10 unless given) are shared between all of them. cargo-fuzz is installed if it is
# missing. FUZZ_TARGET_DIR names another build folder than target/fuzz, FUZZ_SANITIZER another sanitizer than `address`
# (or `none`), FUZZ_PROFILE another profile than `--release` (`--dev` builds quicker and runs slower).
#
# What the fuzzer learns stays in BUILD/corpus/TARGET; what breaks a law is written to BUILD/findings/TARGET, and the run
# fails. Fix the product first, then copy the finding to fuzz/corpus/TARGET under a name that says what it broke:
# `cargo test -p paperclip-bridge-fuzz` replays it from then on.
set -euo pipefail
cd "$(dirname "$0")/.."

minutes=${1:-10}
build=${FUZZ_TARGET_DIR:-target/fuzz}
all=(target decision request ready http2 envelope envelope_signed listing journal known_hosts ssh_config connect_frames sse relay_frames config control_body audit)
targets=("${all[@]}")
if [[ -n ${2:-} ]]; then
    if [[ " ${all[*]} " != *" $2 "* ]]; then
        echo "no target $2: one of ${all[*]}" >&2
        exit 2
    fi
    targets=("$2")
fi
if [[ ! $minutes =~ ^[1-9][0-9]*$ ]]; then
    echo "minutes is a whole number, 1 or more: $minutes" >&2
    exit 2
fi
seconds=$((minutes * 60 / ${#targets[@]}))

if ! cargo fuzz --version >/dev/null 2>&1; then
    cargo install cargo-fuzz --locked
fi

# The address sanitizer needs a nightly flag; RUSTC_BOOTSTRAP lets the pinned stable compiler take it. Without it the run
# is still guided by coverage, and the product has no unsafe code of its own.
export RUSTC_BOOTSTRAP=1
# The shipped profile optimises the whole graph at once, once for each target.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
sanitizer=${FUZZ_SANITIZER:-address}
build_all() {
    flags=("${FUZZ_PROFILE:---release}" --sanitizer "$sanitizer" --features libfuzzer --target-dir "$build")
    cargo fuzz build "${flags[@]}"
}
if ! build_all; then
    echo "no build with --sanitizer $sanitizer: going on without one" >&2
    sanitizer=none
    build_all
fi

failed=()
for target in "${targets[@]}"; do
    learned=$build/corpus/$target
    findings=$build/findings/$target
    mkdir -p "$learned" "$findings"
    # 4 KiB hold several requests; what is longer only costs time.
    if ! cargo fuzz run "${flags[@]}" "$target" \
        "$learned" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -max_len=4096 -timeout=25 -rss_limit_mb=2048 \
        -artifact_prefix="$findings/" -print_final_stats=1; then
        failed+=("$target")
    fi
done

if ((${#failed[@]})); then
    echo "broken laws in: ${failed[*]}; the inputs are in $build/findings/. Replay one with" >&2
    echo "  cargo fuzz run ${flags[*]} TARGET FILE" >&2
    exit 1
fi
echo "no law broken in $seconds s a target: ${targets[*]}"
